"""Train on a tempered posterior of strings up to 32 tokens and measure KL(σ‖q) against the exact σ.

    python -m benchmarks.markov_tempered

Makes the reward LM and the policy's base if they are not there, trains as ``posteriori train`` does, and
then measures with exact draws of σ from dynamic programming; nothing of the oracle is seen before. Ends
with a JSON line, and with status 1 if KL(σ‖q) exceeds a tenth of KL(σ‖reward LM), averaged over the X's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from posteriori import config as run_file
from posteriori import metrics
from posteriori.commands import train
from posteriori.commands.loaded_run import LoadedRun
from posteriori.commands.run_directory import RunDirectory
from posteriori.lm import LanguageModel
from posteriori.markov_model import fit_policy_base, write_markov_lm
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable
from posteriori.oracle.scoring import sequence_log_q

RUN_FILE = Path(__file__).with_suffix(".yaml")
LARGEST_RATIO = 0.1
FIT_STEPS = 4000
"""Of the policy's base, which all that lies in runs/markov shares: whoever comes first makes it."""


@dataclass(frozen=True)
class Row:
    """One X. Divergences in nats; those of the samplers that are not Markov come with a standard error.

    Attributes:
        kl_reward_lm: exact KL(σ‖p), p the reward LM over the legal moves.
        kl_local: exact KL(σ‖·) of ordinary token temperature, renormalised at each step.
        kl_base, kl_policy: KL(σ‖q) of the policy's base and of the policy, by exact draws from σ.
        tv_policy: TV(σ, q) = E_σ[(1 − q/σ)₊], by the same draws.
    """

    x: str
    log_z: float
    mean_length: float
    kl_reward_lm: float
    kl_local: float
    kl_base: float
    kl_policy: float
    kl_policy_standard_error: float
    tv_policy: float


def prepare_models(
    policy_base: Path,
    reward_lm: Path,
    fit_steps: int,
    console: Console,
    positions: Literal["rotary", "learned"] = "rotary",
) -> None:
    """Write both models where they are missing."""
    if not reward_lm.exists():
        write_markov_lm(reward_lm)
    if not policy_base.exists():
        console.print(f"Fitting the policy's base, {fit_steps} steps; once, a few minutes.")
        unfinished = policy_base.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        report = fit_policy_base(
            LanguageModel.load(str(reward_lm)), unfinished, steps=fit_steps, positions=positions
        )
        unfinished.rename(policy_base)
        console.print(
            f"It is {report.kl_per_token:.3f} nats a token from the reward LM, whose entropy is "
            f"{report.entropy_per_token:.2f}; {report.seconds:.0f} s."
        )


def measure(run: LoadedRun, draws: int, seed: int) -> list[Row]:
    """Distances to σ for every X of the run's tempered problem."""
    (problem,), (config,) = run.problems, run.config.problems
    assert config.model is not None
    reward_lm = LanguageModel.load(config.model)
    table = MarkovTable.from_model(reward_lm.model)
    policy = run.policy()
    rows = []
    for prompt in problem.prompts:
        moves, policy_ids = problem.moves(prompt), problem.policy_ids(prompt)
        exact = MarkovPosterior.tempered(
            table, moves, reward_lm.context(prompt.fields["x"]), config.temperature
        )
        strings = exact.sample(draws, seed)
        log_sigma = exact.log_sigma(strings)
        log_ratio = {
            name: sequence_log_q(lm, policy_ids, moves, strings) - log_sigma
            for name, lm in (("base", run.base), ("policy", policy))
        }
        kl = metrics.mean_estimate(-log_ratio["policy"])
        rows.append(
            Row(
                x=prompt.fields["x"],
                log_z=exact.log_z,
                mean_length=float(exact.length_marginal() @ np.arange(moves.max_tokens + 1)),
                kl_reward_lm=exact.kl_posterior_q(exact.local_sampler()),
                kl_local=exact.kl_posterior_q(exact.local_sampler(config.temperature)),
                kl_base=metrics.mean_estimate(-log_ratio["base"]).value,
                kl_policy=kl.value,
                kl_policy_standard_error=kl.standard_error,
                tv_policy=float(np.maximum(0.0, -np.expm1(log_ratio["policy"])).mean()),
            )
        )
    return rows


def show(rows: list[Row], console: Console) -> float:
    """Print the table; return KL(σ‖q) over KL(σ‖reward LM), both averaged over the X's."""
    table = Table(title="KL(σ‖·) in nats, tempered posterior of length ≤ 32")
    columns = (
        "x",
        "log Z",
        "length",
        "reward LM",
        "local",
        "base",
        "policy",
        "policy's TV",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "x" else "right")
    for row in rows:
        table.add_row(
            row.x,
            f"{row.log_z:.3f}",
            f"{row.mean_length:.1f}",
            f"{row.kl_reward_lm:.3f}",
            f"{row.kl_local:.3f}",
            f"{row.kl_base:.3f}",
            f"{row.kl_policy:.3f} ± {row.kl_policy_standard_error:.3f}",
            f"{row.tv_policy:.3f}",
        )
    console.print(table)
    policy = float(np.mean([row.kl_policy for row in rows]))
    return policy / float(np.mean([row.kl_reward_lm for row in rows]))


def main() -> None:
    """Prepare, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-file", type=Path, default=RUN_FILE)
    parser.add_argument("--engine", choices=("vllm", "transformers"))
    parser.add_argument("--fit-steps", type=int, default=FIT_STEPS)
    parser.add_argument("--draws", type=int, default=2048, help="exact draws from σ for each X")
    parser.add_argument("--measure-only", action="store_true", help="of a finished run")
    arguments = parser.parse_args()
    console = Console()
    config = run_file.load(arguments.run_file)
    if arguments.engine:
        sampling = config.sampling.model_copy(update={"engine": arguments.engine})
        config = config.model_copy(update={"sampling": sampling})
    if not arguments.measure_only:
        (problem,) = config.problems
        prepare_models(Path(config.model), Path(problem.model or ""), arguments.fit_steps, console)
        train.start(config, console)
    rows = measure(LoadedRun.load(RunDirectory(config.directory)), arguments.draws, config.seed)
    ratio = show(rows, console)
    print(json.dumps({"kl_ratio": ratio, "rows": [asdict(row) for row in rows]}))
    sys.exit(0 if ratio <= LARGEST_RATIO else 1)


if __name__ == "__main__":
    main()
