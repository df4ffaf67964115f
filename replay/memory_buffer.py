"""The replay buffer in one process: the same contract without a server, by the plainest means.

It shares the limiter's conditions with the Redis buffer and nothing else: draws are weighted by
explicit probabilities, indices are sorted lists. It is for tests, notebooks and one-process runs;
all is lost with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori.config import ReplayConfig
from posteriori.seams import BufferStats, Draw, InsertReceipt
from posteriori.trajectory import Trajectory
from replay.admission import (
    INDEX_BYTES_PER_TRAJECTORY,
    checked_payload,
    in_quarantine,
    indexed_version,
    prompt_key,
    refuse_oversized,
    trajectory_id,
)
from replay.limits import Flow, why_draw_waits, why_insert_waits


@dataclass(frozen=True)
class _Stored:
    trajectory: Trajectory
    age: tuple[int, int]
    """(version, arrival): the smallest one is evicted first."""
    size_bytes: int


class MemoryBuffer:
    """In-memory twin of :class:`replay.redis_buffer.RedisBuffer`; safe for threads.

    Args:
        config: limits, shares and the limiter; ``redis_url`` and ``fsync`` are ignored.
        seed: makes draws reproducible; None: unseeded.
    """

    def __init__(self, config: ReplayConfig, seed: int | None = None) -> None:
        self.config = config
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._prompts: dict[str, dict[str, _Stored]] = {}
        self._arrivals = 0
        self._held_bytes = 0
        self._inserted = self._merged = self._dropped = self._evicted = self._drawn = 0
        self._learner_version = 0
        self._corrupt = 0
        self._quarantined: dict[str, str] = {}

    def insert(self, trajectories: Sequence[Trajectory]) -> InsertReceipt:
        """Store trajectories, or say why to wait; see :meth:`RedisBuffer.insert`."""
        if not trajectories:
            return InsertReceipt()
        sizes = [len(checked_payload(t)) + INDEX_BYTES_PER_TRAJECTORY for t in trajectories]
        refuse_oversized(sum(sizes), self.config)
        with self._lock:
            for trajectory in trajectories:
                if trajectory.actor in self._quarantined:
                    raise in_quarantine(trajectory.actor, self._quarantined[trajectory.actor])
            reason = why_insert_waits(self._flow(), self.config)
            if reason is not None:
                return InsertReceipt(wait=reason)
            before = (self._inserted, self._merged, self._dropped, self._evicted)
            for trajectory, size in zip(trajectories, sizes, strict=True):
                self._insert_one(trajectory, size)
            after = (self._inserted, self._merged, self._dropped, self._evicted)
            inserted, merged, dropped, evicted = np.subtract(after, before).tolist()
            return InsertReceipt(inserted, merged, dropped, evicted)

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        """Draw groups, or say why to wait; see :meth:`RedisBuffer.draw`."""
        with self._lock:
            reason = why_draw_waits(self._flow(), self.config, prompts * per_prompt)
            if reason is not None:
                return Draw([], wait=reason)
            names = sorted(self._prompts)
            rounds = -(-prompts // len(names))
            chosen = np.concatenate([self._random.permutation(len(names)) for _ in range(rounds)])
            skipped: dict[str, int] = {}
            groups = [
                self._draw_group(names[index], per_prompt, skipped) for index in chosen[:prompts]
            ]
            self._drawn += prompts * per_prompt
            return Draw(groups)

    def set_learner_version(self, version: int) -> None:
        """Tell the buffer the learner's newest published version, for the staleness bound."""
        with self._lock:
            self._learner_version = version

    def discard(self, trajectories: Sequence[Trajectory]) -> int:
        """Remove drawn trajectories that the learner refuses; return how many were still stored."""
        with self._lock:
            removed = 0
            for trajectory in trajectories:
                prompt = prompt_key(trajectory.problem, trajectory.prompt)
                if trajectory_id(trajectory) in self._prompts.get(prompt, {}):
                    self._remove(prompt, trajectory_id(trajectory))
                    removed += 1
            self._corrupt += removed
            self._drawn -= len(trajectories)
            return removed

    def quarantine(self, producer: str, reason: str) -> None:
        """Take nothing more from a producer; what is stored of it stays."""
        with self._lock:
            self._quarantined[producer] = reason

    def drop_reward_versions_below(self, version: int) -> int:
        """Remove trajectories whose rewards are void since an M step; return how many."""
        with self._lock:
            void = [
                (prompt, id_)
                for prompt, stored in self._prompts.items()
                for id_, entry in stored.items()
                if entry.trajectory.reward_version < version
            ]
            for prompt, id_ in void:
                self._evict(prompt, id_)
            return len(void)

    def stats(self) -> BufferStats:
        """Counters since this buffer was made."""
        with self._lock:
            flow = self._flow()
            return BufferStats(
                trajectories=flow.stored,
                prompts=len(self._prompts),
                payload_bytes=self._held_bytes,
                capacity_bytes=self.config.capacity_bytes,
                inserted=self._inserted,
                merged=self._merged,
                dropped=self._dropped,
                evicted=self._evicted,
                drawn=self._drawn,
                newest_version=flow.newest_version,
                learner_version=self._learner_version,
                corrupt=self._corrupt,
            )

    def _flow(self) -> Flow:
        versions = [s.age[0] for stored in self._prompts.values() for s in stored.values()]
        return Flow(
            received=self._inserted + self._merged + self._dropped,
            drawn=self._drawn,
            stored=len(versions),
            newest_version=max(versions, default=0),
            learner_version=self._learner_version,
        )

    def _insert_one(self, trajectory: Trajectory, size_bytes: int) -> None:
        prompt, id_ = prompt_key(trajectory.problem, trajectory.prompt), trajectory_id(trajectory)
        version = indexed_version(trajectory, self._learner_version)
        known = self._prompts.get(prompt, {}).get(id_)
        if known is not None:
            self._merged += 1
            old = (known.trajectory.reward_version, known.age[0])
            if (trajectory.reward_version, version) >= old:
                self._store(prompt, id_, trajectory, version, size_bytes)
            return
        if not self._beats_near_duplicates(prompt, trajectory):
            self._dropped += 1
            return
        while len(self._prompts.get(prompt, {})) >= self.config.capacity_per_prompt:
            self._evict(prompt, self._by_age(prompt)[0])
        while self._prompts and self._held_bytes + size_bytes > self.config.capacity_bytes:
            entries = (
                (s.age, p, i) for p, stored in self._prompts.items() for i, s in stored.items()
            )
            _, oldest_prompt, oldest = min(entries)
            self._evict(oldest_prompt, oldest)
        self._store(prompt, id_, trajectory, version, size_bytes)
        self._inserted += 1

    def _store(
        self, prompt: str, id_: str, trajectory: Trajectory, version: int, size_bytes: int
    ) -> None:
        stored = self._prompts.setdefault(prompt, {})
        if id_ in stored:
            self._held_bytes -= stored[id_].size_bytes
        self._arrivals += 1
        stored[id_] = _Stored(trajectory, (version, self._arrivals), size_bytes)
        self._held_bytes += size_bytes

    def _evict(self, prompt: str, id_: str) -> None:
        self._remove(prompt, id_)
        self._evicted += 1

    def _remove(self, prompt: str, id_: str) -> None:
        self._held_bytes -= self._prompts[prompt].pop(id_).size_bytes
        if not self._prompts[prompt]:
            del self._prompts[prompt]

    def _by_age(self, prompt: str) -> list[str]:
        """Ids of a prompt, oldest first."""
        stored = self._prompts[prompt]
        return sorted(stored, key=lambda id_: stored[id_].age)

    def _beats_near_duplicates(self, prompt: str, trajectory: Trajectory) -> bool:
        tolerance = self.config.near_duplicate_tolerance
        if tolerance == 0:
            return True
        near = [
            id_
            for id_, entry in self._prompts.get(prompt, {}).items()
            if edit_distance(trajectory.tokens, entry.trajectory.tokens)
            < tolerance * (len(trajectory) + len(entry.trajectory))
        ]
        stored = self._prompts.get(prompt, {})
        best = max((stored[id_].trajectory.terminal_log_reward for id_ in near), default=-np.inf)
        if best >= trajectory.terminal_log_reward:
            return False
        for id_ in near:
            self._evict(prompt, id_)
        return True

    def _draw_group(
        self, prompt: str, per_prompt: int, skipped: dict[str, int]
    ) -> list[Trajectory]:
        stored = self._prompts[prompt]
        ids = self._by_age(prompt)
        oldest_fresh = self._learner_version - self.config.max_staleness_versions
        fresh = [id_ for id_ in reversed(ids) if stored[id_].age[0] >= oldest_fresh]
        recent, prioritised = self.config.recent_share, self.config.prioritised_share
        modes = self._random.random(per_prompt)
        from_recent = int((modes < recent).sum()) if fresh else 0
        from_best = int(((modes >= recent) & (modes < recent + prioritised)).sum())
        skip = skipped.get(prompt, 0)
        skipped[prompt] = skip + from_recent
        chosen = [fresh[(skip + k) % len(fresh)] for k in range(from_recent)]
        log_rewards = np.array([stored[id_].trajectory.terminal_log_reward for id_ in ids])
        weights = np.exp(log_rewards - log_rewards.max())
        picked = self._random.choice(len(ids), from_best, p=weights / weights.sum())
        chosen += [ids[k] for k in picked]
        rest = per_prompt - from_recent - from_best
        picked = self._random.choice(len(ids), rest, replace=len(ids) < rest)
        chosen += [ids[k] for k in picked]
        return [stored[id_].trajectory for id_ in chosen]


def edit_distance(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of a token cost 1 each."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            cost = diagonal if left == right else 1 + min(diagonal, row[j], row[j - 1])
            diagonal, row[j] = row[j], cost
    return row[-1]
