"""Scores are computed once for each Z and version of the reward, within a bound on bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from actors.score_cache import ENTRY_BYTES, ScoreCache
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import Prompt

MOVES = LegalMoves.free([1, 2, 3], 0, 0, 8)


class Counted:
    """log R = version + 0.5 · length; remembers what it was asked."""

    def __init__(self) -> None:
        self.version = 0
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """See ``Reward``."""
        self.asked += [(prompt.id, tuple(z)) for z in sequences]
        return [self.version + 0.5 * np.arange(len(z) + 1) for z in sequences]


def problem_with(reward: Counted, name: str = "p") -> Problem:
    prompts = [Prompt("a", {}), Prompt("b", {})]
    lm = cast(LanguageModel, None)
    return Problem(name, prompts, reward, lm, lambda prompt: [1], lambda prompt: MOVES)


def test_each_z_is_scored_once_a_problem_and_a_prompt() -> None:
    reward, cache = Counted(), ScoreCache()
    one, other = problem_with(reward), problem_with(reward, "other")
    a, b = one.prompts
    cache.log_rewards(one, a, [(1,), (1, 2)])
    version, scores = cache.log_rewards(one, a, [(1, 2), (3,), ()])
    assert version == 0
    assert {z: score.tolist() for z, score in scores.items()} == {
        (1, 2): [0, 0.5, 1], (3,): [0, 0.5], (): [0],
    }  # fmt: skip
    assert all(score.dtype == np.float32 for score in scores.values())
    assert reward.asked == [("a", (1,)), ("a", (1, 2)), ("a", (3,)), ("a", ())]
    cache.log_rewards(one, b, [(1,)])
    cache.log_rewards(other, a, [(1,)])
    assert (cache.found, cache.computed, len(reward.asked)) == (1, 6, 6)


def test_an_m_step_voids_what_was_scored() -> None:
    reward, cache = Counted(), ScoreCache()
    problem = problem_with(reward)
    prompt = problem.prompts[0]
    cache.log_rewards(problem, prompt, [(1,)])
    reward.version = 7
    version, scores = cache.log_rewards(problem, prompt, [(1,)])
    assert (version, scores[(1,)].tolist()) == (7, [7, 7.5])
    cache.log_rewards(problem, prompt, [(1,)])
    assert len(reward.asked) == 2


def test_the_least_recently_used_go_first() -> None:
    reward = Counted()
    problem = problem_with(reward)
    prompt = problem.prompts[0]
    each = ENTRY_BYTES + 4 + 8  # one token, two scores
    cache = ScoreCache(2 * each)
    cache.log_rewards(problem, prompt, [(1,), (2,)])
    cache.log_rewards(problem, prompt, [(1,)])
    _, scores = cache.log_rewards(problem, prompt, [(3,)])  # (2,) goes
    assert cache.held_bytes == 2 * each and scores[(3,)].tolist() == [0, 0.5]
    cache.log_rewards(problem, prompt, [(1,), (3,)])
    assert len(reward.asked) == 3
    cache.log_rewards(problem, prompt, [(2,)])
    assert len(reward.asked) == 4
    nothing = ScoreCache(0)
    assert nothing.log_rewards(problem, prompt, [(1,)])[1][(1,)].tolist() == [0, 0.5]
    assert nothing.held_bytes == 0
