"""A client that waits for its server: how a run bridges a restart of Redis or a cut in the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

BACKOFF_BASE_SECONDS = 0.05
BACKOFF_CAP_SECONDS = 2.0
"""Jittered, so that a hundred waiting actors do not come back in lockstep."""
QUIET_SECONDS = 0.5
"""A connection that was only idle too long is back within this: not worth a word."""

CLUSTER_PAUSE_SECONDS = 0.25
"""A client of a Redis Cluster goes by the number of retries (a negative one would be none at all) and
pauses this long between them."""

_HOPELESS = (
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)
"""Connection errors that waiting does not mend."""

Result = TypeVar("Result")


class PatientRetry(Retry):
    """Retries for a time instead of a number of times, and says what is waited for.

    Nested calls (a command that has to connect first) end together: each has its own deadline, and
    the outer one began earlier.

    Args:
        address: of the server, without password, for messages.
        patience_seconds: longest wait of one call.
        on_wait: told in a sentence that a wait goes on, and that it is over; None: logged.
    """

    # Calls that share it may come from several threads; all state is one optional time of theirs.
    __hash__ = Retry.__hash__

    def __init__(
        self, address: str, patience_seconds: float, on_wait: Callable[[str], object] | None = None
    ) -> None:
        super().__init__(
            ExponentialWithJitterBackoff(cap=BACKOFF_CAP_SECONDS, base=BACKOFF_BASE_SECONDS),
            max(10, int(patience_seconds / CLUSTER_PAUSE_SECONDS)),
        )
        self._address = address
        self._patience_seconds = patience_seconds
        self._on_wait = on_wait or log.warning
        self._said_seconds: float | None = None

    def __eq__(self, other: Any) -> bool:
        return self is other

    def __deepcopy__(self, _memo: dict[int, Any]) -> PatientRetry:
        return self  # every connection of the client shares it

    def call_with_retry(
        self,
        do: Callable[[], Result],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Result:
        """Do it, over again while the connection fails and time is left; see :class:`redis.retry.Retry`."""
        began = time.monotonic()

        def failed(error: Exception, *count: int) -> None:
            fail(error, *count)  # closes the connection
            waited = time.monotonic() - began
            if isinstance(error, _HOPELESS) or waited > self._patience_seconds:
                raise error
            if waited > QUIET_SECONDS and self._said_seconds is None:
                self._said_seconds = began
                self._on_wait(
                    f"Redis at {self._address} does not answer ({error}): waiting up to "
                    f"{self._patience_seconds:g} s."
                )

        result = super().call_with_retry(do, failed, is_retryable, with_failure_count)
        since, self._said_seconds = self._said_seconds, None
        if since is not None:
            self._on_wait(
                f"Redis at {self._address} answers again after {time.monotonic() - since:.1f} s."
            )
        return result
