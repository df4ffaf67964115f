"""A product of likelihoods spelt out in the run file: kind ``product`` with its ``terms``."""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """The terms of the run file, each raised to the power 1/T."""
    return tuple(
        term.model_copy(update={"weight": term.weight / config.temperature})
        for term in config.terms
    )
