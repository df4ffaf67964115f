"""Train every example run file in this process and measure its exact distance from the posterior.

    python -m benchmarks.examples [NAME ...] [--seed N] [--out docs/results/examples.json]

Distances are over all strings, by enumeration; no histogram. Results accumulate in the JSON file, one entry
for each run file and seed, so that a later call goes on where an earlier one stopped. Ends with status 1 if
a total variation exceeds 0.05.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.harness import hardware
from posteriori import config as run_file
from posteriori.commands.local import train_locally
from posteriori.oracle.cases import exact_cases

EXAMPLES = Path(__file__).parents[1] / "examples"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "examples.json"
LARGEST_TV = 0.05


def measure(name: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Train one run file; distances of base LM and policy for every X."""
    config = run_file.load(EXAMPLES / f"{name}.yaml").model_copy(update={"seed": seed})
    if steps is not None:
        config = config.model_copy(
            update={"learner": config.learner.model_copy(update={"steps": steps})}
        )
    with TemporaryDirectory() as directory:
        result = train_locally(config, directory=Path(directory) / "run")
        policy = result.policy()
        rows = []
        for case in exact_cases(result.run.problems, config.oracle_max_strings):
            base, learned = case.fidelity(result.run.base), case.fidelity(policy)
            rows.append(
                {
                    "problem": case.name,
                    "kind": next(p.kind for p in config.problems if p.name == case.problem.name),
                    "strings": case.exact.count,
                    "tv_base": base.total_variation,
                    "tv_policy": learned.total_variation,
                    "kl_policy": learned.kl_posterior_q,
                    "ess_fraction_policy": learned.ess_fraction,
                }
            )
    return {
        "seed": seed,
        "steps": config.learner.steps,
        "trajectories": result.trajectories,
        "seconds": round(result.seconds, 1),
        "hardware": hardware(),
        "problems": rows,
    }


def show(results: dict[str, Any], console: Console) -> float:
    """Print a row for each X; the largest total variation of a policy."""
    table = Table(
        "run file", "seed", "problem", "strings", "TV base LM", "TV policy", "KL(σ‖q)", "s"
    )
    largest = 0.0
    for name, by_seed in sorted(results.items()):
        for entry in by_seed.values():
            for row in entry["problems"]:
                largest = max(largest, row["tv_policy"])
                table.add_row(
                    name,
                    str(entry["seed"]),
                    row["problem"],
                    f"{row['strings']:,}",
                    f"{row['tv_base']:.3f}",
                    f"{row['tv_policy']:.3f}",
                    f"{row['kl_policy']:.4f}",
                    f"{entry['seconds']:.0f}",
                )
    console.print(table)
    return largest


def main() -> int:
    """Measure what is missing, print everything."""
    names = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="learner steps, instead of the run file's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = (
        json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    )
    for name in arguments.names or names:
        entries = results.setdefault(name, {})
        if str(arguments.seed) in entries:
            continue
        entries[str(arguments.seed)] = measure(name, arguments.seed, arguments.steps)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if show(results, Console(width=120)) <= LARGEST_TV else 1


if __name__ == "__main__":
    sys.exit(main())
