"""Where the learner's groups come from: waits with a deadline, and nothing unsound gets through."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from posteriori.config import RunConfig
from posteriori.errors import CorruptPayload, StorageFull, WaitTimeout
from posteriori.groups import check
from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Buffer, Draw
from posteriori.trajectory import Trajectory

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
"""Pause between two draws while the buffer says to wait."""

QUARANTINE_AFTER_REJECTIONS = 3
"""Trajectories of one producer in a row: one may be a flipped bit, three are a broken producer."""

SMALLEST_GROUP = 2
"""A trajectory alone says nothing about log Z of its group."""


class Intake:
    """Draws the groups of a step from the buffer.

    Args:
        config: step size and deadline.
        problems: by name.
        buffer: of the run.
        stopped: ends a wait when set.
        on_event: called with (kind, message) when a trajectory is ``rejected``, and when its producer is
            ``quarantined``.
        newest_version: of the adapters that this run has published.

    Attributes:
        startup_seconds: waited for the first groups, while engines start.
        idle_seconds: spent on drawing and waiting since then.
        rejected: trajectories refused.
        rescored: trajectories whose stored reward was of an older version.
    """

    def __init__(
        self,
        config: RunConfig,
        problems: Mapping[str, Problem],
        buffer: Buffer,
        stopped: threading.Event,
        on_event: Callable[[str, str], object],
        newest_version: Callable[[], int],
    ) -> None:
        self._settings = config.learner
        self._deadline_seconds = config.replay.deadline_seconds
        self._problems = problems
        self._buffer = buffer
        self._stopped = stopped
        self._on_event = on_event
        self._newest_version = newest_version
        self._started = False
        self.startup_seconds = 0.0
        self.idle_seconds = 0.0
        self.rejected = 0
        self.rescored = 0
        self._in_a_row: dict[str, int] = {}

    def draw(self) -> list[list[Trajectory]]:
        """The groups of one step; empty if stopped while waiting.

        Raises:
            WaitTimeout: names what was waited for and why it did not come.
            RewardError: a stale trajectory cannot be re-scored.
            StorageUnreachable: the buffer's server does not answer.
        """
        began = time.monotonic()
        try:
            return self._wait_for_groups(began)
        finally:
            waited = time.monotonic() - began
            if self._started:
                self.idle_seconds += waited
            else:
                self.startup_seconds, self._started = waited, True

    def _wait_for_groups(self, began: float) -> list[list[Trajectory]]:
        while not self._stopped.is_set():
            drawn = self._draw_or_wait()
            for rejection in drawn.rejected:
                self._reject(rejection.producer, rejection.reason)
            groups = self._admit(drawn.groups)
            if groups:
                return groups
            reason = drawn.wait or "every trajectory drawn was refused, see the log"
            if time.monotonic() - began > self._deadline_seconds:
                raise WaitTimeout(
                    f"The learner has waited {self._deadline_seconds:g} s for trajectories: {reason}.",
                    "Check that rollout actors run and what their logs say, or raise "
                    "replay.deadline_seconds; then continue with --resume.",
                )
            self._stopped.wait(POLL_SECONDS)
        return []

    def _admit(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[Trajectory]]:
        """Drop what is not of this run, naming its producer; re-score what has a stale reward."""
        admitted = []
        refused = []
        newest_version = self._newest_version()
        for group in groups:
            sound = []
            for trajectory in group:
                try:
                    check(trajectory, self._problems, newest_version)
                except CorruptPayload as cause:
                    refused.append(trajectory)
                    self._reject(trajectory.actor, str(cause))
                    continue
                self._in_a_row.pop(trajectory.actor, None)
                sound.append(trajectory)
            if len(sound) >= SMALLEST_GROUP:
                admitted.append(self._with_current_reward(sound))
        if refused:  # or they would be drawn again and again
            self._buffer.discard(refused)
        return admitted

    def _draw_or_wait(self) -> Draw:
        settings = self._settings
        try:
            return self._buffer.draw(settings.prompts_per_step, settings.trajectories_per_prompt)
        except StorageFull as cause:  # a draw is counted, which is a write
            return Draw([], wait=cause.problem.rstrip("."))

    def _reject(self, producer: str, reason: str) -> None:
        self.rejected += 1
        what = f"Rejected, from producer {producer or 'unknown'}: {reason}"
        log.warning("%s", what)
        self._on_event("rejected", what)
        in_a_row = self._in_a_row[producer] = self._in_a_row.get(producer, 0) + 1
        if producer and in_a_row == QUARANTINE_AFTER_REJECTIONS:
            why = f"{in_a_row} trajectories in a row were rejected; the last: {reason.rstrip('.')}"
            self._buffer.quarantine(producer, why)
            self._on_event("quarantined", f"Producer {producer} is shut out: {why}.")

    def _with_current_reward(self, group: Sequence[Trajectory]) -> list[Trajectory]:
        """The group scored by the reward in force: after an M step stored rewards are void."""
        problem = self._problems[group[0].problem]
        version = problem.reward.version
        stale = list(
            dict.fromkeys(tuple(t.tokens.tolist()) for t in group if t.reward_version != version)
        )
        if not stale:
            return list(group)
        prompt = problem.by_id[group[0].prompt]
        scores = dict(
            zip(
                stale,
                checked_log_reward(
                    problem.reward, problem.name, prompt, problem.moves(prompt), stale
                ),
                strict=True,
            )
        )
        self.rescored += sum(t.reward_version != version for t in group)
        return [
            t
            if t.reward_version == version
            else replace(
                t,
                log_reward=np.asarray(scores[tuple(t.tokens.tolist())], dtype=np.float32),
                reward_version=version,
            )
            for t in group
        ]
