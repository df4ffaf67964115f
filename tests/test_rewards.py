"""Prefix rewards in one forward equal the naive loop of one forward for each prefix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posteriori.config import ProblemConfig, RewardTerm
from posteriori.errors import RewardError
from posteriori.factors import FactorReward
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.rewards import checked_log_reward

ALPHABET = [" cat", " dog", " ran", " slept", " and"]


def problem(lm: LanguageModel, **settings: object) -> Problem:
    defaults = {
        "name": "p",
        "kind": "tempered",
        "prompts": [{"x": " the big", "y": " then the bird ate."}],
        "alphabet": ALPHABET,
        "stop": ".",
        "max_tokens": 4,
    }
    return build_problem(ProblemConfig.model_validate({**defaults, **settings}), lm)


def naive(lm: LanguageModel, context: list[int], target: list[int]) -> float:
    """log p(target | context) by one plain forward in float64 arithmetic after the float32 logits."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([context + target])).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return sum(float(log_p[len(context) + k - 1, token]) for k, token in enumerate(target))


def sequences(lm: LanguageModel) -> list[list[int]]:
    ids = [lm.one_token(text, "token") for text in ALPHABET]
    return [[ids[0]], ids[:3], ids[:4], [ids[4], ids[4]], ids[:3]]


def test_tempered_scores_z_and_stop(tiny_lm: LanguageModel) -> None:
    built = problem(tiny_lm, temperature=0.5)
    stop = built.moves(built.prompts[0]).stop
    context = tiny_lm.context(" the big")
    for z, scores in zip(
        sequences(tiny_lm),
        built.reward.log_reward(built.prompts[0], sequences(tiny_lm)),
        strict=True,
    ):
        assert scores[0] == -math.inf  # min_tokens is 1
        for prefix in range(1, len(z) + 1):
            assert scores[prefix] == pytest.approx(
                2 * naive(tiny_lm, context, [*z[:prefix], stop]), rel=1e-5
            )


def test_infilling_scores_y_behind_every_prefix(tiny_lm: LanguageModel) -> None:
    built = problem(tiny_lm, kind="infilling", min_tokens=0)
    context, y = tiny_lm.context(" the big"), tiny_lm.encode(" then the bird ate.")
    assert len(y) > 3
    for z, scores in zip(
        sequences(tiny_lm),
        built.reward.log_reward(built.prompts[0], sequences(tiny_lm)),
        strict=True,
    ):
        for prefix in range(len(z) + 1):
            assert scores[prefix] == pytest.approx(
                naive(tiny_lm, context, z[:prefix] + y), rel=1e-5
            )


def test_product_of_contrast_and_answer(tiny_lm: LanguageModel) -> None:
    """p(z | x) · p(y | x z)^0.5 · p(z | other)^-0.3, text around every hole."""
    terms = [
        {"target": " and{z}", "context": "{x}"},
        {"target": "{y}", "context": "{x}{z} then", "weight": 0.5},
        {"target": "{z}", "context": " a small", "weight": -0.3},
    ]
    built = problem(tiny_lm, kind="product", terms=terms)
    encode, context = tiny_lm.encode, tiny_lm.context
    y = encode(" then the bird ate.")
    for z, scores in zip(
        sequences(tiny_lm),
        built.reward.log_reward(built.prompts[0], sequences(tiny_lm)),
        strict=True,
    ):
        for prefix in range(1, len(z) + 1):
            part = z[:prefix]
            expected = (
                naive(tiny_lm, context(" the big"), encode(" and") + part)
                + 0.5 * naive(tiny_lm, context(" the big") + part + encode(" then"), y)
                - 0.3 * naive(tiny_lm, context(" a small"), part)
            )
            assert scores[prefix] == pytest.approx(expected, rel=1e-5)


def test_renormalised_over_legal_moves(tiny_lm: LanguageModel) -> None:
    term = RewardTerm(renormalise=True).model_dump()
    built = problem(tiny_lm, kind="product", terms=[term], max_tokens=3)
    prompt = built.prompts[0]
    moves = built.moves(prompt)
    total = 0.0
    ids = [int(token) for token in moves.alphabet]
    strings = [[a] for a in ids] + [[a, b] for a in ids for b in ids]
    strings += [[a, b, c] for a in ids for b in ids for c in ids]
    for scores in built.reward.log_reward(prompt, strings):
        total += math.exp(scores[-1])
    # A normalised sampler over the legal strings, since ⊤ is forced at the cap.
    assert total == pytest.approx(1.0, abs=1e-5)


def test_many_sequences_span_several_trees(tiny_lm: LanguageModel) -> None:
    built = problem(tiny_lm, kind="infilling", max_tokens=6)
    generator = np.random.default_rng(0)
    ids = np.array([tiny_lm.one_token(text, "token") for text in ALPHABET])
    many = [list(map(int, generator.choice(ids, size=generator.integers(1, 7)))) for _ in range(60)]
    together = built.reward.log_reward(built.prompts[0], many)
    for z, scores in zip(many, together, strict=True):
        (alone,) = built.reward.log_reward(built.prompts[0], [z])
        np.testing.assert_allclose(scores[1:], alone[1:], rtol=1e-5)


def test_factor_has_a_finite_floor(tiny_lm: LanguageModel) -> None:
    built = problem(tiny_lm)
    prompt = built.prompts[0]
    factor = FactorReward(
        built.reward,
        lambda _, text, __: 0.0 if "cat" in text else -math.inf,
        built.text,
        floor=-7.0,
    )
    dog, cat = tiny_lm.one_token(" dog", ""), tiny_lm.one_token(" cat", "")
    (plain,) = built.reward.log_reward(prompt, [[dog, cat]])
    (scored,) = factor.log_reward(prompt, [[dog, cat]])
    np.testing.assert_allclose(scored[1:] - plain[1:], [-7.0, 0.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named(tiny_lm: LanguageModel, bad: float) -> None:
    built = problem(tiny_lm)
    prompt, moves = built.prompts[0], built.moves(built.prompts[0])

    class Bad:
        version = 0

        def log_reward(self, prompt: object, sequences: list[list[int]]) -> list[np.ndarray]:
            return [np.full(len(z) + 1, bad) for z in sequences]

    z = [int(moves.alphabet[0])]
    with pytest.raises(RewardError, match=rf"'p'.*'0'.*\[{z[0]}\].*prefix 1"):
        checked_log_reward(Bad(), "p", prompt, moves, [z])


def test_a_reward_of_the_wrong_shape_is_named(tiny_lm: LanguageModel) -> None:
    built = problem(tiny_lm)
    prompt, moves = built.prompts[0], built.moves(built.prompts[0])

    class Short:
        version = 0

        def log_reward(self, prompt: object, sequences: list[list[int]]) -> list[np.ndarray]:
            return [np.zeros(len(z)) for z in sequences]

    with pytest.raises(RewardError, match=r"shape \(1,\), expected \(2,\)"):
        checked_log_reward(Short(), "p", prompt, moves, [[int(moves.alphabet[0])]])
