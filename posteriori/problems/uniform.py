"""Uniform sampling: R = 1 for every Z that satisfies the constraint (paper, section 2).

No likelihood enters, so the policy has to unlearn the base LM's preferences. Where the constraint is not
masked, an invalid Z has R = e^floor · p_LM(Z⊤ | X): all invalid Z's together then weigh at most
e^floor, however many there are. With a constant floor the strings of a whole vocabulary would outweigh
the valid ones.
"""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """p_LM(Z⊤ | X), which only invalid Z's are measured by."""
    return (RewardTerm(model=config.model),)
