"""``posteriori verify``: recompute a run's fidelity table from its adapter, trusting nothing stored."""

from __future__ import annotations

from posteriori.commands.assessment import Assessment, assess
from posteriori.commands.loaded_run import POLICY_VERSION, LoadedRun
from posteriori.commands.run_directory import RunDirectory
from posteriori.oracle.cases import PROMPTS_PER_PROBLEM, exact_cases


def verify(
    directory: RunDirectory, draws: int, engine_kind: str | None, seed: int
) -> list[Assessment]:
    """Enumerate the posteriors anew and assess base LM and policy.

    Raises:
        UserError: unknown run.
    """
    run = LoadedRun.load(directory)
    cases = exact_cases(run.problems, run.config.oracle_max_strings)
    engine = run.engine(engine_kind)
    try:
        return assess(
            run.problems,
            cases,
            engine,
            run.base,
            run.policy(),
            adapter_version=POLICY_VERSION,
            draws=draws,
            prompts_per_problem=PROMPTS_PER_PROBLEM,
            seed=seed,
        )
    finally:
        engine.close()
