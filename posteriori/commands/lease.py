"""One driver a run: a lease in the run's Redis, by the server's clock.

The lock in the run's directory keeps two drivers of one directory apart; this keeps apart two runs of one
name on a Redis they share, and tells ``posteriori gc`` and the service which runs live.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from posteriori.errors import StorageFull, StorageUnreachable, UserError

if TYPE_CHECKING:
    from replay.registry import RunRegistry

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A driver that nobody has heard of for this long is dead; a restart of Redis takes less."""
RENEW_SECONDS = 10.0


@contextmanager
def held(registry: RunRegistry, run: str, owner: str) -> Iterator[None]:
    """Hold the run while inside.

    Args:
        registry: of the run.
        run: its name, for messages.
        owner: :meth:`RunDirectory.identity`.

    Raises:
        UserError: another run of this name lives on this Redis, or has left its data there.
        StorageUnreachable: Redis does not answer.
    """
    found = registry.hold(owner, LEASE_SECONDS)
    if found == "held":
        raise UserError(
            f"Another run named {run!r} is running on this Redis.",
            "Choose another `run` name, or wait until that one has ended.",
        )
    if found == "left":
        raise UserError(
            f"Another run named {run!r} has left its data on this Redis.",
            f"Choose another `run` name, or remove them: `posteriori gc {run} --redis URL --yes`.",
        )
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                registry.hold(owner, LEASE_SECONDS)
            except (StorageFull, StorageUnreachable) as cause:
                log.warning("The run's lease was not renewed: %s", cause)

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        # Where Redis is away the lease ends by itself.
        with suppress(StorageUnreachable):
            registry.release()
