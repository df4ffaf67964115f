"""Contrastive generation: (p(Z⊤ | X)^α · p′(Z⊤ | X′)^-β)^{1/T}, likely here and unlikely there.

X′ is an anti-prompt, p′ an amateur model, or both. Without a bound the best Z is one that the denominator
finds absurd, however poor it is otherwise. The denominator is therefore clipped from below, token by
token: one absurd token earns at most β·|floor|. A clip of the whole sequence would depend on length: every
long Z would meet it, and nothing would be contrasted there any more.
"""

from __future__ import annotations

from posteriori.config import ProblemConfig, RewardTerm


def terms(config: ProblemConfig) -> tuple[RewardTerm, ...]:
    """The likelihood to raise and the clipped one to lower."""
    contrast = config.contrast
    assert contrast is not None  # the run file's validation
    return (
        RewardTerm(weight=contrast.alpha / config.temperature, model=config.model),
        RewardTerm(
            context=contrast.prompt,
            weight=-contrast.beta / config.temperature,
            token_floor_nats=contrast.token_floor_nats,
            model=contrast.model or config.model,
        ),
    )
