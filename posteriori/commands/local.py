"""A whole training run in this process: no Ray, no Redis, no vLLM, and the same samples every time.

The rollout worker, the learner and everything they exchange are those of a cluster run; the engine
is the transformers one, buffer and adapter store are the in-memory twins. The two loops take turns
on one thread: before the learner draws, the worker samples what the draw uses up. For experiments,
benchmarks and notebooks; ``posteriori train`` is what scales.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.engines import start_engine
from actors.rollout import RolloutCounts, RolloutWorker
from posteriori.commands.adapters import export, export_reward
from posteriori.commands.loaded_run import LoadedRun
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import ReplayConfig, RunConfig
from posteriori.fitted_reward import store_name
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import evaluator
from posteriori.policy import Policy
from posteriori.problems import Problem, build_problems
from posteriori.seams import Draw
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer

ACTOR = "local"


@dataclass(frozen=True)
class LocalRun:
    """A finished run and what it took.

    Attributes:
        run: config, base LM, problems and the newest adapter; ``run.policy()`` is the sampler.
        history: metrics of every learner step, ``step`` included.
        trajectories: sampled and scored: the number of reward evaluations is at most this times
            the prefixes of each.
        counts: groups, samples, tokens and seconds of the sampling side.
        seconds: of wall clock, all in all.
    """

    run: LoadedRun
    history: list[dict[str, float]]
    trajectories: int
    counts: RolloutCounts
    seconds: float

    def policy(self) -> LanguageModel:
        """The trained sampler as a language model, for exact log q."""
        return self.run.policy()


class FedBuffer(MemoryBuffer):
    """A replay buffer that has the worker sample until a draw leaves ``samples_per_insert`` kept."""

    def __init__(self, config: ReplayConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.feed: Callable[[], object] | None = None

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        """As :meth:`MemoryBuffer.draw`, after enough has been sampled."""
        assert self.feed is not None
        while True:
            stats = self.stats()
            received = stats.inserted + stats.merged + stats.dropped
            used_up = stats.drawn + prompts * per_prompt
            if received * self.config.samples_per_insert >= used_up:
                drawn = super().draw(prompts, per_prompt)
                if drawn.wait is None:
                    return drawn
            self.feed()


def train_locally(
    config: RunConfig,
    problems: Sequence[Problem] | None = None,
    *,
    directory: Path | None = None,
    lm: LanguageModel | None = None,
    on_metrics: Callable[[int, Mapping[str, float]], object] | None = None,
    evaluate: Callable[[Policy, int], Mapping[str, float]] | None = None,
) -> LocalRun:
    """Train a run to its end.

    Args:
        config: the run file; its engine, actors and Redis are not used.
        problems: built by hand, as long as their names are those a reader of ``run.yaml`` expects;
            None: those of the run file.
        directory: of the run, new; None: ``config.directory``.
        lm: the base model, if it is loaded already; the engine goes where it is.
        on_metrics: called with (step, metrics) after every step.
        evaluate: (policy, step) → metrics, every ``learner.evaluate_every_steps``; None: the distances
            from exact posteriors.

    Raises:
        UserError: the run file cannot work, the directory holds a run, or a component failed.
    """
    from learner.learner import Learner
    from posteriori.device import resolve_device

    began = time.monotonic()
    sampling = config.sampling.model_copy(update={"engine": "transformers"})
    config = config.model_copy(update={"sampling": sampling})
    if lm is None:
        device = resolve_device(config.learner.device)
        lm = LanguageModel.load(config.model, dtype=config.dtype, device=device)
    problems = list(problems) if problems is not None else build_problems(config, lm)
    home = RunDirectory(directory or config.directory)
    home.create(config, lm)
    log = _History(on_metrics)
    buffer = FedBuffer(config.replay, config.seed)
    adapters = MemoryAdapters(config.run)
    rewards = MemoryAdapters(store_name(config.run))
    engine = start_engine(config, problems, config.seed, str(lm.model.device))
    try:
        with TemporaryDirectory(prefix=".adapters-", dir=home.path) as scratch:
            worker = RolloutWorker(
                ACTOR,
                engine,
                buffer,
                adapters,
                problems,
                sampling,
                seed=config.seed,
                adapter_directory=Path(scratch),
                deadline_seconds=config.replay.deadline_seconds,
                poll_seconds=0.0,
            )
            buffer.feed = worker.turn
            learner = Learner(
                config,
                lm,
                problems,
                buffer,
                adapters,
                home.path,
                # The worker scores by the same problems: it sees M steps without following a store.
                reward_adapters=rewards,
                evaluate=evaluate or evaluator(problems, config.oracle_max_strings, home.oracle),
                on_metrics=log.record,
            )
            learner.run()
    finally:
        engine.close()
    export(adapters, adapters.latest(), home.adapter)
    export_reward(rewards, home)
    run = LoadedRun(home, config, lm, problems)
    counts = worker.counts
    return LocalRun(run, log.rows, counts.samples, counts, time.monotonic() - began)


@dataclass
class _History:
    on_metrics: Callable[[int, Mapping[str, float]], object] | None
    rows: list[dict[str, float]] = field(default_factory=list)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": float(step), **metrics})
        if self.on_metrics is not None:
            self.on_metrics(step, metrics)
