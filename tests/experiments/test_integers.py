"""The integers experiment: its exact figures against counting, its quick form, its claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import harness
from experiments.integers import EXPERIMENT, claims
from experiments.integers.trial import draws, log_q_of_numbers, numbers, row, run_config
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.problems import build_problem


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


def test_figures_are_those_of_the_numbers_drawn(pocket: LanguageModel) -> None:
    problem = build_problem(run_config(pocket, 0, 1).problems[0], pocket)
    found = row("base", pocket, problem).metrics
    q = np.exp(log_q_of_numbers(pocket, problem))
    share = q / q.sum()
    assert found["kl"] == pytest.approx(float(np.sum(0.01 * np.log(0.01 / share))), rel=1e-9)
    assert found["kl_all"] == pytest.approx(float(np.sum(0.01 * np.log(0.01 / q))), rel=1e-9)
    prompt = problem.prompts[0]
    ids = problem.policy_ids(prompt)
    texts = [problem.text(one.tokens) for one in sample(pocket, ids, problem.moves(prompt), 400, 0)]
    valid = np.mean([text in {f" {n}" for n in range(100)} for text in texts])
    assert valid == pytest.approx(found["validity"], abs=4 * 0.025)


def test_r_is_one_for_the_numbers_and_small_for_all_else(pocket: LanguageModel) -> None:
    problem = build_problem(run_config(pocket, 0, 1).problems[0], pocket)
    prompt = problem.prompts[0]
    others = [pocket.encode(text) for text in (" 100", " 07", " ten", "7", " -3")]
    for z, scores in zip(
        numbers(pocket), problem.reward.log_reward(prompt, numbers(pocket)), strict=True
    ):
        assert scores[-1] == 0.0, problem.text(z)
    for scores in problem.reward.log_reward(prompt, others):
        assert scores[-1] < -8.0
    assert len(set(map(tuple, numbers(pocket)))) == 100
    assert {tuple(z) for z in draws(pocket, 0)} <= set(map(tuple, numbers(pocket)))


@pytest.mark.slow
def test_quick_form_makes_table_json_and_plot(tmp_path: Path) -> None:
    results = harness.run(
        EXPERIMENT,
        seeds=1,
        quick=True,
        work=tmp_path / "work",
        out=tmp_path / "out",
        console=Console(quiet=True),
    )
    rows = {row.method: row.metrics for row in results.trials[0]}
    assert rows["PPO"]["reward_evaluations"] == pytest.approx(
        rows["GFN"]["reward_evaluations"], rel=0.1
    )
    assert all(0 < metrics["validity"] <= 1 for metrics in rows.values())
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}


def test_claims_can_fail() -> None:
    def holds(base: float, ppo: float, gfn: float, validity: float) -> list[bool]:
        kls = {"base LM": base, "PPO": ppo, "GFN": gfn}
        summary = {
            method: {
                metric: harness.Cell(value, 0.0, 3)
                for metric, value in (("kl", kl), ("kl_all", kl), ("validity", validity))
            }
            for method, kl in kls.items()
        }
        return [claim.holds for claim in claims(summary)]

    assert holds(0.7, 0.5, 0.004, 1.0) == [True] * 5
    assert holds(0.7, 0.3, 0.004, 1.0) == [True, False, True, False, True]
    assert holds(0.7, 0.5, 0.004, 0.9) == [True, True, True, True, False]
