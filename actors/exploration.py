"""Which X is sampled next, and how.

X is uniform over all prompts of all problems. The behaviour is drawn by the configured shares: the
policy itself, tempered, mixed with uniform, or the frozen base LM. Squared log losses have the same
optimum under every one of them; on-policy draws alone leave modes that q forgot forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posteriori.config import SamplingConfig
from posteriori.problems import Problem
from posteriori.seams import Behaviour, Prompt, SampleRequest


@dataclass(frozen=True)
class PlannedGroup:
    """A request, and the X it is for."""

    problem: Problem
    prompt: Prompt
    request: SampleRequest


class Exploration:
    """An endless supply of groups to sample.

    Args:
        actor_id: unique among all actors of a run, of all its restarts too; prefixes group ids.
        problems: at least one, with at least one prompt.
        config: shares, temperature range, ε and group size.
        seed: of every choice and of the samples' own seeds; differs between actors.
    """

    def __init__(
        self, actor_id: str, problems: Sequence[Problem], config: SamplingConfig, seed: int
    ) -> None:
        self._actor_id = actor_id
        self._config = config
        self._random = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._targets = [(problem, prompt) for problem in problems for prompt in problem.prompts]

    def next(self, adapter_version: int) -> PlannedGroup:
        """The next group, under ``adapter_version`` unless the base LM is to sample it."""
        problem, prompt = self._targets[self._random.integers(len(self._targets))]
        behaviour = self._behaviour()
        request = SampleRequest(
            id=f"{self._actor_id}-{next(self._numbers)}",
            prompt_ids=problem.policy_ids(prompt),
            moves=problem.moves(prompt),
            n=self._config.group_size,
            behaviour=behaviour,
            adapter_version=0 if behaviour.name == "base" else adapter_version,
            seed=int(self._random.integers(2**62)),
        )
        return PlannedGroup(problem, prompt, request)

    def _behaviour(self) -> Behaviour:
        config = self._config
        position = self._random.random()
        if position < config.base_share:
            return Behaviour("base")
        position -= config.base_share
        if position < config.tempered_share:
            return Behaviour(
                "tempered", temperature=self._random.uniform(*config.temperature_range)
            )
        position -= config.tempered_share
        if position < config.uniform_share:
            return Behaviour("uniform", epsilon=config.uniform_epsilon)
        return Behaviour("policy")
