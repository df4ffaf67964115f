"""The learner's loop: draw, recompute log q, loss, step, publish, checkpoint. Read it top to bottom.

Left out on purpose: importance ratios (any full-support behaviour has the same optimum), target
networks, several learners. Start it through ``posteriori train RUN.yaml``; in a process of its own
it lives in ``learner/process.py``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from learner import checkpoint as checkpoints
from learner.checkpoint import Checkpoint
from learner.diagnostics import EngineCheck, case_name, step_metrics
from learner.em import VariationalEm
from learner.gradients import StepLosses, accumulate
from learner.intake import Intake
from learner.layers import run_layers_as_told
from learner.log_z import LogZTable
from learner.logbook import Logbook
from learner.schedules import learning_rate, reward_temperature
from learner.team import Team
from posteriori.config import RunConfig
from posteriori.errors import StorageFull, UserError
from posteriori.groups import prepare
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.seams import AdapterStore, Buffer
from posteriori.trajectory import Trajectory

log = logging.getLogger(__name__)

ADAPTERS_KEPT = 8
"""Newest versions kept in the store beside pinned ones: actors lag by one or two."""

Evaluate = Callable[[Policy, int], Mapping[str, float]]
"""(policy, step) → metrics, such as exact TV from an oracle."""


class Learner:
    """Fits q to the posteriors of one run.

    Args:
        config: the resolved run file.
        lm: the policy's base model; stays frozen.
        problems: of the run.
        buffer: where trajectories come from.
        adapters: where versions are published.
        directory: of the run; holds ``checkpoints/`` and ``tensorboard/``.
        reward_adapters: where M steps publish the reward's adapters; needed by a run with ``em``.
        evaluate: called before the first step, every ``evaluate_every_steps`` and after the last.
        rollouts: metrics of the rollout actors, recorded with every step.
        on_metrics: called with (step, metrics) after every step.
        on_event: called with (kind, message) when something notable happens.
        resume: continue from the newest whole checkpoint, if there is one.
        team: the processes that share the work of a step, this being rank 0; None: this one alone.
        device: where the policy goes whose base model the team shares out; else it is where ``lm`` is.

    Raises:
        UserError: LoRA targets do not exist, wandb is missing, or a checkpoint does not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        lm: LanguageModel,
        problems: Sequence[Problem],
        buffer: Buffer,
        adapters: AdapterStore,
        directory: Path,
        *,
        reward_adapters: AdapterStore | None = None,
        evaluate: Evaluate | None = None,
        rollouts: Callable[[], Mapping[str, float]] | None = None,
        on_metrics: Callable[[int, Mapping[str, float]], object] | None = None,
        on_event: Callable[[str, str], object] | None = None,
        resume: bool = False,
        team: Team | None = None,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.settings = config.learner
        self.problems = {problem.name: problem for problem in problems}
        self.buffer = buffer
        self.adapters = adapters
        self.directory = directory
        self._evaluate_policy = evaluate
        self._rollouts = rollouts or (lambda: {})
        self._on_metrics = on_metrics or (lambda step, metrics: None)
        self._on_event = on_event or (lambda kind, message: None)
        self._stop = threading.Event()
        self.intake = Intake(
            config, self.problems, buffer, self._stop, self._on_event, lambda: self.version
        )

        self.policy = Policy(lm, self.settings, config.seed)
        self.team = team
        if team is not None and self.settings.shard_base:
            team.shard(self.policy, device)
        run_layers_as_told(self.policy, self.settings)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=self.settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.settings.weight_decay,
        )
        self.log_z = LogZTable.for_run(problems, self.settings)
        self.em: VariationalEm | None = None
        if config.em is not None:
            assert reward_adapters is not None, "a run with `em` publishes adapters of its reward"
            self.em = VariationalEm(
                config, problems, directory, reward_adapters, self._stop, self._on_event
            )
        self.engine_check = EngineCheck()
        self.step = 0
        # A version is never reused: actors and stored trajectories may know later ones than the store.
        self.version = max(
            adapters.latest(), checkpoints.reserved_version(self.checkpoint_directory)
        )
        self.trajectories = 0
        self.busy_seconds = 0.0
        self._received = 0  # by the buffer when the newest version was published
        self.metrics: dict[str, float] = {}  # the latest value of each
        self._published_step = self._saved_step = self._evaluated_step = -1
        if resume:
            self._resume()
        self._logbook = Logbook(directory, config, self.step)

    # ------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Train until ``steps`` are done or :meth:`stop` is called, and leave a checkpoint.

        Raises:
            WaitTimeout: no trajectories came within ``replay.deadline_seconds``.
            RewardError: a stale trajectory could not be re-scored.
            StorageUnreachable, StorageFull, UserError: what was learned so far is saved first.
        """
        try:
            if self.em is not None:
                self.em.announce()
            # Actors cannot sample on-policy before there is a version.
            self._publish(required=self.adapters.latest() == 0)
            self._evaluate()
            while self.step < self.settings.steps and not self._stop.is_set():
                if self.em is not None and self.em.due(self.step):
                    self._m_step(self.em)
                    continue
                drawn = self.intake.draw()
                if not drawn:
                    break  # stopped while waiting
                began = time.monotonic()
                metrics = self._update(drawn)
                self.step += 1
                if self.step % self.settings.publish_every_steps == 0:
                    self._publish()
                if self.step % self.settings.evaluate_every_steps == 0:
                    self._evaluate()
                if self.step % self.settings.checkpoint_every_steps == 0:
                    self._save()
                self.busy_seconds += time.monotonic() - began
                self._record(metrics | self._totals())
            self._publish(required=True)
            if not self._stop.is_set():
                self._evaluate()
                if self.em is not None:
                    self._record(self.em.bound(self.policy.language_model()))
            self.adapters.pin(self.version)
            self._save(required=True)
        except UserError:
            self._save_what_there_is()
            raise
        finally:
            self._logbook.close()

    def stop(self) -> None:
        """Ask the loop to end after the step it is in; from any thread."""
        self._stop.set()

    @property
    def idle_ratio(self) -> float:
        """Share of the time since the first draw that was spent waiting for trajectories."""
        return self.intake.idle_seconds / max(1e-9, self.intake.idle_seconds + self.busy_seconds)

    # ---------------------------------------------------------------------------------- step

    def _update(self, drawn: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """One optimiser step on the drawn groups; its metrics."""
        began = time.monotonic()
        self.engine_check.compare(self.policy, drawn, self.problems)
        temperature = reward_temperature(self.settings, self.step)
        rate = self._learning_rate()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        result = self._gradient(drawn, temperature)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.clip_norm)
        )
        if not math.isfinite(norm):
            worst = result.trajectories[int(np.nan_to_num(result.loss, nan=np.inf).argmax())]
            raise UserError(
                f"The gradient of step {self.step + 1} is {norm}; the largest loss is that of "
                f"Z = {worst.tokens.tolist()} of {worst.problem!r}, prompt {worst.prompt!r}, with "
                f"log R = {worst.terminal_log_reward:g}. The step was not taken.",
                "Give the reward a finite floor, set learner.huber_delta_nats, or lower "
                "learner.learning_rate; then continue with --resume.",
            )
        self.optimizer.step()
        metrics = step_metrics(result, self.version, self.problems)
        if self.log_z is not None:
            self.log_z.step()
            learned = self.log_z.learned()
            for problem, prompt in {(group[0].problem, group[0].prompt) for group in drawn}:
                name = case_name(self.problems[problem], prompt)
                metrics[f"log_z/{name}"] = learned[problem, prompt]
        self.trajectories += len(result.trajectories)
        metrics |= {
            "gradient_norm": norm,
            "learning_rate": rate,
            "reward_temperature": temperature,
            "tokens": float(result.tokens),
            "step_seconds": time.monotonic() - began,
        }
        if self.engine_check.tokens:
            metrics["log_q_mismatch_mean"] = self.engine_check.mean_nats
            metrics["log_q_mismatch_max"] = self.engine_check.maximum_nats
        return metrics

    def _gradient(self, drawn: Sequence[Sequence[Trajectory]], temperature: float) -> StepLosses:
        """Of the mean loss over all trajectories drawn, by this process or the team."""
        if self.team is not None:
            return self.team.accumulate(
                self.policy, drawn, self.problems, self.settings, temperature, self.log_z
            )
        groups = [prepare(group, self.problems[group[0].problem]) for group in drawn]
        return accumulate(
            self.policy, groups, self.problems, self.settings, temperature, self.log_z
        )

    def _learning_rate(self) -> float:
        """Each E step has its own warm-up and decay: its posterior is a new one."""
        if self.em is None:
            return learning_rate(self.settings, self.step)
        start, length = self.em.e_step(self.step)
        return learning_rate(self.settings.model_copy(update={"steps": length}), self.step - start)

    def _m_step(self, em: VariationalEm) -> None:
        """Fit the reward LM to chains from q; what was scored before is re-scored when it is drawn."""
        self._publish()
        self._evaluate()
        self._save()  # killed from here on, the run does this M step again
        metrics = em.m_step(self.policy.language_model())
        if metrics:
            if self.log_z is not None:
                self.log_z.forget()
            self._record(metrics)
            self._evaluated_step = -1  # it is another posterior now
            self._evaluate()

    def _totals(self) -> dict[str, float]:
        """Counters of the whole run, and how its actors do."""
        return {
            "version": float(self.version),
            "idle_ratio": self.idle_ratio,
            "rejected": float(self.intake.rejected),
            "rescored": float(self.intake.rescored),
            **self._rollouts(),
        }

    def _record(self, metrics: Mapping[str, float]) -> None:
        self.metrics = self.metrics | dict(metrics)
        self._logbook.write(self.step, metrics)
        self._on_metrics(self.step, metrics)

    def _evaluate(self) -> None:
        """Record the caller's metrics as a row of their own, once a step."""
        if self._evaluate_policy is None or self._evaluated_step == self.step:
            return
        began = time.monotonic()
        found = dict(self._evaluate_policy(self.policy, self.step))
        self._evaluated_step = self.step
        found["version"] = float(self.version)
        self._record(found | {"evaluate_seconds": time.monotonic() - began})

    # ----------------------------------------------------------------- versions, checkpoints

    def _publish(self, required: bool = False) -> None:
        """Make the present weights available under a new version, once a step.

        Where there is no room the version before stays in force, unless this one is required.
        """
        if self._published_step == self.step:
            return
        version = max(self.version, self.adapters.latest()) + 1
        try:
            checkpoints.reserve_version(self.checkpoint_directory, version)
            self.adapters.publish(version, self.policy.adapter_files())
            self.version = version
            self.adapters.prune(ADAPTERS_KEPT)
            self.buffer.set_learner_version(version)
            self._received = _received(self.buffer)
        except StorageFull as cause:
            if required:
                raise
            self._complain(
                "publish_failed",
                f"ADAPTER VERSION {version} WAS NOT PUBLISHED ({cause.problem}): version "
                f"{self.adapters.latest()} stays in force.",
            )
            return
        self.engine_check.remember(self.version, self.policy)
        self._published_step = self.step
        self._on_event("published", f"Adapter version {self.version} after step {self.step}.")

    @property
    def checkpoint_directory(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.directory / "checkpoints"

    def _complain(self, kind: str, what: str) -> None:
        log.error("%s", what)
        self._on_event(kind, what)

    def _save(self, required: bool = False) -> None:
        """Write a checkpoint, once a step.

        Where there is no room the one before stays the newest, unless this one is required.
        """
        if self._saved_step == self.step:
            return
        tensors, groups = checkpoints.pack_optimizer("adamw", self.optimizer)
        random_tensors, random_state = checkpoints.random_states()
        if self.log_z is not None:
            tensors["log_z"] = self.log_z.values
        state = {
            "adamw": groups,
            "rng": random_state,
            "counters": {
                "trajectories": self.trajectories,
                "rejected": self.intake.rejected,
                "rescored": self.intake.rescored,
                "received": self._received,
            },
            "log_z_keys": self.log_z.keys if self.log_z is not None else [],
        }
        if self.em is not None:
            state["em"] = {"round": self.em.round, "m_step_due": self.em.due(self.step)}
        checkpoint = Checkpoint(
            self.step,
            self.version,
            self.policy.adapter_files(),
            {**tensors, **random_tensors},
            state,
        )
        try:
            checkpoints.save(self.checkpoint_directory, checkpoint)
        except StorageFull as cause:
            if required:
                raise
            self._complain("checkpoint_failed", cause.problem.replace("No room", "NO ROOM"))
            return
        self._saved_step = self.step
        self._on_event("checkpoint", f"Checkpoint of step {self.step}.")

    def _save_what_there_is(self) -> None:
        """On the way out of a failure: a failing save must not hide the first cause."""
        try:
            if self.step > 0:
                self._save(required=True)
        except UserError as second:
            log.error("%s", second)

    def _resume(self) -> None:
        found = checkpoints.load_latest(
            self.checkpoint_directory,
            on_damage=lambda what: self._on_event("checkpoint_damaged", what),
        )
        if found is None:
            log.warning("No checkpoint in %s: the run starts anew.", self.checkpoint_directory)
            return
        self.policy.load_adapter(found.adapter)
        checkpoints.unpack_optimizer("adamw", self.optimizer, found.tensors, found.state["adamw"])
        if self.log_z is not None:
            self.log_z.restore(found.state["log_z_keys"], found.tensors["log_z"])
        checkpoints.restore_random_states(found.tensors, found.state["rng"])
        counters = found.state["counters"]
        self.trajectories = counters["trajectories"]
        self.intake.rejected, self.intake.rescored = counters["rejected"], counters["rescored"]
        self.step = self._saved_step = found.step
        if self.em is not None:
            done, due = found.state["em"]["round"], found.state["em"]["m_step_due"]
            self.em.resume(done + due)
            if self.em.round > done and self.log_z is not None:
                self.log_z.forget()
        self.version = max(self.version, found.version)
        self._received = _received(self.buffer)
        lost = counters["received"] - self._received
        if lost > 0:
            self._complain(
                "storage_lost",
                f"THE BUFFER LOST AT LEAST {lost} TRAJECTORIES that had arrived before the checkpoint of "
                f"step {found.step}: its host died, or its data were exchanged.",
            )
        self._on_event("resumed", f"Continuing from step {found.step}.")


def _received(buffer: Buffer) -> int:
    """Trajectories that a buffer was ever given."""
    stats = buffer.stats()
    return stats.inserted + stats.merged + stats.dropped
