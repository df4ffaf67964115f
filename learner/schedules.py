"""What changes with the step: learning rate and reward temperature."""

from __future__ import annotations

import math

from posteriori.config import LearnerConfig


def learning_rate(config: LearnerConfig, step: int) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then constant or half a cosine towards 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def reward_temperature(config: LearnerConfig, step: int) -> float:
    """T of step ``step``: log R is divided by it. Linear to 1 over ``anneal_steps``, then 1."""
    if step >= config.anneal_steps:
        return 1.0
    start = config.reward_temperature_start
    return start + (1.0 - start) * step / config.anneal_steps
