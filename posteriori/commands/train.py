"""``posteriori train``: start what a run needs, watch it, and end with a report.

Redis (embedded, in the run's directory) ← rollout actors (Ray, vLLM) and learner (Ray, its own
process). This process only watches: killing it stops the run, and ``--resume`` goes on from the last
checkpoint with the buffer as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from rich.console import Console

from posteriori import config as run_file
from posteriori.commands import report as report_writer
from posteriori.commands.adapters import export, export_reward, use_exported_reward
from posteriori.commands.assessment import WeightCheck, assess, check_weights
from posteriori.commands.cluster import check_shared_directory, cluster, learner_options
from posteriori.commands.interrupts import Interrupts
from posteriori.commands.lease import held
from posteriori.commands.loaded_run import POLICY_VERSION, LoadedRun
from posteriori.commands.progress import ProgressView
from posteriori.commands.report import RunSummary
from posteriori.commands.run_directory import RunDirectory
from posteriori.commands.watch import UNDER_TRAINED_TV, Watch
from posteriori.config import RunConfig
from posteriori.errors import StorageUnreachable
from posteriori.fitted_reward import FittedReward, store_name
from posteriori.freed_memory import return_freed_memory
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import PROMPTS_PER_PROBLEM, Case, exact_cases
from posteriori.problems import Problem, build_problems
from posteriori.seams import BufferStats, Engine

DRAWS = 4096
WEIGHT_CHECK_DRAWS = 16_384


def dry_run(config: RunConfig, console: Console) -> None:
    """Validate everything and print the resolved run file.

    Raises:
        UserError: whatever would stop the run at its start.
    """
    _, problems = _validated(config)
    console.print(run_file.dump(_shown(config)), highlight=False, markup=False)
    for problem in problems:
        counts = [problem.moves(prompt).count() for prompt in problem.prompts[:PROMPTS_PER_PROBLEM]]
        oracle = "exact oracle" if max(counts) <= config.oracle_max_strings else "no oracle"
        console.print(
            f"# {problem.name}: {len(problem.prompts)} prompts, {len(problem.test_prompts)} held out, "
            f"{sum(map(len, problem.gold.values()))} gold Z, up to {max(counts):,} legal Z, {oracle}",
            highlight=False,
        )


def _shown(config: RunConfig) -> RunConfig:
    """The run file without credentials."""
    from replay.address import without_password

    replay = config.replay
    shown = {
        "redis_url": without_password(replay.redis_url),
        "shard_urls": tuple(map(without_password, replay.shard_urls)),
    }
    return config.model_copy(update={"replay": replay.model_copy(update=shown)})


def start(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run a new run to its end; return its JSON report.

    Raises:
        UserError: the run file cannot work, or a component failed; names the first cause.
    """
    lm, problems = _validated(config)
    directory = RunDirectory(config.directory)
    directory.refuse_existing()
    with cluster(config) as place:
        directory.create(config, lm)
        return _run(directory, config, lm, problems, console, place, resuming=False)


def resume(config: RunConfig, console: Console) -> dict[str, Any]:
    """Continue a run from its last checkpoint, with its buffer.

    Settings that do not change what is learned may differ from those the run was started with.

    Raises:
        UserError: no such run, other weights, problems or adapter shape; or like ``start``.
    """
    directory = RunDirectory(config.directory)
    directory.check_resumable(config)
    lm, problems = _validated(config)
    directory.check_base(lm)
    with cluster(config) as place:
        directory.write_config(config)
        return _run(directory, config, lm, problems, console, place, resuming=True)


def _validated(config: RunConfig) -> tuple[LanguageModel, list[Problem]]:
    """Base model and problems, after every check that needs no running component."""
    from learner.logbook import check_wandb
    from posteriori.policy import target_modules

    check_wandb(config)
    lm = LanguageModel.load(config.model, dtype=config.dtype)
    problems = build_problems(config, lm)
    target_modules(lm.model, config.learner.lora_targets)
    if config.em is not None:
        FittedReward(problems, config.em.objective)
    return lm, problems


def _run(
    directory: RunDirectory,
    config: RunConfig,
    lm: LanguageModel,
    problems: list[Problem],
    console: Console,
    place: Any,
    *,
    resuming: bool,
) -> dict[str, Any]:
    check_shared_directory(place, directory.path)
    interrupts = Interrupts()
    return_freed_memory()
    with directory.locked(), interrupts.installed():
        history, summary = _train(directory, config, problems, console, interrupts, place, resuming)
        console.print("Training is over; assessing the policy.", highlight=False)
        use_exported_reward(directory, config, problems)
        report = _assess(directory, config, lm, problems, history, summary)
    console.print(f"Report: {directory.path / 'report.md'}", highlight=False)
    return report


def _train(
    directory: RunDirectory,
    config: RunConfig,
    problems: list[Problem],
    console: Console,
    interrupts: Interrupts,
    place: Any,
    resuming: bool,
) -> tuple[list[dict[str, float]], RunSummary]:
    from actors.ray_pool import RayPool
    from learner.process import LearnerActor
    from replay.buffers import open_buffer
    from replay.connection import connect
    from replay.redis_adapters import RedisAdapters
    from replay.registry import RunRegistry

    def say(what: str) -> None:
        console.print(what, highlight=False, markup=False)

    began = time.monotonic()
    with ExitStack() as stack:
        url = stack.enter_context(_redis_url(config, directory, say))
        client = connect(url, patience_seconds=config.replay.deadline_seconds, on_wait=say)
        registry = RunRegistry(client, config.run)
        stack.enter_context(
            held(RunRegistry(connect(url), config.run), config.run, directory.identity())
        )
        registry.begin()
        registry.set_desired_actors(config.sampling.actors)
        adapters = RedisAdapters(client, config.run)
        buffer = open_buffer(client, config)
        pool = RayPool(config, url, registry)
        stack.callback(pool.close)
        pool.reconcile()  # engines start while the oracle is computed
        cases = exact_cases(problems, config.oracle_max_strings, directory.oracle)
        view = ProgressView(console, config.learner.steps, [case.name for case in cases])
        watch = Watch(registry, adapters, buffer, pool, directory, stack.enter_context(view))

        def start_learner(resume: bool) -> Any:
            return LearnerActor.options(**learner_options(place, config.learner.threads)).remote(
                config.model_dump(mode="json"), url, str(directory.path.resolve()), resume=resume
            )

        watch.follow(start_learner, resuming, interrupts)
        version = adapters.latest()
        export(adapters, version, directory.adapter)
        export_reward(RedisAdapters(client, store_name(config.run)), directory)
        summary = _summary(config, watch, buffer.stats(), pool.state.restarts, version)
    return watch.history.rows(), RunSummary(
        **summary, seconds=time.monotonic() - began, stopped_early=interrupts.asked
    )


@contextmanager
def _redis_url(
    config: RunConfig, directory: RunDirectory, say: Callable[[str], None]
) -> Iterator[str]:
    """The run's Redis: a server of its own, kept alive, or the one the run file names."""
    from replay.address import resolve
    from replay.connection import connect
    from replay.exposure import refuse_open
    from replay.keeper import kept_alive
    from replay.registry import RunRegistry
    from replay.server import EmbeddedServer

    replay = config.replay
    if replay.redis_url != "embedded":
        url = resolve(replay.redis_url)
        for used in (url, *replay.shard_urls):
            refuse_open(connect(used), used)
        yield url
        return

    def tell(kind: str, what: str) -> None:
        say(what)
        if kind == "storage_restarted":  # there is a registry to tell
            with suppress(StorageUnreachable):  # unless it has died again
                RunRegistry(connect(server.url), config.run).event(kind, what)

    server = EmbeddedServer(directory.redis, replay.capacity_bytes, replay.fsync)
    with server, kept_alive(server, tell):
        yield server.url


def _summary(
    config: RunConfig, watch: Watch, stats: BufferStats, restarts: int, version: int
) -> dict[str, Any]:
    last = watch.history.last
    actors = [row for row in watch.actors.values() if "idle_ratio" in row]
    ratios = [float(row["idle_ratio"]) for row in actors]
    seconds = {
        what: sum(float(row[f"{what}_seconds"]) for row in actors)
        for what in ("sampling", "scoring", "inserting", "loading", "waiting")
    }
    total = sum(seconds.values()) or 1.0
    return {
        "run": config.run,
        "steps": int(last.get("step", 0)),
        "adapter_version": version,
        "idle": {
            "learner": float(last.get("idle_ratio", 0.0)),
            "actors": sum(ratios) / len(ratios) if ratios else 0.0,
        },
        "restarts": restarts,
        "mismatch_mean": last.get("log_q_mismatch_mean"),
        "mismatch_max": last.get("log_q_mismatch_max"),
        "counters": {
            "trajectories inserted": stats.inserted,
            "trajectories merged": stats.merged,
            "trajectories drawn": stats.drawn,
            "trajectories evicted": stats.evicted,
            "trajectories rejected": last.get("rejected", 0.0),
            "tokens sampled": sum(float(row["tokens"]) for row in actors),
            "adapter versions loaded by actors": sum(
                float(row["adapters_loaded"]) for row in actors
            ),
            **{f"actors' time: {what}": value / total for what, value in seconds.items()},
        },
    }


def _assess(
    directory: RunDirectory,
    config: RunConfig,
    lm: LanguageModel,
    problems: list[Problem],
    history: list[dict[str, float]],
    summary: RunSummary,
) -> dict[str, Any]:
    """Measure the newest adapter and write the report."""
    run = LoadedRun(directory, config, lm, problems)
    cases = exact_cases(problems, config.oracle_max_strings, directory.oracle)
    policy = run.policy()
    # For thousands of draws once, the transformers engine is there sooner than vLLM starts.
    engine = run.engine("transformers")
    try:
        assessments = assess(
            problems,
            cases,
            engine,
            lm,
            policy,
            adapter_version=POLICY_VERSION,
            draws=DRAWS,
            prompts_per_problem=PROMPTS_PER_PROBLEM,
            seed=config.seed,
        )
        checks = [_weight_check(run, case, engine) for case in cases]
    finally:
        engine.close()
    return report_writer.write(directory, summary, assessments, checks, history, cases, lm, policy)


def _weight_check(run: LoadedRun, case: Case, engine: Engine) -> WeightCheck:
    """Do weights correct the first adapter that was far off (the base LM if none was kept)?"""
    early = run.directory.early_adapter(case.name)
    version, sampler = 0, run.base
    if early.exists():
        candidate = run.policy(early)
        # An evaluation between two publications says little about the version in force.
        if case.fidelity(candidate).total_variation >= UNDER_TRAINED_TV:
            version, sampler = POLICY_VERSION + 1, candidate
            engine.add_adapter(version, early)
    try:
        return check_weights(
            case,
            engine,
            sampler,
            adapter_version=version,
            draws=WEIGHT_CHECK_DRAWS,
            seed=run.config.seed,
        )
    finally:
        if version:
            engine.remove_adapter(version)
