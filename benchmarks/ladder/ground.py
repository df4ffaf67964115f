"""What a row of the ladder stands on: a run, its exact posteriors, and how a sampler is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.trainers import evaluations_of
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel
from posteriori.metrics import FloatArray
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.enumeration import ExactPosterior
from posteriori.problems import Problem
from posteriori.seams import Prompt

Metrics = dict[str, float]

HELD_OUT = "held-out "
"""Prefix of the metrics of X's that were not trained on."""


@dataclass(frozen=True, eq=False)
class Known:
    """One X with what its oracle says.

    Attributes:
        problem, prompt: X.
        held_out: was it kept out of training?
        log_z: exact log Z(X), nats.
        lengths: exact P(length) in tokens of Z, [max length + 1].
        exact: the oracle itself.
    """

    problem: Problem
    prompt: Prompt
    held_out: bool
    log_z: float
    lengths: FloatArray
    exact: ExactPosterior | MarkovPosterior


@dataclass(frozen=True, eq=False)
class Ground:
    """A row made concrete.

    Attributes:
        config: the run that trains q.
        lm: the policy's base.
        problems: of the run.
        known: its X's, trained ones first.
        measure: (sampler, seed) → metrics, means over X's; those of held-out X's under ``HELD_OUT``.
    """

    config: RunConfig
    lm: LanguageModel
    problems: Sequence[Problem]
    known: Sequence[Known]
    measure: Callable[[LanguageModel, int], Metrics]

    @property
    def temperature(self) -> float:
        """The exponent's inverse, of the run's first problem."""
        return self.config.problems[0].temperature

    @property
    def trajectories(self) -> int:
        """How many q's training samples and scores."""
        return evaluations_of(self.config)


def averaged(rows: Sequence[tuple[bool, Mapping[str, float]]]) -> Metrics:
    """Means over trained and over held-out X's, and the worst KL(σ‖q) and TV of any."""
    found: Metrics = {}
    for held_out, prefix in ((False, ""), (True, HELD_OUT)):
        chosen = [metrics for kind, metrics in rows if kind == held_out]
        for name in chosen[0] if chosen else ():
            values = [metrics[name] for metrics in chosen]
            if name.endswith("error"):  # standard errors of independent means
                found[prefix + name] = float(np.sqrt(np.square(values).sum()) / len(values))
            else:
                found[prefix + name] = float(np.mean(values))
        for name in ("kl_posterior_q", "total_variation"):
            if chosen and name in chosen[0]:
                found[f"{prefix}worst {name}"] = max(metrics[name] for metrics in chosen)
    return found
