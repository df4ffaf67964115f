"""The replay buffer that a run file asks for: on its one Redis, or on several."""

from __future__ import annotations

import redis

from posteriori.config import RunConfig
from posteriori.seams import Buffer
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.sharded_buffer import ShardedBuffer


def open_buffer(client: redis.Redis, config: RunConfig, seed: int | None = None) -> Buffer:
    """The buffer of a run.

    Args:
        client: of ``replay.redis_url``, from :func:`replay.connection.connect`.
        config: the resolved run file.
        seed: makes draws reproducible; None: unseeded.

    Raises:
        StorageUnreachable, UserError: a server of ``replay.shard_urls`` cannot be used.
    """
    replay = config.replay
    if not replay.shard_urls:
        return RedisBuffer(client, config.run, replay, seed)
    shards = [connect(url, patience_seconds=replay.deadline_seconds) for url in replay.shard_urls]
    return ShardedBuffer(shards, config.run, replay, seed)
