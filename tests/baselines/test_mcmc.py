"""Metropolis–Hastings: detailed balance string by string, and the chain's stationary distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from baselines import mcmc
from posteriori.decoding import move_log_q
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import Sample
from tests.small import build, chi_square_p, exact, string_index


def naive_sample(lm: LanguageModel, problem: Problem, z: list[int]) -> Sample:
    """Z with log q of its moves, by one plain forward."""
    prompt = problem.prompts[0]
    ids, moves = problem.policy_ids(prompt), problem.moves(prompt)
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*ids, *z]])).logits[0, len(ids) - 1 :]
    log_moves = move_log_q(moves.path_scores(logits[:, moves.column_tokens].double().numpy(), z))
    columns = [moves.columns[token] for token in z]
    log_q = log_moves[np.arange(len(z)), columns].astype(np.float64)
    return Sample(z, log_q.astype(np.float32), log_moves[:, -1].astype(np.float32))


SMALL = {"alphabet": [" dog", " sat"], "min_tokens": 0, "max_tokens": 2, "temperature": 0.5}
BALANCED = [SMALL, {**SMALL, "kind": "constrained", "constraint": {"regex": "( dog)*( sat)*"}}]


def naive_log_proposal(z: Sample, other: Sample, move: mcmc.Move, moves: LegalMoves) -> float:
    """log probability that ``move``, chosen among the places of its kind, leads from z to other."""
    n, k = len(z.tokens), move.place
    if move.infill:
        # q over the tokens: ⊤'s share is taken out.
        stop = np.exp(np.float64(other.log_q_stop[k]))
        return float(np.float64(other.log_q[k]) - np.log1p(-stop) - np.log(n))
    return float(other.log_q[k:].sum() + other.log_q_stop[-1] - np.log(n + 1))


@pytest.mark.parametrize("settings", BALANCED)
@pytest.mark.parametrize("infill", [False, True])
def test_detailed_balance(soft_lm: LanguageModel, settings: dict[str, Any], infill: bool) -> None:
    """σ(z) g(z→z′) a(z→z′) = σ(z′) g(z′→z) a(z′→z) for every pair and place; so σ K = σ exactly."""
    problem = build(soft_lm, **settings)
    posterior, prompt = exact(problem), problem.prompts[0]
    moves, ids = problem.moves(prompt), problem.policy_ids(prompt)
    index = string_index(posterior)
    strings = [naive_sample(soft_lm, problem, posterior.tree.tokens(k)) for k in range(len(index))]
    kernel = np.zeros((len(index), len(index)))
    rng = np.random.default_rng(0)
    for k, chain in enumerate(strings):
        for place in range(len(chain.tokens) + (not infill)):
            move = mcmc.Move(infill, place)
            uniforms = rng.random((200, moves.max_tokens + 1))
            found, _ = mcmc.propose(soft_lm, ids, moves, [chain] * 200, [move] * 200, uniforms)
            targets = {tuple(p.sample.tokens): p for p in found if p.sample is not None}
            for tokens, proposal in targets.items():
                to = index[tokens]
                forward = naive_log_proposal(chain, strings[to], move, moves)
                back = naive_log_proposal(strings[to], chain, move, moves)
                assert proposal.log_ratio == pytest.approx(back - forward, abs=1e-4)
                gain = posterior.log_reward[to] - posterior.log_reward[k] + proposal.log_ratio
                if to != k:
                    kernel[k, to] += np.exp(forward + min(0.0, gain))
    flow = np.exp(posterior.log_sigma)[:, None] * kernel
    assert kernel.sum(axis=1).max() <= 1 and (flow > 0).sum() >= len(index)
    # What 200 tries have not met is nearly nothing.
    np.testing.assert_allclose(flow, flow.T, rtol=1e-3, atol=1e-6)


MIXING = [
    {"kind": "infilling", "prompts": [{"x": " the cat", "y": " on the mat"}], "temperature": 3.0},
    {"kind": "constrained", "constraint": {"regex": "( dog| ran)*( sat)*"}},
]


@pytest.mark.parametrize("settings", [pytest.param(MIXING[0], marks=pytest.mark.slow), MIXING[1]])
def test_chains_are_distributed_as_the_posterior(
    soft_lm: LanguageModel, settings: dict[str, Any]
) -> None:
    """χ² of the last states of independent chains; their starts, draws of the LM, fail the same test."""
    words = [" dog", " sat", " ran"]
    problem = build(soft_lm, alphabet=words, min_tokens=1, max_tokens=3, **settings)
    posterior, prompt = exact(problem), problem.prompts[0]
    start, end = (mcmc.sample(problem, prompt, 300, 1, steps=steps) for steps in (0, 60))
    assert chi_square_p(posterior, start.tokens) < 1e-6
    assert chi_square_p(posterior, end.tokens) > 1e-3
    assert end.budget.token_forwards > 60 * 300 > end.budget.reward_evaluations > 0
