"""What is drawn, by which adapter, and who draws it: the seam between the app and its engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from api.errors import RETRY_AFTER_SECONDS, ApiError
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, Sample


@dataclass(frozen=True)
class Adapter:
    """A PEFT directory that never changes, under a key that no other adapter has."""

    key: str
    directory: Path


@dataclass(frozen=True)
class Draw:
    """n samples of Z behind one prompt; the same seed gives the same samples."""

    prompt_ids: Sequence[int]
    moves: LegalMoves
    n: int
    seed: int
    behaviour: Behaviour = field(default_factory=Behaviour)


Finished = tuple[int, list[Sample]]
"""Index of a draw and its samples."""


class Host(Protocol):
    """Draws for many clients at once: an engine of this process, or replicas of it on a cluster.

    Attributes:
        not_ready: why no draw can be taken; None: it can.
        missing: what is wanted and does not answer, while the rest does.
        samples_in_flight: handed to engines, not finished.
        samples, tokens, restarts, adapter_loads: since the host began.
    """

    not_ready: str | None
    missing: tuple[str, ...]
    samples_in_flight: int
    samples: int
    tokens: int
    restarts: int
    adapter_loads: int

    @property
    def jobs(self) -> int:
        """Clients with draws here."""
        ...

    @property
    def adapters_loaded(self) -> int:
        """Adapter versions that can be drawn by at once."""
        ...

    def start(self) -> None:
        """Start what draws; returns at once, ``not_ready`` says when it answers."""
        ...

    def close(self) -> None:
        """Fail what is in flight and free the engines."""
        ...

    def spread(self, run: Path, adapter: Adapter) -> bool:
        """Is the newest adapter of a run everywhere? If not, it is on its way: draw by the one before."""
        ...

    def samples_of(
        self, draws: Sequence[Draw], adapter: Adapter | None
    ) -> AsyncGenerator[Finished, None]:
        """Samples of each draw, as they finish; leaving the iteration cancels the rest.

        Raises:
            ApiError: no engine is there, or engines failed again and again under these draws.
            UserError: a draw cannot be served.
        """
        ...


def unavailable(reason: str) -> ApiError:
    """No engine to draw with (503)."""
    fix = f"Try again in {RETRY_AFTER_SECONDS} s; GET /ready says when it answers."
    return ApiError(503, "engine_unavailable", reason, fix)
