"""Every baseline that trains an adapter, by name, with the learner's settings and the budget of a run file.

SFT of two kinds of pairs, and PPO, RLOO and GRPO: all on the problems of the run file, for as many reward evaluations
as its GFlowNet would make, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol

from baselines import importance
from baselines.draws import Budget
from baselines.ppo import PPOSettings, train_ppo
from baselines.sft import SFTSettings, train_sft
from baselines.trained import Trained, check_positive, given, prompts_of
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory

CANDIDATES = 16
"""Draws of the base LM for each pair of SFT without gold."""

PASSES = 3
"""Over the pairs of SFT: more would learn them by heart."""


class Trainer(Protocol):
    """A baseline that trains; further keyword options are its own."""

    def __call__(self, problems: Sequence[Problem], config: RunConfig, seed: int) -> Trained:
        """A policy of all problems, trained with the settings of the run file."""
        ...


def evaluations_of(config: RunConfig) -> int:
    """Trajectories that the run's own training samples and scores."""
    learner = config.learner
    drawn = learner.steps * learner.prompts_per_step * learner.trajectories_per_prompt
    return int(drawn / config.replay.samples_per_insert)


def gold_pairs(problems: Sequence[Problem]) -> list[Trajectory]:
    """The gold Z's of the problems, with what a tool answers inside them."""
    return [
        given(problem, prompt, problem.moves(prompt).execute(z))
        for problem, prompt in prompts_of(problems)
        for z in problem.gold.get(prompt.id, ())
    ]


def resampled_pairs(
    problems: Sequence[Problem], reward_evaluations: int, seed: int
) -> tuple[list[Trajectory], Budget]:
    """Importance-resampled draws of the base LM, as many of each X, and what they took.

    Args:
        problems: whose X's.
        reward_evaluations: of all together; ``CANDIDATES`` to a pair, and at least one pair of each X.
        seed: of the draws.
    """
    prompts = prompts_of(problems)
    each = max(1, reward_evaluations // (CANDIDATES * len(prompts)))
    pairs, budget = [], Budget()
    for problem, prompt in prompts:
        drawn = importance.sir(problem, prompt, each, seed, candidates=CANDIDATES)
        pairs += [given(problem, prompt, tokens) for tokens in drawn.tokens]
        budget += Budget(drawn.budget.token_forwards, CANDIDATES * each)
    return pairs, budget


def sft_on(
    pairs: Sequence[Trajectory],
    problems: Sequence[Problem],
    config: RunConfig,
    seed: int,
    passes: int,
    learning_rate: float | None,
) -> Trained:
    """SFT in batches of the learner's size, for at most as many steps as the learner takes."""
    check_positive("passes", passes)
    learner = config.learner
    batch = learner.prompts_per_step * learner.trajectories_per_prompt
    steps = max(1, min(learner.steps, passes * len(pairs) // batch))
    settings = SFTSettings(steps=steps, batch_size=batch, **_shared(config, learning_rate))
    return train_sft(problems, pairs, settings, seed)


def sft(
    problems: Sequence[Problem],
    config: RunConfig,
    seed: int,
    *,
    passes: int = PASSES,
    learning_rate: float | None = None,
) -> Trained:
    """SFT on the gold Z's of the run file.

    Raises:
        UserError: it names none.
    """
    pairs = gold_pairs(problems)
    if not pairs:
        raise UserError(
            "No problem of the run file has gold Z's.",
            "Name some under problems[].gold, or use sft-resampled, which draws its pairs.",
        )
    return sft_on(pairs, problems, config, seed, passes, learning_rate)


def sft_resampled(
    problems: Sequence[Problem],
    config: RunConfig,
    seed: int,
    *,
    reward_evaluations: int | None = None,
    passes: int = PASSES,
    learning_rate: float | None = None,
) -> Trained:
    """SFT on draws of the base LM, resampled by R/q."""
    count = _count(config, reward_evaluations)
    pairs, spent = resampled_pairs(problems, count, seed)
    trained = sft_on(pairs, problems, config, seed, passes, learning_rate)
    return Trained(trained.policy, trained.budget + spent, trained.seconds, trained.curve)


def policy_gradient(
    problems: Sequence[Problem],
    config: RunConfig,
    seed: int,
    *,
    estimator: Literal["ppo", "rloo", "grpo"],
    target: Literal["reward", "posterior"] = "reward",
    epochs: int = 4,
    kl_coefficient: float = 0.2,
    reward_evaluations: int | None = None,
    learning_rate: float | None = None,
) -> Trained:
    """PPO, RLOO or GRPO in rounds of the learner's step; see ``PPOSettings``."""
    learner = config.learner
    settings = PPOSettings(
        estimator=estimator,
        target=target,
        prompts_per_step=learner.prompts_per_step,
        samples_per_prompt=learner.trajectories_per_prompt,
        epochs=epochs,
        kl_coefficient=kl_coefficient,
        **_shared(config, learning_rate),
    )
    return train_ppo(problems, settings.within(_count(config, reward_evaluations)), seed)


def _count(config: RunConfig, reward_evaluations: int | None) -> int:
    if reward_evaluations is None:
        return evaluations_of(config)
    check_positive("reward_evaluations", reward_evaluations)
    return reward_evaluations


def _shared(config: RunConfig, learning_rate: float | None) -> dict[str, Any]:
    """Settings of the adapter and its optimiser that the learner has, too; the rate unless given."""
    learner = config.learner
    return {
        "learning_rate": learner.learning_rate if learning_rate is None else learning_rate,
        "lora_rank": learner.lora_rank,
        "lora_alpha": learner.lora_alpha,
        "lora_targets": learner.lora_targets,
    }


TRAINERS: Final[Mapping[str, Trainer]] = {
    "sft": sft,
    "sft-resampled": sft_resampled,
    "ppo": partial(policy_gradient, estimator="ppo"),
    "ppo-posterior": partial(policy_gradient, estimator="ppo", target="posterior"),
    "rloo": partial(policy_gradient, estimator="rloo", epochs=1),
    "grpo": partial(policy_gradient, estimator="grpo"),
}
"""``ppo``, ``rloo`` and ``grpo`` maximise E_q[log R] − β KL(q‖p₀); ``ppo-posterior`` E_q[log R − log q]."""
