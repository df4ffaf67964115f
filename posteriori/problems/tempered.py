"""Tempered continuation: p(Z⊤ | X)^{1/T} (paper, section 4.1).

Sampling token by token at temperature T is not the same: it renormalises at every step and so favours
confident beginnings over likely wholes.
"""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """One likelihood of Z and ⊤ after X, to the power 1/T."""
    return (
        RewardTerm(
            target="{z}{stop}", context="{x}", weight=1 / config.temperature, model=config.model
        ),
    )
