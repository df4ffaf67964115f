"""The rollout loop: keep the engine full, score what it finishes, put it into the replay buffer.

Nothing here waits for the learner. A group joins the engine as another one finishes; newer adapters
are taken up between two steps; while the buffer has no room, finished groups queue in a bounded
outbox and the requests in flight go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors.adapter_follower import AdapterFollower
from actors.exploration import Exploration, PlannedGroup
from actors.gold import GoldSupply
from actors.outbox import Outbox
from actors.reward_follower import RewardFollower
from actors.score_cache import ScoreCache
from posteriori.config import SamplingConfig
from posteriori.problems import Problem
from posteriori.rewards import draw_marks
from posteriori.seams import AdapterStore, Buffer, Engine, Prompt, Sample
from posteriori.trajectory import Trajectory

POLL_SECONDS = 0.2
"""How often the adapter store is asked for a newer version: one round trip."""

HEARTBEAT_SECONDS = 2.0

DRAIN_SECONDS = 15.0
"""An actor that is scaled away finishes what it has begun, for no longer than this."""

Heartbeat = Mapping[str, float | int | str]


@dataclass
class RolloutCounts:
    """What an actor did since it began, and where its seconds went."""

    groups: int = 0
    samples: int = 0
    tokens: int = 0
    tool_calls: int = 0
    tool_failures: int = 0
    adapters_loaded: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("sampling", "scoring", "inserting", "loading", "waiting"), 0.0
        )
    )

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Charge the seconds of a block to ``what``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begin

    @property
    def idle_ratio(self) -> float:
        """Share of the accounted time spent waiting for room in the buffer."""
        total = sum(self.seconds.values())
        return self.seconds["waiting"] / total if total else 0.0


class RolloutWorker:
    """Samples, scores and stores groups until it is told to stop.

    Args:
        actor_id: unique among all actors of a run, of all its restarts too.
        engine: idle, with ``config.vllm.max_adapters`` adapter slots.
        buffer: where trajectories go.
        adapters: where new versions come from.
        problems: what is sampled.
        config: group size, groups in flight and behaviour shares.
        seed: of all choices and samples of this actor.
        adapter_directory: the actor's own; adapters are written below it.
        deadline_seconds: how long the buffer may refuse everything before that is an error.
        poll_seconds: how often the adapter store is asked for a newer version; 0: at every turn.
        heartbeat: called every ``HEARTBEAT_SECONDS`` with :meth:`status`.
        gold: whether the problems' gold Z's are this worker's to store; None: they are.
        rewards: keeps log R at the newest M step; None: nothing changes it, or somebody else does.
        on_event: called with (kind, message) for malformed groups and adapters that are refused.
    """

    def __init__(
        self,
        actor_id: str,
        engine: Engine,
        buffer: Buffer,
        adapters: AdapterStore,
        problems: Sequence[Problem],
        config: SamplingConfig,
        *,
        seed: int,
        adapter_directory: Path,
        deadline_seconds: float = 120.0,
        poll_seconds: float = POLL_SECONDS,
        heartbeat: Callable[[Heartbeat], None] | None = None,
        gold: GoldSupply | None = None,
        rewards: RewardFollower | None = None,
        on_event: Callable[[str, str], object] | None = None,
    ) -> None:
        self._actor_id = actor_id
        self._engine = engine
        self._config = config
        self._exploration = Exploration(actor_id, problems, config, seed)
        self._follower = AdapterFollower(
            engine, adapters, adapter_directory, on_event, config.vllm.max_adapters
        )
        self._outbox = Outbox(buffer, config.groups_in_flight, deadline_seconds, on_event=on_event)
        self._poll_seconds = poll_seconds
        self._heartbeat = heartbeat
        self._gold = gold or GoldSupply(problems, claim=lambda: "yours", settle=lambda: None)
        self._rewards = rewards
        self._scores = ScoreCache()
        self._planned: dict[str, PlannedGroup] = {}
        self._counts = RolloutCounts()
        self._begin = time.monotonic()
        self._next_poll = self._next_heartbeat = 0.0
        self._last = (self._begin, 0, 0)
        self._rates = (0.0, 0.0)
        self._newest: dict[str, tuple[PlannedGroup, list[Sample]]] = {}
        self._marked: dict[str, float] = {}
        self._draining = False

    def run(self, stop: Callable[[], bool], hurry: Callable[[], bool] = lambda: True) -> None:
        """Turn until ``stop`` says True, then store what is finished. May be called again.

        Unless ``hurry`` says True the groups in flight are finished first, and what the buffer does not
        take yet is waited for; ``DRAIN_SECONDS`` later what is left is dropped all the same.

        Raises:
            RewardError: a reward broke its contract; names problem, prompt and Z.
            WaitTimeout: the buffer took nothing for ``deadline_seconds``.
            UserError: an adapter cannot be served.
            CorruptPayload, ProducerQuarantined: too many of its trajectories are malformed.
        """
        self._draining = False
        try:
            while not stop():
                self.turn()
            self._draining = True
            deadline = time.monotonic() + DRAIN_SECONDS
            while (self._planned or self._outbox) and not hurry() and time.monotonic() < deadline:
                self.turn()
        finally:
            for request_id in self._planned:
                self._engine.cancel(request_id)
            self._planned.clear()
        self._outbox.flush()
        self._beat()

    def turn(self) -> None:
        """One engine step with everything around it; raises like :meth:`run`."""
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + self._poll_seconds
            in_use = {planned.request.adapter_version for planned in self._planned.values()}
            with self._counts.timing("loading"):
                self._counts.adapters_loaded += self._follower.poll(in_use)
                if self._rewards is not None:
                    self._rewards.poll()
            if self._gold.waiting:
                with self._counts.timing("scoring"):
                    for problem, prompt, sequences in self._gold.take():
                        self.store_gold(problem, prompt, sequences)
        with self._counts.timing("sampling"):
            while not self._draining and self._has_room:
                planned = self._exploration.next(self._follower.version)
                self._planned[planned.request.id] = planned
                self._engine.submit(planned.request)
            finished = self._engine.step()
        for group in finished:
            planned = self._planned.pop(group.request.id)
            with self._counts.timing("scoring"):
                self._outbox.put(self._trajectories(planned, group.samples))
            if planned.request.behaviour.name == "policy":
                self._newest[planned.problem.name] = (planned, group.samples)
            self._counts.groups += 1
            self._counts.samples += len(group.samples)
            self._counts.tokens += sum(len(sample.tokens) for sample in group.samples)
            spans = [span for sample in group.samples for span in sample.spans]
            self._counts.tool_calls += len(spans)
            self._counts.tool_failures += sum(span.failed for span in spans)
        with self._counts.timing("inserting"):
            self._outbox.flush()
        if not len(self._outbox):
            self._gold.stored()
        if not self._planned and (self._draining or self._outbox.full):
            with self._counts.timing("waiting"):
                time.sleep(self._outbox.pause_seconds)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_SECONDS
            self._beat()

    @property
    def _has_room(self) -> bool:
        """For another group."""
        return len(self._planned) < self._config.groups_in_flight and not self._outbox.full

    def store_gold(
        self, problem: Problem, prompt: Prompt, sequences: Sequence[Sequence[int]]
    ) -> None:
        """Queue given Z's as trajectories, such as reference answers.

        In a tree of strings every string is a valid trajectory. Its behaviour is the one that
        writes just this Z: log q of its tokens is 0.

        Args:
            problem: of the Z's.
            prompt: X.
            sequences: the policy's tokens of each Z; what a tool answers is put in here.
        """
        moves = problem.moves(prompt)
        samples = []
        for sequence in sequences:
            tokens = moves.execute(sequence)
            log_q_stop = np.full(len(tokens) + 1, -np.inf, np.float32)
            log_q_stop[-1] = 0.0
            log_q = np.zeros(len(tokens), np.float32)
            samples.append(Sample(tokens, log_q, log_q_stop, moves.spans(tokens)))
        group = f"{self._actor_id}-gold-{prompt.id}"
        self._outbox.put(self._score(problem, prompt, samples, group, "gold", 0))

    @property
    def counts(self) -> RolloutCounts:
        """What this worker did so far."""
        return self._counts

    def status(self) -> Heartbeat:
        """Counters, rates since the last heartbeat, and what the actor waits for.

        Where a reward marks draws, such as those with a clipped likelihood, also ``clipped/PROBLEM``: the
        share of them in the newest on-policy group.
        """
        counts, outbox = self._counts, self._outbox
        return {
            "pid": os.getpid(),
            "version": self._follower.version,
            "groups": counts.groups,
            "samples": counts.samples,
            "tokens": counts.tokens,
            "tool_calls": counts.tool_calls,
            "tool_failures": counts.tool_failures,
            "samples_per_second": round(self._rates[0], 3),
            "tokens_per_second": round(self._rates[1], 3),
            "inserted": outbox.counts.inserted,
            "merged": outbox.counts.merged,
            "dropped": outbox.counts.dropped,
            "rejected": outbox.counts.rejected,
            "adapters_loaded": counts.adapters_loaded,
            "scores_found": self._scores.found,
            "scores_computed": self._scores.computed,
            "groups_in_flight": len(self._planned),
            "groups_in_outbox": len(outbox),
            "uptime_seconds": round(time.monotonic() - self._begin, 3),
            **{f"{what}_seconds": round(spent, 3) for what, spent in counts.seconds.items()},
            "idle_ratio": round(counts.idle_ratio, 4),
            "waiting_for": outbox.reason or "",
            **self._marked,
        }

    def _beat(self) -> None:
        then, samples, tokens = self._last
        now = time.monotonic()
        seconds = max(now - then, 1e-9)
        self._last = (now, self._counts.samples, self._counts.tokens)
        self._rates = (
            (self._counts.samples - samples) / seconds,
            (self._counts.tokens - tokens) / seconds,
        )
        for planned, samples_of_group in self._newest.values():
            tokens_of_group = [sample.tokens for sample in samples_of_group]
            marks = draw_marks(planned.problem.reward, planned.prompt, tokens_of_group)
            for name, mark in marks.items():
                self._marked[f"{name}/{planned.problem.name}"] = float(mark.mean())
        self._newest.clear()
        if self._heartbeat is not None:
            self._heartbeat(self.status())

    def _trajectories(self, planned: PlannedGroup, samples: list[Sample]) -> list[Trajectory]:
        request = planned.request
        return self._score(
            planned.problem,
            planned.prompt,
            samples,
            request.id,
            request.behaviour.name,
            request.adapter_version,
        )

    def _score(
        self,
        problem: Problem,
        prompt: Prompt,
        samples: Sequence[Sample],
        group: str,
        behaviour: str,
        adapter_version: int,
    ) -> list[Trajectory]:
        """Trajectories of one group: Z's that were scored before are not scored again."""
        moves = problem.moves(prompt)
        distinct = list(dict.fromkeys(tuple(sample.tokens) for sample in samples))
        reward_version, scores = self._scores.log_rewards(problem, prompt, distinct)
        return [
            Trajectory(
                problem=problem.name,
                prompt=prompt.id,
                group=group,
                actor=self._actor_id,
                behaviour=behaviour,
                adapter_version=adapter_version,
                reward_version=reward_version,
                tokens=np.asarray(sample.tokens, np.int32),
                action=sample.action,
                log_q=sample.log_q,
                log_q_stop=sample.log_q_stop,
                log_reward=scores[tuple(sample.tokens)],
                stop_legal=moves.stop_legal(sample.tokens, sample.action),
            )
            for sample in samples
        ]
