"""Reverse sampling: p(Z | Y)^{1/T} ∝ (p(Z) · p(Y | Z))^{1/T}, the beginning of a text given its end Y.

Z stands where X would. The policy sees Y. ⊤ marks where Z ends and Y begins; it is not part of the text, so
it is not scored.
"""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """One likelihood of Z followed by Y at the beginning of a text, to the power 1/T."""
    return (
        RewardTerm(target="{z}{y}", context="", weight=1 / config.temperature, model=config.model),
    )
