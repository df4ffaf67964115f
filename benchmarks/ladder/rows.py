"""The table: each row a problem with its targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from posteriori import config as run_file
from posteriori.config import RunConfig

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """A bound on a metric of q, averaged over seeds.

    Attributes:
        metric: its name.
        bound: at most this, or at least this where ``at_least``.
        aim: a wish beyond the requirement.
    """

    metric: str
    bound: float
    at_least: bool = False
    aim: bool = False

    def met(self, value: float) -> bool:
        """Is it?"""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{self.metric} {sign} {self.bound:g}{' (aim)' if self.aim else ''}"


@dataclass(frozen=True)
class Row:
    """One problem of the ladder.

    Attributes:
        name: of its results file and its run file.
        kind: how it is measured: ``enumerable``, ``markov`` or ``log_z``.
        targets: of q.
        rivals: names in ``rivals.RIVALS``.
        lookahead: order of that of q's moves (``posteriori lookahead``); 0: none.
        quick_steps: training steps of the quick form, whose figures mean nothing.
    """

    name: str
    title: str
    kind: str
    targets: tuple[Target, ...]
    rivals: tuple[str, ...] = ()
    lookahead: int = 0
    quick_steps: int = 4

    def config(self, quick: bool, seed: int) -> RunConfig:
        """Its run file under a seed."""
        config = run_file.load(DIRECTORY / f"{self.name}.yaml")
        learner = config.learner
        if quick:
            learner = learner.model_copy(
                update={
                    "steps": self.quick_steps,
                    "evaluate_every_steps": self.quick_steps,
                    "warmup_steps": 0,
                }
            )
        return config.model_copy(update={"seed": seed, "learner": learner})


def with_models(
    config: RunConfig, base: Path, reward_lm: Path, lookahead: Path | None = None
) -> RunConfig:
    """A Markov row's run on other models, and with a lookahead."""
    (problem,) = config.problems
    terms = tuple(term.model_copy(update={"model": str(reward_lm)}) for term in problem.terms)
    changed = problem.model_copy(update={"terms": terms, "lookahead": lookahead})
    return config.model_copy(update={"model": str(base), "problems": (changed,)})


TRAINED = ("base", "sft", "ppo")
SAMPLERS = ("smc-4", "smc-16", "smc-64", "mcmc-4", "mcmc-16")
LONG_SAMPLERS = (*SAMPLERS, "smc-256", "mcmc-64")

CLOSE = (
    Target("total_variation", 0.05),
    Target("kl_posterior_q", 0.05),
    Target("total_variation", 0.02, aim=True),
    Target("kl_posterior_q", 0.01, aim=True),
)
SHARP = (
    Target("kl_posterior_q", 0.10),
    Target("kl_q_posterior", 0.10),
    Target("ess_fraction", 0.8, at_least=True),
    Target("forward ess_fraction", 0.8, at_least=True),
)

ROWS = (
    Row(
        "tempered",
        "tempered, T = 0.7, enumerated",
        "enumerable",
        CLOSE,
        ("local", *TRAINED, *SAMPLERS),
    ),
    Row(
        "contrastive",
        "contrastive, β = 0.5, enumerated",
        "enumerable",
        CLOSE,
        (*TRAINED, *SAMPLERS),
    ),
    Row(
        "constrained",
        "constrained, regular expression, enumerated",
        "enumerable",
        CLOSE,
        (*TRAINED, *SAMPLERS),
    ),
    Row("infilling", "infilling, enumerated", "enumerable", CLOSE, (*TRAINED, *SAMPLERS)),
    Row(
        "tool",
        "latent with a calculator, enumerated",
        "enumerable",
        (*CLOSE, Target("worst kl_posterior_q", 0.05), Target("accuracy gap", 0.01)),
        TRAINED,
    ),
    Row(
        "markov-fixed",
        "tempered, T = 0.7, 32 tokens, Markov",
        "markov",
        SHARP,
        ("local", *TRAINED, *LONG_SAMPLERS),
    ),
    Row(
        "markov-variable",
        "tempered, T = 0.7, 1 to 32 tokens, Markov",
        "markov",
        SHARP,
        ("local", *TRAINED, *LONG_SAMPLERS),
    ),
    Row(
        "markov-cold",
        "tempered, T = 0.5, 32 tokens, Markov",
        "markov",
        (Target("kl_posterior_q", 0.3),),
        ("local", *TRAINED, *LONG_SAMPLERS),
    ),
    Row(
        "constraint",
        "late-binding constraint, 32 tokens, Markov",
        "markov",
        (Target("validity", 0.95, at_least=True), Target("kl_posterior_q", 0.5)),
        (*TRAINED, "smc-64", "smc-256", "mcmc-16", "mcmc-64", "lookahead-64", "viability-256"),
        lookahead=2,
    ),
    Row(
        "log-z",
        "log Z from both sides",
        "log_z",
        (Target("coverage", 0.93, at_least=True), Target("half_width", 0.05)),
        ("joint",),
    ),
)

BY_NAME = {row.name: row for row in ROWS}
