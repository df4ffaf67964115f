"""The GFlowNet: VarGrad-TB on groups in which bad middles meet good ones.

VarGrad learns from differences within a group, and of a few draws of a poor policy all are bad. So
each X of a step brings two kinds of trajectories: fresh ones of the policy, and ones drawn by reward
among all Z known for X, which the frozen base LM proposed before training or the policy found since.
Neither needs a gold Z, and any behaviour of full support has the same optimum. In ``train_locally`` a
fresh draw would wait in the buffer until its X is drawn again, and every prefix would be scored,
which VarGrad does not look at and here costs five times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import numpy as np

from actors.transformers_engine import TransformersEngine
from baselines.draws import Budget
from baselines.trained import (
    AdapterSettings,
    Optimiser,
    Trained,
    given,
    sampling_tokens,
    training_tokens,
)
from experiments.arithmetic.assess import draw
from experiments.infilling.scoring import log_rewards
from learner.gradients import accumulate
from posteriori import metrics
from posteriori.config import LearnerConfig
from posteriori.decoding import sample
from posteriori.groups import prepare
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.seams import Prompt
from posteriori.trajectory import Trajectory

LORA_RANK = 16

Z = tuple[int, ...]


@dataclass(frozen=True)
class GFlowNetSettings:
    """How the GFlowNet is trained.

    Attributes:
        steps: optimiser steps.
        proposals: Z's that the base LM writes for each X before training.
        prompts_per_step: X's of a step.
        fresh: on-policy trajectories of an X, 2 at least.
        found: trajectories drawn among the Z's known for X, with probabilities in proportion to R.
        learning_rate, lora_alpha, warmup_steps: see ``AdapterSettings``.
    """

    steps: int = 150
    proposals: int = 24
    prompts_per_step: int = 16
    fresh: int = 4
    found: int = 4
    learning_rate: float = 3e-3
    lora_alpha: float = 32.0
    warmup_steps: int = 10


class Known:
    """All Z known for each X, with log R.

    Attributes:
        evaluations: rewards computed; a known Z is not scored again.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._log_reward: dict[str, dict[Z, float]] = {p.id: {} for p in problem.prompts}
        self.evaluations = 0

    def add(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Score what is not known yet; log R of every sequence, nats."""
        known = self._log_reward[prompt.id]
        keys = [tuple(map(int, sequence)) for sequence in sequences]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            scores = log_rewards(self._problem, prompt, new)
            known.update(zip(new, map(float, scores), strict=True))
            self.evaluations += len(new)
        return [known[key] for key in keys]

    def draw(self, prompt: Prompt, n: int, rng: np.random.Generator) -> list[Z]:
        """n of the Z's known for X, with replacement: the posterior over them."""
        keys = list(self._log_reward[prompt.id])
        weights = metrics.normalised_weights(np.array(list(self._log_reward[prompt.id].values())))
        return [keys[k] for k in rng.choice(len(keys), n, p=weights)]


def train_gflownet(
    problem: Problem,
    proposer: LanguageModel,
    settings: GFlowNetSettings,
    directory: Path,
    seed: int,
    on_step: Callable[[Policy, Mapping[str, float]], object] = lambda policy, row: None,
) -> Trained:
    """Train a fresh adapter on rewards alone.

    Args:
        problem: its LM is the start, loaded from a directory, its reward that of another LM; X needs
            the field ``x``.
        proposer: continues x before training.
        settings: see above.
        directory: for adapters on their way to the engine.
        seed: of the adapter, the order of the X's and all draws.
        on_step: called with the policy and the step's row of the curve.

    Returns:
        The adapter; its curve has ``loss``, and ``log_weight``, the mean log R − log q of fresh draws, which
        rises to log Z(X) (nats, means over the step).
    """
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    known = Known(problem)
    budget = Budget()
    for prompt in problem.prompts:
        ids = proposer.context(prompt.fields["x"])
        drawn = sample(
            proposer, ids, problem.moves(prompt), settings.proposals, int(rng.integers(2**62))
        )
        known.add(prompt, [one.tokens for one in drawn])
        budget += Budget(len(ids) + sum(len(one.tokens) for one in drawn))

    shape = LearnerConfig(
        objective="vargrad",
        trajectories_per_prompt=settings.fresh + settings.found,
        lora_rank=LORA_RANK,
        lora_alpha=settings.lora_alpha,
    )
    policy = Policy(problem.lm, shape, seed)
    rates = AdapterSettings(
        learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps
    )
    optimiser = Optimiser(policy, rates, settings.steps)
    sampler = _FreshDraws(policy, directory)
    curve: list[dict[str, float]] = []
    queue: list[Prompt] = []
    for step in range(1, settings.steps + 1):
        while len(queue) < settings.prompts_per_step:
            queue += [problem.prompts[i] for i in rng.permutation(len(problem.prompts))]
        prompts, queue = queue[: settings.prompts_per_step], queue[settings.prompts_per_step :]
        groups = []
        for prompt, fresh in zip(
            prompts,
            sampler.draw(problem, prompts, settings.fresh, int(rng.integers(2**31))),
            strict=True,
        ):
            known.add(prompt, fresh)
            chosen = [*fresh, *known.draw(prompt, settings.found, rng)]
            rewards = known.add(prompt, chosen)
            members = [_scored(problem, prompt, z, r) for z, r in zip(chosen, rewards, strict=True)]
            groups.append(prepare(members, problem))
            budget += Budget(sampling_tokens(problem, prompt, members[: settings.fresh]))
        losses = accumulate(policy, groups, {problem.name: problem}, shape, 1.0, None)
        norm = optimiser.step()
        budget += Budget(training_tokens(groups))
        ends = losses.terminal.reshape(len(groups), -1)
        curve.append(
            {
                "step": float(step),
                "loss": float(losses.loss.mean()),
                "gradient_norm": norm,
                "log_weight": float(ends[:, : settings.fresh].mean()),
            }
        )
        on_step(policy, curve[-1])
    sampler.close()
    budget += Budget(reward_evaluations=known.evaluations)
    return Trained(policy, budget, time.perf_counter() - began, curve)


def _scored(problem: Problem, prompt: Prompt, z: Sequence[int], log_reward: float) -> Trajectory:
    """A trajectory with its terminal reward; that of its prefixes, which VarGrad leaves alone, is 0."""
    trajectory = given(problem, prompt, z)
    trajectory.log_reward[-1] = log_reward
    return trajectory


class _FreshDraws:
    """Samples of the policy as it is now, all X's of a step in one batch."""

    def __init__(self, policy: Policy, directory: Path) -> None:
        self._policy = policy
        self._directory = directory
        self._engine = TransformersEngine(
            policy.lm.name, lora_rank=LORA_RANK, max_adapters=1, device=str(policy.device)
        )
        self._version = 0

    def draw(
        self, problem: Problem, prompts: Sequence[Prompt], n: int, seed: int
    ) -> list[list[list[int]]]:
        """n Z for each X."""
        if self._version:
            self._engine.remove_adapter(self._version)
        self._version += 1
        home = self._directory / f"version-{self._version}"
        home.mkdir(parents=True)
        for name, content in self._policy.adapter_files().items():
            (home / name).write_bytes(content)
        self._engine.add_adapter(self._version, home)
        rmtree(home)
        requests = [(problem.policy_ids(prompt), problem.moves(prompt)) for prompt in prompts]
        drawn = draw(self._engine, requests, n, self._version, seed)
        return [[one.tokens for one in samples] for samples in drawn]

    def close(self) -> None:
        """Free the engine's copy of the model."""
        self._engine.close()
