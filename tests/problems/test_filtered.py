"""Gold from particle filters is drawn from the posterior, and is what a run takes as gold."""

from __future__ import annotations

import numpy as np

from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.problems.filtered import filtered_gold
from tests.small import KINDS, build, exact, string_index
from tests.tools.problem import parrot_problem


def test_draws_follow_the_posterior(soft_lm: LanguageModel) -> None:
    problem = build(
        soft_lm,
        **{**KINDS["constrained"], "temperature": 0.5},
        prompts=[{"x": " the cat"}, {"x": " a dog"}],
    )
    seen: list[int] = []
    found = filtered_gold(
        problem, filters=100, particles=32, temperature=0.5, on_prompt=seen.append
    )
    assert seen == [1, 2] and set(found.draws) == {"0", "1"}
    assert all(len(z) == 3200 for z in found.draws.values())
    assert all(len(z) == 100 for z in found.log_z.values())
    posterior = exact(problem)
    index = string_index(posterior)
    counts = np.bincount([index[tuple(z)] for z in found.draws["0"]], minlength=posterior.count)
    error = metrics.marginal_error(counts / counts.sum(), np.exp(posterior.log_sigma))
    assert error < 0.08  # draws of one filter are not independent
    ratios = np.exp(np.array(found.log_z["0"]) - posterior.log_z)
    assert abs(ratios.mean() - 1) < 3 * ratios.std(ddof=1) / np.sqrt(len(ratios))
    # each distinct Z of an X is scored once
    assert len(index) <= found.reward_evaluations <= 2 * len(index) + 2


def test_gold_is_the_policys_own_tokens(soft_lm: LanguageModel) -> None:
    """A worker lets the tool answer when it stores gold, so no answer may stand in it already."""
    problem = parrot_problem(soft_lm, 1, 3)
    found = filtered_gold(problem, particles=128)
    moves = problem.moves(problem.prompts[0])
    (draws,) = found.draws.values()
    assert len(draws) == 128
    spoken = [moves.execute(z) for z in draws]
    assert any(len(tokens) > len(z) for tokens, z in zip(spoken, draws, strict=True))
    assert all(
        moves.stop_legal(tokens)[-1] and moves.actions(tokens) == z
        for tokens, z in zip(spoken, draws, strict=True)
    )
