"""The fidelity ladder: trained samplers against exact posteriors, and their rivals beside them.

    python -m benchmarks.fidelity                          # every row, three seeds, rivals once: hours
    python -m benchmarks.fidelity --only tempered --seeds 1
    python -m benchmarks.fidelity --methods q              # no rivals
    python -m benchmarks.fidelity --table                  # what has been measured, as Markdown
    python -m benchmarks.fidelity --quick                  # does it run? figures mean nothing

Results accumulate in docs/results/fidelity-ROW.json: what is there is not measured again. q trains in this
process with the transformers engine. The rows are in benchmarks/ladder/rows.py, their run files beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.ladder import enumerable, log_z, markov, report
from benchmarks.ladder.ground import Ground, Metrics
from benchmarks.ladder.results import Results
from benchmarks.ladder.rivals import LOOKAHEAD_DRAWS, RIVALS
from benchmarks.ladder.rows import BY_NAME, ROWS, Row, with_models
from benchmarks.markov_tempered import FIT_STEPS, prepare_models
from posteriori.commands import lookahead
from posteriori.commands.local import train_locally
from posteriori.config import RunConfig
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.sharpened import write_sharpened

OUT = Path("docs/results")
QUICK_FIT_STEPS = 4
QUICK_DRAWS = 64
STOP_DRAWS = PROFILE_DRAWS = 256
POSITIONED = "positioned-base"
"""Rows whose Z's have one length need a policy that knows which position it is at."""

SEEDS_OF_Q = 3


def prepare(
    row: Row, seed: int, quick: bool, work: Path, console: Console, of_q: bool = False
) -> Ground:
    """The row under a seed, with its oracle; models that it needs are made.

    Args:
        of_q: on Markov rows, the policy's base is the base LM at the posterior's temperature, and moves
            have a lookahead where the row says so.
    """
    config = row.config(quick, seed)
    if row.kind == "enumerable":
        return enumerable.ground(config, oracle_directory(config, work))
    home = work / "quick-models" if quick else Path(config.model).parent
    base, reward_lm = home / Path(config.model).name, home / "reward-lm"
    steps = QUICK_FIT_STEPS if quick else FIT_STEPS
    positions = "learned" if base.name == POSITIONED else "rotary"
    prepare_models(base, reward_lm, steps, console, positions)
    (problem,) = config.problems
    config, table = with_models(config, base, reward_lm), None
    if of_q and row.lookahead:
        table = home / f"lookahead-{row.name}.npz"
        if not table.exists():
            lookahead.fit(
                config,
                table,
                problem_name=None,
                draws=LOOKAHEAD_DRAWS,
                order=row.lookahead,
                seed=0,
                console=console,
            )
    if of_q and problem.temperature != 1.0:
        plain, base = base, home / f"{base.name}-{problem.temperature:g}"
        if not base.exists():
            write_sharpened(str(plain), problem.temperature, base)
    config = with_models(config, base, reward_lm, table)
    return markov.ground(config, QUICK_DRAWS if quick else markov.DRAWS)


def oracle_directory(config: RunConfig, work: Path) -> Path:
    """Where log R of all strings is kept: a row that is changed must not read the oracle of what it was."""
    log_r = [config.model, *(problem.model_dump_json() for problem in config.problems)]
    digest = hashlib.blake2b("".join(log_r).encode(), digest_size=8).hexdigest()
    return work / "oracle" / f"{config.run}-{digest}"


def train_q(ground: Ground, directory: Path, seed: int, console: Console) -> Metrics:
    """Train q and measure it; with what the training took."""

    def progress(step: int, metrics: Mapping[str, float]) -> None:
        if step % 50 == 0 and "variance" in metrics:
            # Var[log R − log q] of what was drawn last: twice a KL, about, where q is near
            console.print(f"  step {step}: variance {metrics['variance']:.3g}", highlight=False)

    done = train_locally(
        ground.config,
        ground.problems,
        directory=directory,
        lm=ground.lm,
        on_metrics=progress,
        evaluate=lambda policy, step: {},  # what counts is measured below, once
    )
    policy = done.policy()
    learned = sum(row.get("tokens", 0.0) for row in done.history)
    found = ground.measure(policy, seed) | {
        "training trajectories": float(done.trajectories),
        "training forwards": float(done.counts.tokens) + learned,
        "training seconds": done.seconds,
    }
    first = ground.known[0]
    if isinstance(first.exact, MarkovPosterior):
        profile, _ = markov.kl_by_position(first, policy, PROFILE_DRAWS, seed)
        for length, value in enumerate(profile):
            found[f"KL(σ‖q) at {length}"] = float(value)
    ids = len(first.problem.policy_ids(first.prompt))
    found["forwards per sample"] = ids + float(first.lengths @ range(len(first.lengths)))
    if (
        isinstance(first.exact, MarkovPosterior)
        and first.exact.moves.min_tokens < len(first.lengths) - 1
    ):
        exact, ours = markov.stop_probabilities(first, policy, STOP_DRAWS, seed)
        for length in range(len(exact)):
            if exact[length] == exact[length]:
                found[f"P(⊤) of σ at {length}"] = float(exact[length])
                found[f"P(⊤) of q at {length}"] = float(ours[length])
    return found


def measure(row: Row, method: str, seed: int, quick: bool, work: Path, console: Console) -> Metrics:
    """One entry."""
    if row.kind == "log_z":
        trials = 4 if quick else log_z.TRIALS
        config = BY_NAME["markov-fixed"].config(quick, seed)
        reward_lm = markov.reward_lm_of(config)
        if quick or not Path(reward_lm).exists():
            made = prepare(BY_NAME["markov-fixed"], seed, quick, work, console).config
            config, reward_lm = made, markov.reward_lm_of(made)
        if method == "q":
            return log_z.exact_draws_above(config, reward_lm, seed, trials)
        return log_z.joint_draws_above(reward_lm, seed, trials)
    ground = prepare(row, seed, quick, work, console, of_q=method == "q")
    if method != "q":
        return RIVALS[method](ground, seed, quick)
    directory = Path(tempfile.mkdtemp(prefix=f"{row.name}-{seed}-", dir=work)) / "run"
    return train_q(ground, directory, seed, console)


def wanted(row: Row, seeds: int, methods: Sequence[str] | None) -> list[tuple[str, int]]:
    """(method, seed) of a row: q and what makes q under every seed, rivals under seed 0."""
    chosen = [("q", seed) for seed in range(seeds)] + [(rival, 0) for rival in row.rivals]
    return [(method, seed) for method, seed in chosen if methods is None or method in methods]


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS])
    parser.add_argument("--methods", nargs="+", choices=["q", "joint", *RIVALS])
    parser.add_argument("--seeds", type=int, default=SEEDS_OF_Q, help="of q; rivals have one")
    parser.add_argument("--quick", action="store_true", help="seconds a row; kept apart")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help=f"of the results; {OUT}")
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"), help="runs and oracles")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    work: Path = arguments.work
    out: Path = arguments.out or (work / "quick" if arguments.quick else OUT)
    work.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS if arguments.only is None or row.name in arguments.only]
    for row in chosen:
        results = Results(out / f"fidelity-{row.name}.json")
        for method, seed in wanted(row, arguments.seeds, arguments.methods):
            if arguments.table or results.has(method, seed):
                continue
            console.print(f"{row.name}: {method}, seed {seed}", highlight=False)
            began, cpu = time.monotonic(), _cpu_seconds()
            found = measure(row, method, seed, arguments.quick, work, console)
            results.add(method, seed, found, time.monotonic() - began, _cpu_seconds() - cpu)
    print(report.markdown([(row, Results(out / f"fidelity-{row.name}.json")) for row in chosen]))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
