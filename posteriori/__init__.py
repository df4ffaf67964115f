"""posteriori: fast, verified samples from intractable posteriors of language models.

What users import is here; the other top-level packages are rooms of the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posteriori.client import AsyncClient, Client, ServiceError

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "ServiceError", "__version__"]


def __getattr__(name: str) -> object:
    # On demand: `posteriori --help` and the rooms need no HTTP client.
    if name in __all__:
        from posteriori import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
