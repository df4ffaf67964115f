"""What the replay buffer costs over Redis itself: inserts and draws ÷ pipelines that move the same bytes; memory.

    python -m benchmarks.replay_buffer

Both sides are one client on an embedded server with an append-only file. Raw is redis-py's pipeline, `SET` of the
payloads of a group of 16, `GET` of the 256 payloads of a draw of 8 × 32: no duplicates found, no bound kept, no
race, no check of what is read. A ratio of rates is raw seconds ÷ the buffer's seconds. With ``near duplicates`` every
offered trajectory is compared with the 256 that its prompt holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import redis

from benchmarks.measure import Report, Row, Target, in_turn, main
from posteriori.config import ReplayConfig
from posteriori.trajectory import Trajectory, encode
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer

GROUP = 16
GROUPS_A_CALL = 20
PROMPTS = 64
DRAW = (8, 32)
PAIRS = 15
SIZES_TOKENS = {"220 B": 8, "4 kB": 216, "4.1 kB": 225}
"""4.1 kB is just above one of the allocator's sizes, the worst case for memory."""
TARGET_SIZES = ("4 kB", "4.1 kB")
NEAR_TOKENS, NEAR_STORED, NEAR_TOLERANCE = 50, 256, 0.1
CAPACITY_BYTES = 2**29


class Groups:
    """An endless supply of groups of distinct random trajectories, made outside what is timed."""

    def __init__(self, tokens: int, prompts: int = PROMPTS) -> None:
        self._tokens, self._prompts = tokens, prompts
        self._random = np.random.default_rng(0)
        self._numbers = itertools.count()

    def make(self, count: int) -> list[list[Trajectory]]:
        """``count`` groups of one prompt each."""
        return [[self._trajectory(number) for _ in range(GROUP)] for number in self._next(count)]

    def _next(self, count: int) -> list[int]:
        return [next(self._numbers) for _ in range(count)]

    def _trajectory(self, number: int) -> Trajectory:
        n = self._tokens
        return Trajectory(
            problem="benchmark",
            prompt=str(number % self._prompts),
            group=f"actor-0-{number}",
            actor="actor-0",
            behaviour="policy",
            adapter_version=number // 64,
            reward_version=0,
            tokens=self._random.integers(0, 4096, n, dtype=np.int32),
            action=np.ones(n, dtype=np.bool_),
            log_q=np.full(n, -3.0, dtype=np.float32),
            log_q_stop=np.full(n + 1, -2.0, dtype=np.float32),
            log_reward=self._random.normal(-20, 2, n + 1).astype(np.float32),
            stop_legal=np.ones(n + 1, dtype=np.bool_),
        )


def buffer_on(client: redis.Redis, name: str, **changes: float) -> RedisBuffer:
    """A buffer whose limiter never waits."""
    settings = {"capacity_bytes": CAPACITY_BYTES, "slack_trajectories": 10**9, **changes}
    return RedisBuffer(client, name, ReplayConfig.model_validate(settings), seed=0)


def put(client: redis.Redis, keys: list[str], payloads: list[bytes]) -> None:
    """One pipeline of SET."""
    pipeline = client.pipeline(transaction=False)
    for key, payload in zip(keys, payloads, strict=True):
        pipeline.set(key, payload)
    pipeline.execute()


def rates(client: redis.Redis, size: str, pairs: int) -> list[Row]:
    """Inserts and draws of one size of trajectory."""
    groups = Groups(SIZES_TOKENS[size])
    batches = [groups.make(GROUPS_A_CALL) for _ in range(pairs + 1)]
    encoded = [[[encode(t) for t in group] for group in batch] for batch in batches]
    names = [[str(k) for k in range(GROUP * i, GROUP * (i + 1))] for i in range(GROUPS_A_CALL)]
    buffer = buffer_on(client, f"rates-{size}")
    target = Target(0.3, "at least") if size in TARGET_SIZES else None

    def each(work: Callable[[int], object]) -> Callable[[], object]:
        """A call that does the next batch's work."""
        numbers = itertools.count()
        return lambda: work(next(numbers))

    def put_batch(number: int) -> None:
        for k, payloads in enumerate(encoded[number]):
            put(client, [f"raw:{size}:{number}:{name}" for name in names[k]], payloads)

    def insert_batch(number: int) -> None:
        for group in batches[number]:
            buffer.insert(group)

    inserts = in_turn(
        f"inserts/s ÷ raw pipelined, {size}",
        each(put_batch),
        each(insert_batch),
        pairs=pairs,
        target=target,
    )
    random = np.random.default_rng(1)
    drawn = DRAW[0] * DRAW[1]

    def get() -> None:
        pipeline = client.pipeline(transaction=False)
        for number, k in random.integers(0, (pairs, GROUPS_A_CALL * GROUP), (drawn, 2)):
            pipeline.get(f"raw:{size}:{number}:{k}")
        assert None not in pipeline.execute()

    draws = in_turn(
        f"draws/s ÷ raw pipelined, {size}",
        get,
        lambda: buffer.draw(*DRAW),
        pairs=pairs,
        target=target,
        calls=(4, 4),
    )
    return [inserts, draws]


def memory(client: redis.Redis, size: str, trajectories: int) -> Row:
    """The server's memory for each byte of payload."""
    client.flushall()
    groups = Groups(SIZES_TOKENS[size]).make(trajectories // GROUP)
    buffer = buffer_on(client, "memory")
    buffer.insert(groups[0])  # scripts and counters are there once
    before = client.info("memory")["used_memory"]
    for group in groups[1:]:
        buffer.insert(group)
    held = client.info("memory")["used_memory"] - before
    payloads = sum(len(encode(t)) for group in groups[1:] for t in group)
    ratio = held / payloads
    target = Target(1.4) if size in TARGET_SIZES else None
    return Row(f"memory ÷ payload, {size}", [ratio], target, held, payloads, "bytes")


def near_duplicates(client: redis.Redis, pairs: int) -> Row:
    """Inserts that look for near duplicates among a full prompt ÷ inserts that do not."""
    groups = Groups(NEAR_TOKENS, prompts=1)
    buffers = [
        buffer_on(client, f"near-{tolerance}", **settings)
        for tolerance in (0.0, NEAR_TOLERANCE)
        for settings in [
            {"near_duplicate_tolerance": tolerance, "capacity_per_prompt": NEAR_STORED}
        ]
    ]
    for group in groups.make(NEAR_STORED // GROUP):
        for buffer in buffers:
            buffer.insert(group)

    def inserting(buffer: RedisBuffer) -> Callable[[], object]:
        ready = iter(groups.make(4 * (pairs + 1)))
        return lambda: buffer.insert(next(ready))

    plain, near = (inserting(buffer) for buffer in buffers)
    name = f"inserts/s with near duplicates ÷ without, {NEAR_STORED} stored of {NEAR_TOKENS} tokens"
    return in_turn(name, plain, near, pairs=pairs, calls=(4, 4))


def measure(quick: bool) -> Report:
    """See the module."""
    pairs = 2 if quick else PAIRS
    rows = []
    with (
        TemporaryDirectory(prefix="replay-buffer-") as parent,
        EmbeddedServer(Path(parent) / "redis", CAPACITY_BYTES) as server,
    ):
        client = connect(server.url)
        for size in SIZES_TOKENS:
            rows += rates(client, size, pairs)
            client.flushall()
        rows += [memory(client, size, 320 if quick else 8000) for size in SIZES_TOKENS]
        rows.append(near_duplicates(client, pairs))
        version = str(client.info("server")["redis_version"])
    settings = {
        "group": GROUP,
        "draw": list(DRAW),
        "prompts": PROMPTS,
        "payload bytes": {
            size: len(encode(Groups(tokens).make(1)[0][0])) for size, tokens in SIZES_TOKENS.items()
        },
        "redis-server": version,
    }
    return Report(rows, settings)


if __name__ == "__main__":
    main("replay_buffer", __doc__ or "", measure)
