"""A connection to Redis that retries, and the names its failures have for users."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from posteriori.errors import StorageFull, StorageUnreachable, UserError
from replay import address
from replay.address import without_password
from replay.patience import BACKOFF_BASE_SECONDS, BACKOFF_CAP_SECONDS, PatientRetry

SOCKET_TIMEOUT_SECONDS = 30.0
"""A reply later than this counts as a lost connection; a rewrite of a large AOF takes seconds."""
CONNECT_TIMEOUT_SECONDS = 5.0
"""A host that does not even accept within this is taken to be unreachable."""
HEALTH_CHECK_SECONDS = 15
"""An idle connection is pinged before use, so a server that restarted is noticed there."""
RETRIES = 6
"""Six retries with jitter bridge a restart of the server: a few seconds, never in lockstep."""
OLDEST_VERSION = (6, 2)
"""The version every script is tested on."""


def connect(
    redis_url: str,
    *,
    retries: int = RETRIES,
    socket_timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
    patience_seconds: float | None = None,
    on_wait: Callable[[str], object] | None = None,
) -> redis.Redis:
    """A client for any address of :mod:`replay.address`, checked to answer and to be usable.

    Replies are bytes. Lost connections are retried with jittered exponential backoff. Every write
    of this room may be repeated after a lost reply without harm.

    Args:
        redis_url: address; a password in it is never shown in a message.
        retries: attempts after the first one.
        socket_timeout_seconds: longest wait for a reply.
        patience_seconds: retry for this long instead, as the parts of a run do; None: ``retries`` times.
        on_wait: told in a sentence what a patient client waits for; None: it is logged.

    Raises:
        StorageUnreachable: nothing answers, or the server refuses the credentials.
        UserError: the URL is malformed, the server is older than 6.2, or its eviction policy may
            delete parts of the buffer.
    """
    redis_url = address.resolve(redis_url)
    retry: Retry
    if patience_seconds is None:
        backoff = ExponentialWithJitterBackoff(cap=BACKOFF_CAP_SECONDS, base=BACKOFF_BASE_SECONDS)
        retry = Retry(backoff, retries)
    else:
        retry = PatientRetry(without_password(redis_url), patience_seconds, on_wait)
    try:
        client = address.client(
            redis_url,
            retry,
            decode_responses=False,
            socket_timeout=socket_timeout_seconds,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            health_check_interval=HEALTH_CHECK_SECONDS,
        )
    except (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.exceptions.RedisClusterException,
    ) as cause:
        # A client of a cluster asks it for its slots at once.
        raise _unreachable(redis_url, cause) from cause
    except ValueError:
        # Without its cause: a parser's own words may hold parts of the password.
        raise address.not_an_address(redis_url) from None
    with storage_errors(redis_url):
        server = client.info("server")
        memory = client.info("memory")
    version = tuple(int(part) for part in str(server["redis_version"]).split(".")[:2])
    if version < OLDEST_VERSION:
        raise UserError(
            f"Redis at {without_password(redis_url)} is version {server['redis_version']}.",
            "Use 6.2 or newer, or `redis_url: embedded`.",
        )
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if int(memory.get("maxmemory", 0)) > 0 and policy != "noeviction":
        raise UserError(
            f"Redis at {without_password(redis_url)} has maxmemory-policy {policy}, which deletes "
            "parts of the buffer at will.",
            "Run `redis-cli CONFIG SET maxmemory-policy noeviction`.",
        )
    return client


def address_of(client: redis.Redis) -> str:
    """Where a client connects to, without credentials."""
    found: object = (
        client  # a client of a cluster has the commands of one server, and no common type
    )
    if isinstance(found, redis.RedisCluster):
        nodes: Any = found
        node = nodes.get_default_node()
        return f"redis+cluster://{node.host}:{node.port}"
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):  # the address may change with every connection
        return f"redis+sentinel://{pool.service_name}"
    options = pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    return f"redis://{options.get('host')}:{options.get('port')}/{options.get('db', 0)}"


@contextmanager
def storage_errors(server: redis.Redis | str) -> Iterator[None]:
    """Turn what Redis refuses into errors a user can act on.

    Raises:
        StorageUnreachable: no connection, or not within the timeout, or credentials refused.
        StorageFull: Redis has no memory left, or its disk is full. Nothing was written.
    """
    try:
        yield
    except (
        redis.AuthenticationError,
        redis.exceptions.NoPermissionError,
        redis.exceptions.AuthorizationError,
    ) as cause:
        raise StorageUnreachable(
            f"Redis at {_name(server)} refuses the credentials: {cause}.",
            "Put user and password into redis_url: redis://USER:PASSWORD@HOST:PORT/0.",
        ) from cause
    except (redis.ConnectionError, redis.TimeoutError) as cause:
        raise _unreachable(server, cause) from cause
    except redis.ResponseError as cause:
        text = str(cause)
        # Inside a script the code is not at the start: "Error running script (…): -OOM command …".
        if isinstance(cause, redis.exceptions.OutOfMemoryError) or "OOM command" in text:
            raise StorageFull(
                f"Redis at {_name(server)} has reached its maxmemory.",
                "Raise maxmemory, or lower replay.capacity_bytes or the adapters kept.",
            ) from cause
        if "MISCONF" in text:
            raise StorageFull(
                f"Redis at {_name(server)} cannot write to its disk: {text}.",
                "Free disk space there; writes resume by themselves.",
            ) from cause
        raise


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Name a full disk.

    Raises:
        StorageFull: no space, quota or file size left for what is written below ``directory``.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"No space to write below {directory}: {cause.strerror}.",
                "Free disk space and run it again.",
            ) from cause
        raise


def _unreachable(server: redis.Redis | str, cause: Exception) -> StorageUnreachable:
    return StorageUnreachable(
        f"Redis at {_name(server)} does not answer: {cause}.",
        "Check that the server runs and that this machine may reach it.",
    )


def _name(server: redis.Redis | str) -> str:
    return without_password(server) if isinstance(server, str) else address_of(server)
