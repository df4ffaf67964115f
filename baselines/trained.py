"""What baselines that train an adapter share: settings, rollouts, an optimiser, and what it all cost.

The policy, its legal moves and its base LM are those of the GFlowNet learner; only the objective
differs. Rewards come from the problem, so a budget of reward evaluations means the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.draws import Budget
from posteriori.decoding import sample
from posteriori.errors import UserError
from posteriori.groups import Group, prepare
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Prompt, Sample
from posteriori.trajectory import Trajectory
from posteriori.tree import batches

PRODUCER = "baseline"
"""Named in the trajectories that baselines make themselves."""


@dataclass(frozen=True)
class AdapterSettings:
    """The adapter and its optimiser (AdamW); the defaults are those of the learner.

    Attributes:
        steps: optimiser steps of SFT, rounds of rollouts of PPO.
        learning_rate: after ``warmup_steps`` of linear warm-up, then half a cosine towards 0.
        clip_norm: of the gradient.
        lora_rank, lora_alpha, lora_targets: shape of the adapter, as in a run file.
        tokens_per_microbatch: tree nodes in one forward with gradients.
        evaluate_every_steps: how often ``evaluate`` is called.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] | str = "all-linear"
    tokens_per_microbatch: int = 4096
    evaluate_every_steps: int = 50

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not above 0.

    Raises:
        UserError: names it and its value.
    """
    if not value > 0:
        raise UserError(f"{name} is {value:g}.", "Give more than 0.")


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained baseline.

    Attributes:
        policy: the base LM with the adapter.
        budget: token forwards to sample and to train, and trajectories scored. A backward pass, which
            costs about two forwards more, is not counted.
        seconds: of wall clock, evaluations aside.
        curve: metrics in order of ``step``; see the trainer for their names.
    """

    policy: Policy
    budget: Budget
    seconds: float
    curve: list[dict[str, float]]

    def language_model(self) -> LanguageModel:
        """The sampler, for ``posteriori.decoding`` and the oracles."""
        return self.policy.language_model()

    def save(self, directory: Path) -> None:
        """Write the adapter as a PEFT directory, which ``LanguageModel.with_adapter`` loads."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.policy.adapter_files().items():
            (directory / name).write_bytes(content)


Evaluate = Callable[[Policy, int], Mapping[str, float]]
"""(policy, step) → metrics for the curve, such as exact divergences from an oracle."""

Collect = Callable[[Policy, Problem, Prompt, int, int], list[Trajectory]]
"""(policy, problem, prompt, n, seed) → n scored trajectories of one X; see :func:`rollouts`."""


def rollouts(
    policy: Policy, problem: Problem, prompt: Prompt, n: int, seed: int
) -> list[Trajectory]:
    """n on-policy trajectories of one X, scored.

    Raises:
        RewardError: the reward broke its contract; names problem, prompt and Z.
    """
    moves = problem.moves(prompt)
    drawn = sample(policy.language_model(), problem.policy_ids(prompt), moves, n, seed)
    rewards = checked_log_reward(
        problem.reward, problem.name, prompt, moves, [one.tokens for one in drawn]
    )
    return [
        _trajectory(problem, prompt, one, reward, f"{PRODUCER}-{seed}", "policy")
        for one, reward in zip(drawn, rewards, strict=True)
    ]


def given(problem: Problem, prompt: Prompt, tokens: Sequence[int]) -> Trajectory:
    """A given Z, such as a gold rationale or a posterior sample, as SFT takes it; it is not scored.

    Raises:
        ValueError: Z is not a path of legal moves of X, or ⊤ is not legal behind it.
    """
    ids = [int(token) for token in tokens]
    stop_legal = problem.moves(prompt).stop_legal(ids)
    if not stop_legal[-1]:
        raise ValueError(
            f"prompt {prompt.id!r} of problem {problem.name!r}: {problem.text(ids)!r} may not end here"
        )
    stops = np.full(len(ids) + 1, -np.inf, np.float32)
    stops[-1] = 0.0
    spans = problem.moves(prompt).spans(ids)
    certain = Sample(ids, np.zeros(len(ids), np.float32), stops, spans)
    return _trajectory(problem, prompt, certain, np.zeros(len(ids) + 1), PRODUCER, "gold")


def _trajectory(
    problem: Problem,
    prompt: Prompt,
    drawn: Sample,
    log_reward: NDArray[np.float64],
    group: str,
    behaviour: str,
) -> Trajectory:
    return Trajectory(
        problem=problem.name,
        prompt=prompt.id,
        group=group,
        actor=PRODUCER,
        behaviour=behaviour,
        adapter_version=0,
        reward_version=problem.reward.version,
        tokens=np.asarray(drawn.tokens, np.int32),
        action=drawn.action,
        log_q=drawn.log_q,
        log_q_stop=drawn.log_q_stop,
        log_reward=log_reward.astype(np.float32),
        stop_legal=problem.moves(prompt).stop_legal(drawn.tokens),
    )


def packed(trajectories: Iterable[Trajectory], problems: Mapping[str, Problem]) -> list[Group]:
    """Trajectories packed for one forward pass, those of one X together."""
    together: dict[tuple[str, str], list[Trajectory]] = {}
    for item in trajectories:
        together.setdefault((item.problem, item.prompt), []).append(item)
    return [prepare(items, problems[name]) for (name, _), items in together.items()]


def microbatches(groups: Sequence[Group], tokens: int) -> Iterator[list[Group]]:
    """Groups in batches of at most ``tokens`` tree nodes, padding included."""
    for chosen in batches([group.tree for group in groups], tokens):
        yield [groups[i] for i in chosen]


def sampling_tokens(problem: Problem, prompt: Prompt, trajectories: Sequence[Trajectory]) -> int:
    """Token forwards that sampling the trajectories of one X took."""
    return len(problem.policy_ids(prompt)) + sum(len(item) for item in trajectories)


def training_tokens(groups: Sequence[Group]) -> int:
    """Token forwards of one pass over packed groups: every distinct prefix once."""
    return sum(len(group.tree) for group in groups)


@dataclass(eq=False)
class Optimiser:
    """AdamW over the adapter, with a learning rate that depends on the step alone.

    ``total_steps`` are optimiser steps, which PPO takes several of in each round.
    """

    policy: Policy
    settings: AdapterSettings
    total_steps: int
    step_count: int = 0
    _adam: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self._adam = torch.optim.AdamW(
            self.policy.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )

    def step(self) -> float:
        """Clip the accumulated gradient, step, and clear it; the gradient's norm before clipping."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.clip_norm)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.step_count += 1
        return float(norm)

    def _rate(self) -> float:
        settings, step = self.settings, self.step_count
        if step < settings.warmup_steps:
            return settings.learning_rate * (step + 1) / settings.warmup_steps
        progress = (step - settings.warmup_steps) / max(1, self.total_steps - settings.warmup_steps)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def prompts_of(problems: Sequence[Problem]) -> list[tuple[Problem, Prompt]]:
    """Every X of every problem."""
    return [(problem, prompt) for problem in problems for prompt in problem.prompts]
