"""Infilling: p(Z, Y | X)^{1/T}, the middle of a text given its beginning X and its end Y (paper, section 4.2).

⊤ marks where Z ends and Y begins; it is not part of the text, so it is not scored.
"""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """One likelihood of Z followed by Y after X, to the power 1/T."""
    return (
        RewardTerm(
            target="{z}{y}", context="{x}", weight=1 / config.temperature, model=config.model
        ),
    )
