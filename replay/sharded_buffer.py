"""One replay buffer on several Redis servers: each prompt lives on one of them, by its hash.

A prompt's trajectories stay together, so duplicates, groups and the race are those of a single
:class:`~replay.redis_buffer.RedisBuffer`. What concerns all prompts is decided here, from counters read
from every server before the operation: the limiter, the bound on bytes (the oldest version anywhere goes
first) and the choice of prompts, uniform over all of them. Those reads are one cheap script a server.

Given up against one server: an operation that touches several is atomic on each and not over all, and
of operations that run at the same time each decides by what it has read, so a bound may be overshot by as
many operations as are in flight. Adapters and the run's registry stay on ``redis_url``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import redis

from posteriori.config import ReplayConfig
from posteriori.seams import BufferStats, Draw, InsertReceipt, Rejection
from posteriori.trajectory import Trajectory
from replay.admission import (
    INDEX_BYTES_PER_TRAJECTORY,
    checked_payload,
    prompt_key,
    refuse_oversized,
)
from replay.connection import storage_errors
from replay.limits import Flow, why_draw_waits, why_insert_waits
from replay.redis_buffer import RedisBuffer
from replay.scripts import load_script

UNLIMITED = 10**12
"""The limiter of a single server must never speak: it sees a part of the run."""

VERSION_STEP = 2**32
"""Of the scores of the age index, as in ``lua/common.lua``."""

NEWER_THAN_ALL = 2**53


class _Shard:
    """One server: the same keys under three settings of the limiter."""

    def __init__(
        self, client: redis.Redis, run: str, config: ReplayConfig, seed: int | None
    ) -> None:
        unlimited: dict[str, float] = {"samples_per_insert": UNLIMITED, "slack_trajectories": 1}
        self._client = client
        self._namespace = f"posteriori:{{{run}}}:replay"
        self._evict = load_script(client, "common", "evict")
        self.taking = RedisBuffer(
            client, run, config.model_copy(update={"slack_trajectories": UNLIMITED}), seed
        )
        self.giving = RedisBuffer(client, run, config.model_copy(update=unlimited), seed)
        # A server may hold nothing as young as the whole buffer does: a prompt without recent
        # trajectories is drawn uniformly.
        stale: dict[str, float] = {"recent_share": 0.0, "max_staleness_versions": NEWER_THAN_ALL}
        self.giving_stale = RedisBuffer(
            client, run, config.model_copy(update=unlimited | stale), seed
        )

    def oldest_version(self) -> int | None:
        """Version of what would be evicted first; None: nothing is stored."""
        with storage_errors(self._client):
            found = self._client.zrange(f"{self._namespace}:age", 0, 0, withscores=True)
        entries = cast(list[tuple[bytes, float]], found)
        return int(entries[0][1]) // VERSION_STEP if entries else None

    def evict(self, wanted_bytes: int, newest_version: int) -> tuple[int, int]:
        """Remove the oldest up to a version; return bytes and trajectories that went."""
        with storage_errors(self._client):
            freed, removed = self._evict(
                keys=[self._namespace], args=[wanted_bytes, newest_version]
            )
        return freed, removed


class ShardedBuffer:
    """Bounded replay over several servers; see :class:`posteriori.seams.Buffer` and the module.

    Args:
        clients: of the servers, in an order that never changes over the life of a run.
        run: name of the run.
        config: limits, shares and the limiter, of all servers together.
        seed: makes draws reproducible; None: unseeded.
    """

    def __init__(
        self,
        clients: Sequence[redis.Redis],
        run: str,
        config: ReplayConfig,
        seed: int | None = None,
    ) -> None:
        self.config = config
        self._random = np.random.default_rng(seed)
        self._shards = [
            _Shard(client, run, config, None if seed is None else seed + number)
            for number, client in enumerate(clients)
        ]

    def insert(self, trajectories: Sequence[Trajectory]) -> InsertReceipt:
        """Store trajectories, or say why to wait; see :meth:`RedisBuffer.insert`.

        Raises:
            CorruptPayload: one is malformed; none is stored.
            ProducerQuarantined: nothing more is taken from the producer of one of them.
            StorageFull: a server has no room, or these alone exceed ``capacity_bytes``.
            StorageUnreachable: a server does not answer.
        """
        if not trajectories:
            return InsertReceipt()
        incoming = sum(len(checked_payload(t)) + INDEX_BYTES_PER_TRAJECTORY for t in trajectories)
        refuse_oversized(incoming, self.config)
        parts: dict[int, list[Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            parts[self.shard_of(trajectory)].append(trajectory)
        stats = [shard.taking.stats() for shard in self._shards]
        reason = why_insert_waits(_flow(stats), self.config)
        if reason is not None:
            return InsertReceipt(wait=reason)
        held = sum(of_shard.payload_bytes for of_shard in stats)
        evicted = self._make_room(held + incoming - self.config.capacity_bytes)
        receipt = InsertReceipt(evicted=evicted)
        for number, part in sorted(parts.items()):
            taken = self._shards[number].taking.insert(part)
            if taken.wait is not None:
                # That server has no memory left. What others took is merged when it is offered again.
                return InsertReceipt(wait=taken.wait)
            receipt = InsertReceipt(
                receipt.inserted + taken.inserted,
                receipt.merged + taken.merged,
                receipt.dropped + taken.dropped,
                receipt.evicted + taken.evicted,
            )
        return receipt

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        """Draw groups, or say why to wait; see :meth:`RedisBuffer.draw`."""
        config = self.config
        stats = [shard.giving.stats() for shard in self._shards]
        flow = _flow(stats)
        reason = why_draw_waits(flow, config, prompts * per_prompt)
        if reason is not None:
            return Draw([], wait=reason)
        groups: list[list[Trajectory]] = []
        rejected: list[Rejection] = []
        wanted = self._prompts_of_each([of_shard.prompts for of_shard in stats], prompts)
        for shard, of_shard, count in zip(self._shards, stats, wanted, strict=True):
            if count == 0:
                continue
            behind = flow.learner_version - of_shard.newest_version
            stale = behind > config.max_staleness_versions
            drawn = (shard.giving_stale if stale else shard.giving).draw(count, per_prompt)
            groups += drawn.groups
            rejected += drawn.rejected
        if not groups:
            return Draw([], "what was to be drawn has just been evicted", tuple(rejected))
        order = self._random.permutation(len(groups))
        return Draw([groups[k] for k in order], None, tuple(rejected))

    def set_learner_version(self, version: int) -> None:
        """Tell the buffer the learner's newest published version, for the staleness bound."""
        for shard in self._shards:
            shard.taking.set_learner_version(version)

    def discard(self, trajectories: Sequence[Trajectory]) -> int:
        """Remove drawn trajectories that the learner refuses; return how many were still stored."""
        parts: dict[int, list[Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            parts[self.shard_of(trajectory)].append(trajectory)
        return sum(self._shards[number].taking.discard(part) for number, part in parts.items())

    def quarantine(self, producer: str, reason: str) -> None:
        """Take nothing more from a producer; what is stored of it stays."""
        for shard in self._shards:
            shard.taking.quarantine(producer, reason)

    def drop_reward_versions_below(self, version: int) -> int:
        """Remove trajectories whose rewards are void since an M step; return how many."""
        return sum(shard.taking.drop_reward_versions_below(version) for shard in self._shards)

    def stats(self) -> BufferStats:
        """Counters of all servers together."""
        first, *others = (shard.taking.stats() for shard in self._shards)
        for other in others:
            summed = {name: getattr(first, name) + getattr(other, name) for name in _SUMMED}
            latest = {name: max(getattr(first, name), getattr(other, name)) for name in _LATEST}
            first = replace(first, **summed, **latest)
        return first

    def shard_of(self, trajectory: Trajectory) -> int:
        """Number of the server that a trajectory's prompt lives on."""
        return int(prompt_key(trajectory.problem, trajectory.prompt), 16) % len(self._shards)

    def _make_room(self, wanted_bytes: int) -> int:
        """Evict at least so many bytes, oldest version anywhere first; return trajectories evicted."""
        evicted = 0
        while wanted_bytes > 0:
            ages: Mapping[int, int] = {
                number: version
                for number, shard in enumerate(self._shards)
                if (version := shard.oldest_version()) is not None
            }
            if not ages:
                break
            first, *others = sorted(ages, key=lambda number: ages[number])
            newest = ages[others[0]] if others else NEWER_THAN_ALL
            freed, removed = self._shards[first].evict(wanted_bytes, newest)
            wanted_bytes -= freed
            evicted += removed
        return evicted

    def _prompts_of_each(self, available: Sequence[int], prompts: int) -> list[int]:
        """How many of the prompts each server gives, as if they were drawn from all of them at once."""
        total = sum(available)
        rounds, rest = divmod(prompts, total)
        owners = np.repeat(np.arange(len(available)), available)
        chosen = self._random.choice(owners, rest, replace=False)
        more = np.bincount(chosen, minlength=len(available))
        return [rounds * count + int(extra) for count, extra in zip(available, more, strict=True)]


_SUMMED = (
    "trajectories", "prompts", "payload_bytes", "inserted", "merged", "dropped", "evicted", "drawn",
    "corrupt",
)  # fmt: skip
_LATEST = ("newest_version", "learner_version")


def _flow(stats: Sequence[BufferStats]) -> Flow:
    """What the limiter looks at, of all servers together."""
    return Flow(
        received=sum(s.inserted + s.merged + s.dropped for s in stats),
        drawn=sum(s.drawn for s in stats),
        stored=sum(s.trajectories for s in stats),
        newest_version=max(s.newest_version for s in stats),
        learner_version=max(s.learner_version for s in stats),
    )
