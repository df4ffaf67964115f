"""``posteriori demo``: two posteriors with exact oracles, trained and checked in one go."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posteriori.commands import train
from posteriori.config import load

RUN_FILE = Path(__file__).parents[1] / "demo.yaml"


def demo(output: Path, console: Console) -> dict[str, Any]:
    """Run the demo; the last line printed is one JSON object with its figures.

    Returns:
        ``problems``: for each problem exact TV of base LM and policy, KL(σ‖q) of the policy, error of the
        first-token and length marginals of an under-trained policy with and without importance weights,
        log Z exact and estimated from weights, seconds; ``idle``: share of time each component waited.
    """
    config = load(RUN_FILE)
    names = chain([config.run], (f"{config.run}-{number}" for number in count(2)))
    name = next(name for name in names if not (output / name / "run.yaml").exists())
    config = config.model_copy(update={"run": name, "output_directory": output})
    report = train.start(config, console)
    for assessment in report["assessments"]:
        _show(assessment, console)
    console.print(f"Report and plots: {config.directory}", highlight=False)
    figures = _figures(report)
    console.print(
        json.dumps(figures, ensure_ascii=False), highlight=False, markup=False, soft_wrap=True
    )
    return figures


def _show(assessment: dict[str, Any], console: Console) -> None:
    fields = " … ".join(assessment["fields"].values())
    table = Table(title=f"{assessment['problem']}: {fields}", title_justify="left")
    for sampler in ("base LM", "policy"):
        table.add_column(sampler)
        table.add_column("log R", justify="right")
    examples = zip(assessment["base"]["examples"], assessment["policy"]["examples"], strict=True)
    for base, policy in examples:
        table.add_row(
            base["text"], f"{base['log_reward']:.2f}", policy["text"], f"{policy['log_reward']:.2f}"
        )
    table.add_section()
    exact = assessment["exact"]
    table.add_row(
        f"TV {exact['base']['total_variation']:.3f}",
        "",
        f"TV {exact['policy']['total_variation']:.3f}",
        "",
    )
    console.print(table)


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    checks = {check["problem"]: check for check in report["weight_checks"]}
    problems = {}
    for assessment in report["assessments"]:
        exact, check = assessment["exact"], checks[assessment["problem"]]
        problems[assessment["problem"]] = {
            "tv_base": exact["base"]["total_variation"],
            "tv_policy": exact["policy"]["total_variation"],
            "kl": exact["policy"]["kl_posterior_q"],
            "strings": exact["strings"],
            "effective_strings": exact["effective_strings"],
            "tv_under_trained": check["total_variation"],
            "marginal_error_unweighted": check["marginal_error_unweighted"],
            "marginal_error_weighted": check["marginal_error_weighted"],
            "log_z_exact": exact["log_z"],
            "log_z_estimate": assessment["policy"]["log_z"],
            "log_z_estimate_se": assessment["policy"]["log_z_se"],
            "seconds": report["summary"]["seconds"],
        }
    return {"problems": problems, "idle": report["summary"]["idle"]}
