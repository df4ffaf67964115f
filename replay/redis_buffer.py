"""The replay buffer on Redis: one atomic script per operation, one round trip per call."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import redis

from posteriori.config import ReplayConfig
from posteriori.errors import CorruptPayload, StorageFull
from posteriori.seams import BufferStats, Draw, InsertReceipt, Rejection
from posteriori.trajectory import Trajectory
from replay.admission import (
    AGELESS_BEHAVIOURS,
    INDEX_BYTES_PER_TRAJECTORY,
    checked_payload,
    in_quarantine,
    refuse_oversized,
    stored_payload,
    trajectory_id,
)
from replay.connection import storage_errors
from replay.limits import Flow, why_draw_waits, why_insert_waits
from replay.near_duplicates import NearDuplicates, Tokens
from replay.scripts import load_script

PROMPT_CHARACTERS = 16
"""Of an id, see ``trajectory_id``."""


class RedisBuffer:
    """Bounded replay shared by all actors and the learner of one run; see :class:`seams.Buffer`.

    Eviction takes the oldest version first, across prompts for bytes and within the prompt for
    ``capacity_per_prompt``. Trajectories of the behaviours in ``AGELESS_BEHAVIOURS`` are as old as
    their arrival.

    A draw picks different prompts, uniformly among those that have trajectories, and for each group
    a mode by the configured shares:

    - recent: the newest of the prompt, none more than ``max_staleness_versions`` behind the
      learner, over again when they are too few; uniform if the prompt has none so young.
    - prioritised: independent draws with probability ∝ exp(terminal log R), an exponential race.
    - uniform: different ones, or with replacement when there are fewer than asked for.

    Args:
        client: from :func:`replay.connection.connect`.
        run: name of the run; all keys lie under ``posteriori:{run}:replay``.
        config: limits, shares and the limiter.
        seed: makes draws and the race reproducible; None: unseeded.
    """

    def __init__(
        self, client: redis.Redis, run: str, config: ReplayConfig, seed: int | None = None
    ) -> None:
        self.config = config
        self._client = client
        self._namespace = f"posteriori:{{{run}}}:replay"
        self._random = random.Random(seed)
        self._insert = load_script(client, "common", "insert")
        self._draw = load_script(client, "common", "draw")
        self._discard = load_script(client, "common", "discard")
        self._stats = load_script(client, "common", "stats")
        self._drop_rewards = load_script(client, "common", "drop_rewards")
        self._near = NearDuplicates(config.near_duplicate_tolerance, self._stored_tokens)

    def insert(self, trajectories: Sequence[Trajectory]) -> InsertReceipt:
        """Store trajectories, or say why to wait (limiter, memory).

        When Redis itself is out of memory (adapters and events share it) the buffer gives up twice
        the bytes it takes; only when it has nothing to give does the actor wait.

        Raises:
            CorruptPayload: one is malformed; none is stored.
            ProducerQuarantined: nothing more is taken from the producer of one of them.
            StorageFull: the disk of the server is full, or these alone exceed ``capacity_bytes``.
            StorageUnreachable: the server does not answer.
        """
        if not trajectories:
            return InsertReceipt()
        payloads = [checked_payload(trajectory) for trajectory in trajectories]
        incoming_bytes = sum(map(len, payloads)) + INDEX_BYTES_PER_TRAJECTORY * len(payloads)
        refuse_oversized(incoming_bytes, self.config)
        ids = [trajectory_id(trajectory) for trajectory in trajectories]
        encoded: list[bytes | str | int] = []
        for trajectory, id_, payload, near in zip(
            trajectories, ids, payloads, self._near_duplicates(ids, trajectories), strict=True
        ):
            ageless = trajectory.behaviour in AGELESS_BEHAVIOURS
            encoded += [
                id_,
                "arrival" if ageless else trajectory.adapter_version,
                trajectory.reward_version,
                repr(trajectory.terminal_log_reward),
                trajectory.actor,
                "".join(near),
                payload,
            ]
        try:
            return self._insert_within(self.config.capacity_bytes, encoded)
        except StorageFull as full:
            if not isinstance(full.__cause__, redis.ResponseError) or "OOM" not in str(
                full.__cause__
            ):
                raise
            held = self.stats().payload_bytes
            if held < 2 * incoming_bytes:
                return InsertReceipt(wait=full.problem.rstrip("."))
        return self._insert_within(held - incoming_bytes, encoded)

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        """Draw ``prompts`` groups of ``per_prompt`` trajectories, or say why to wait.

        A payload that cannot be read is removed, counted in ``stats().corrupt`` and named in
        ``rejected``, and the draw is made again.

        Raises:
            StorageUnreachable: the server does not answer.
        """
        config = self.config
        rejected: list[Rejection] = []
        while True:
            with storage_errors(self._client):
                status, *reply = self._draw(
                    keys=[self._namespace],
                    args=[
                        self._seed(),
                        prompts,
                        per_prompt,
                        config.recent_share,
                        config.prioritised_share,
                        config.samples_per_insert,
                        config.slack_trajectories,
                        config.max_staleness_versions,
                    ],
                )
            if status == 0:
                reason = why_draw_waits(Flow(*reply), config, prompts * per_prompt)
                assert reason is not None, "draw.lua and limits.py disagree"
                return Draw([], reason, tuple(rejected))
            readable: dict[bytes, Trajectory] = {}  # a draw is with replacement: each is read once
            unreadable: dict[bytes, str] = {}
            for id_, payload in zip(reply[::2], reply[1::2], strict=True):
                if id_ in readable:
                    continue
                try:
                    readable[id_] = stored_payload(id_, payload)
                except CorruptPayload as cause:
                    unreadable[id_] = cause.problem
            if not unreadable:
                drawn = [readable[id_] for id_ in reply[::2]]
                groups = [
                    drawn[start : start + per_prompt] for start in range(0, len(drawn), per_prompt)
                ]
                return Draw(groups, None, tuple(rejected))
            with storage_errors(self._client):
                producers = self._discard(
                    keys=[self._namespace], args=[prompts * per_prompt, *unreadable]
                )
            rejected += [
                Rejection(producer.decode(errors="replace"), reason)
                for producer, reason in zip(producers, unreadable.values(), strict=True)
            ]

    def set_learner_version(self, version: int) -> None:
        """Tell the buffer the learner's newest published version, for the staleness bound."""
        with storage_errors(self._client):
            self._client.hset(f"{self._namespace}:counters", "learner_version", str(version))

    def discard(self, trajectories: Sequence[Trajectory]) -> int:
        """Remove drawn trajectories that the learner refuses; return how many were still stored."""
        ids = dict.fromkeys(trajectory_id(trajectory) for trajectory in trajectories)
        with storage_errors(self._client):
            return len(self._discard(keys=[self._namespace], args=[len(trajectories), *ids]))

    def quarantine(self, producer: str, reason: str) -> None:
        """Take nothing more from a producer; what is stored of it stays."""
        with storage_errors(self._client):
            self._client.hset(f"{self._namespace}:quarantined", producer, reason)

    def drop_reward_versions_below(self, version: int) -> int:
        """Remove trajectories whose rewards are void since an M step; return how many.

        Raises:
            StorageUnreachable: the server does not answer.
        """
        with storage_errors(self._client):
            return int(self._drop_rewards(keys=[self._namespace], args=[version]))

    def stats(self) -> BufferStats:
        """Counters since the run began; they survive a restart of the server."""
        with storage_errors(self._client):
            flow_and_counters = self._stats(keys=[self._namespace])
        flow = Flow(*flow_and_counters[:5])
        prompts, held_bytes, inserted, merged, dropped, evicted, corrupt = flow_and_counters[5:]
        return BufferStats(
            trajectories=flow.stored,
            prompts=prompts,
            payload_bytes=held_bytes,
            capacity_bytes=self.config.capacity_bytes,
            inserted=inserted,
            merged=merged,
            dropped=dropped,
            evicted=evicted,
            drawn=flow.drawn,
            newest_version=flow.newest_version,
            learner_version=flow.learner_version,
            corrupt=corrupt,
        )

    def _insert_within(
        self, capacity_bytes: int, encoded: Sequence[bytes | str | int]
    ) -> InsertReceipt:
        config = self.config
        with storage_errors(self._client):
            status, *reply = self._insert(
                keys=[self._namespace],
                args=[
                    self._seed(),
                    capacity_bytes,
                    config.capacity_per_prompt,
                    config.samples_per_insert,
                    config.slack_trajectories,
                    config.max_staleness_versions,
                    *encoded,
                ],
            )
        if status == -1:
            producer, why = (part.decode(errors="replace") for part in reply)
            raise in_quarantine(producer, why)
        if status == 0:
            reason = why_insert_waits(Flow(*reply), config)
            assert reason is not None, "insert.lua and limits.py disagree"
            return InsertReceipt(wait=reason)
        inserted, merged, dropped, evicted = reply
        return InsertReceipt(inserted, merged, dropped, evicted)

    def _near_duplicates(
        self, ids: Sequence[str], trajectories: Sequence[Trajectory]
    ) -> list[list[str]]:
        """Ids near each of them; none where they are not looked for."""
        found: list[list[str]] = [[] for _ in ids]
        if self.config.near_duplicate_tolerance == 0:
            return found
        places = defaultdict(list)
        for place, id_ in enumerate(ids):
            places[id_[:PROMPT_CHARACTERS]].append(place)
        for prompt, those in places.items():
            with storage_errors(self._client):
                reply = self._client.zrange(f"{self._namespace}:age:{prompt}", 0, -1)
            stored = [id_.decode() for id_ in cast(list[bytes], reply)]
            offered = [(ids[k], trajectories[k].tokens) for k in those]
            for place, near in zip(those, self._near.find(offered, stored), strict=True):
                found[place] = near
        return found

    def _stored_tokens(self, ids: Sequence[str]) -> dict[str, Tokens]:
        """Tokens of those that are stored and can be read."""
        with storage_errors(self._client):
            payloads = self._client.hmget(f"{self._namespace}:payloads", list(ids))
        tokens = {}
        for id_, payload in zip(ids, cast(list[bytes | None], payloads), strict=True):
            try:
                tokens[id_] = stored_payload(id_.encode(), payload).tokens
            except CorruptPayload:
                continue  # the next draw that meets it removes it
        return tokens

    def _seed(self) -> int:
        """For Lua's generator: the server's own state never enters a draw."""
        return self._random.getrandbits(31)
