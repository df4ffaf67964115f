"""A mix of problems in one run: every X gets the same share, whatever else differs."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy import stats

from actors.exploration import Exploration
from posteriori.config import ReplayConfig, SamplingConfig
from posteriori.lm import LanguageModel
from replay.memory_buffer import MemoryBuffer
from tests.learner.helpers import random_strings, tiny_problem, trajectory

CONTEXTS = {"one": (" the",), "two": (" a", " big"), "five": (" sat", " ran", " on", " in", " and")}


def test_every_x_of_a_mix_is_sampled_and_learned_equally_often(tiny_lm: LanguageModel) -> None:
    """χ² over the X's of problems with 1, 2 and 5 of them, short and long Z, full and scarce buffers."""
    problems = [
        tiny_problem(tiny_lm, name, max_tokens=length, contexts=contexts)
        for (name, contexts), length in zip(CONTEXTS.items(), (1, 3, 6), strict=True)
    ]
    keys = [(problem.name, prompt.id) for problem in problems for prompt in problem.prompts]
    exploration = Exploration("a", problems, SamplingConfig(), seed=0)
    planned = [exploration.next(1) for _ in range(4000)]
    sampled = Counter((plan.problem.name, plan.prompt.id) for plan in planned)
    assert stats.chisquare([sampled[key] for key in keys]).pvalue > 1e-3

    buffer = MemoryBuffer(ReplayConfig(samples_per_insert=1e6), seed=0)
    random = np.random.default_rng(0)
    for problem in problems:
        for prompt in problem.prompts:
            # Some X's have far more trajectories than others.
            for z in random_strings(problem.moves(prompt), int(random.integers(2, 200)), seed=1):
                buffer.insert([trajectory(problem, prompt, z, reward_version=0)])
    drawn: Counter[tuple[str, str]] = Counter()
    for _ in range(1000):
        for group in buffer.draw(2, 8).groups:
            drawn[group[0].problem, group[0].prompt] += 1
    assert stats.chisquare([drawn[key] for key in keys]).pvalue > 1e-3
