"""Keeps an embedded Redis alive: killed, it is started again on its append-only file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from posteriori.errors import UserError
from replay.server import EmbeddedServer

POLL_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
"""Between two attempts that fail, such as on a full disk: whoever frees it should not wait long."""


@contextmanager
def kept_alive(server: EmbeddedServer, on_event: Callable[[str, str], object]) -> Iterator[None]:
    """Inside the block the server is started again, under its address, whenever it has ended.

    Args:
        server: started.
        on_event: called with (kind, message) from a thread: ``storage_died``, ``storage_down`` when
            an attempt to start it failed, ``storage_restarted``.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(POLL_SECONDS):
            if not server.alive:
                _start_again(server, over, on_event)

    thread = threading.Thread(target=keep, name="redis-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _start_again(
    server: EmbeddedServer, over: threading.Event, on_event: Callable[[str, str], object]
) -> None:
    began = time.monotonic()
    on_event("storage_died", f"Redis in {server.directory} has died; it is started again.")
    pause = FIRST_PAUSE_SECONDS
    while not over.is_set():
        try:
            server.start()
        except UserError as cause:
            on_event("storage_down", f"Redis cannot be started again: {cause}")
            over.wait(pause)
            pause = min(2.0 * pause, LONGEST_PAUSE_SECONDS)
        else:
            on_event(
                "storage_restarted",
                f"Redis was started again from its append-only file, {time.monotonic() - began:.1f} s "
                "after its death was noticed.",
            )
            return
