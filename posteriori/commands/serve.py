"""``posteriori serve``: the service in one process, engine included."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from rich.console import Console

from posteriori.errors import UserError
from posteriori.freed_memory import return_freed_memory

if TYPE_CHECKING:
    from api.settings import ServeSettings

GRACE_SECONDS = 10
"""What is in flight at Ctrl-C may take this long to finish."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx: 5 s): else it is closed under a request on its way."""


def serve(settings: ServeSettings, console: Console) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the model cannot be loaded, the address cannot be used, or it needs API keys.
    """
    import torch
    import uvicorn

    from api.access import read_keys
    from api.app import create_app
    from api.telemetry import configure_logs

    keys = read_keys(settings)  # before the model is loaded
    return_freed_memory()
    with _listening(settings) as listener:
        torch.set_num_threads(settings.threads)
        configure_logs()
        app = create_app(settings, keys=keys)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        console.print(f"Serving {settings.model} at http://{shown}:{port}", highlight=False)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        # uvicorn passes Ctrl-C on once everything has ended as it should.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(settings: ServeSettings) -> socket.socket:
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=1024,
        )
    except OSError as cause:
        raise UserError(
            f"Cannot listen on {settings.host}:{settings.port}: {os.strerror(cause.errno or 0)}.",
            "Choose another --port, or an address of this machine.",
        ) from cause
