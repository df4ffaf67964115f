"""A policy as genlm-control's proposal, against the oracle; runs where genlm-control is installed."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.genlm import policy_potential
from posteriori.lm import LanguageModel
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem, build_problem


@pytest.fixture(scope="module")
def problem(tiny_lm: LanguageModel) -> Problem:
    declared: dict[str, Any] = {
        "name": "sharp",
        "kind": "tempered",
        "prompts": [{"x": " the cat"}],
        "alphabet": [" sat", " ran", " slept"],
        "stop": ".",
        "min_tokens": 1,
        "max_tokens": 3,
        "temperature": 0.8,
    }
    return build_problem(ProblemConfig(**declared), tiny_lm)


def test_it_is_log_q(problem: Problem, tiny_lm: LanguageModel) -> None:
    pytest.importorskip("genlm.control", reason="genlm-control is not among the pins")
    prompt = problem.prompts[0]
    found = policy_potential(problem, prompt, tiny_lm)
    a, b, c = (int(token) for token in problem.moves(prompt).alphabet)
    sequences = [[a], [b, c], [c, c, a]]
    expected = sequence_log_q(tiny_lm, problem.policy_ids(prompt), problem.moves(prompt), sequences)
    got = [asyncio.run(found.complete(z)) for z in sequences]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert asyncio.run(found.complete([])) == -np.inf  # ⊤ is illegal there
    for z in ([], *sequences):  # genlm's own contract: logw_next is the ratio of scores
        asyncio.run(found.assert_logw_next_consistency(z, rtol=1e-4, atol=1e-4))


def test_it_proposes(problem: Problem, tiny_lm: LanguageModel) -> None:
    """With q as proposal a draw z of a constant target weighs 1 / q(z⊤)."""
    control = pytest.importorskip("genlm.control", reason="genlm-control is not among the pins")
    prompt = problem.prompts[0]

    class Ones(control.Potential):  # type: ignore[misc, name-defined, unused-ignore]
        """1 for every Z of one to three tokens."""

        async def prefix(self, context: Any) -> float:
            return 0.0 if len(context) <= 3 else -np.inf

        async def complete(self, context: Any) -> float:
            return 0.0 if 1 <= len(context) <= 3 else -np.inf

    target = Ones([int(token) for token in problem.moves(prompt).alphabet])
    proposal = policy_potential(problem, prompt, tiny_lm, like=target)
    sampler = control.direct_token_sampler(target, proposal=proposal)
    found = asyncio.run(sampler.smc(n_particles=40, ess_threshold=0.0, max_tokens=4))
    drawn = [[int(token) for token in context[:-1]] for context in found.contexts]
    expected = sequence_log_q(tiny_lm, problem.policy_ids(prompt), problem.moves(prompt), drawn)
    np.testing.assert_allclose(found.log_weights, -expected, atol=1e-4)


def test_without_genlm_it_says_so(
    problem: Problem, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "genlm.control", None)
    with pytest.raises(UserError, match="genlm-control"):
        policy_potential(problem, problem.prompts[0], tiny_lm)
