"""Waiting for another process: jittered polling with a deadline and a named reason."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from posteriori.errors import WaitTimeout

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.5
"""Long enough that a hundred waiting actors are a few hundred polls a second, a trifle to Redis."""
GROWTH = 1.6

Found = TypeVar("Found")


@dataclass(frozen=True)
class NotYet:
    """What a poll returns when there is nothing yet, and why."""

    reason: str


def wait_for(
    what: str,
    poll: Callable[[], Found | NotYet],
    deadline_seconds: float,
    stop: Callable[[], bool] | None = None,
) -> Found | None:
    """Poll until there is something.

    Args:
        what: named in the error, such as ``trajectories to learn from``.
        poll: returns the thing, or :class:`NotYet` with the reason; its exceptions pass through.
        deadline_seconds: give up after this long; at least one poll is made.
        stop: looked at before every pause; when it says True the wait ends.

    Returns:
        What the poll returned, or None when ``stop`` said True.

    Raises:
        WaitTimeout: names ``what``, how long it took and the last reason.
    """
    deadline = time.monotonic() + deadline_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        found = poll()
        if not isinstance(found, NotYet):
            return found
        if stop is not None and stop():
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(
                f"Waited {deadline_seconds:g} s for {what}: {found.reason}.",
                "Look at the component that should have provided it, or raise "
                "replay.deadline_seconds.",
            )
        # Jitter keeps processes that began to wait together from polling together.
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
        pause = min(pause * GROWTH, LONGEST_PAUSE_SECONDS)
