"""The share of draws that a reward treats specially reaches the metrics and the report."""

from __future__ import annotations

import numpy as np
import pytest

from actors.weighted import WeightedSamples
from posteriori.commands.assessment import summarise
from posteriori.factors import FactorReward
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import Case, evaluation_metrics
from posteriori.rewards import draw_marks
from tests.problems.naive import build, exact


def test_q_s_mass_on_marked_strings_is_a_metric(tiny_lm: LanguageModel) -> None:
    problem = build(
        tiny_lm, kind="constrained", constraint={"regex": "( cat| ran)+", "masked": False}
    )
    case = Case(problem, problem.prompts[0], exact(problem))
    strings = [case.exact.tree.tokens(k) for k in range(case.exact.count)]
    slept = tiny_lm.one_token(" slept", "")
    mass = sum(np.exp(case.log_q(tiny_lm))[k] for k, z in enumerate(strings) if slept in z)
    found = evaluation_metrics([case], tiny_lm)
    assert found["violating/p"] == pytest.approx(mass, rel=1e-9)
    assert 0.01 < found["violating/p"] < 0.99


def test_the_share_of_clipped_draws_is_in_the_summary(tiny_lm: LanguageModel) -> None:
    problem = build(
        tiny_lm,
        kind="contrastive",
        contrast={"prompt": " a small", "token_floor_nats": -9.0},
    )
    found = exact(problem)
    drawn = [list(found.tree.tokens(k)) for k in found.sample(200, seed=0)]
    clipped = draw_marks(problem.reward, problem.prompts[0], drawn)["clipped"]
    samples = WeightedSamples(drawn, np.zeros(200), np.zeros(200))
    summary = summarise(samples, problem, problem.prompts[0])
    assert summary.marked == {"clipped": clipped.mean()}
    assert 0 < clipped.mean() < 1


def test_a_factor_passes_marks_on_and_a_plain_reward_has_none(tiny_lm: LanguageModel) -> None:
    contrast = {"prompt": " a small", "token_floor_nats": -1.0}
    problem = build(tiny_lm, kind="contrastive", contrast=contrast)
    factor = FactorReward(problem.reward, lambda *_: 0.0, tiny_lm.text)
    z = [[tiny_lm.one_token(" cat", "")]]
    assert set(draw_marks(factor, problem.prompts[0], z)) == {"clipped"}
    assert draw_marks(build(tiny_lm, kind="tempered").reward, problem.prompts[0], z) == {}
