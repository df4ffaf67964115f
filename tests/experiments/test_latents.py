"""EM, transfer and trees of thoughts: their problems on the model that ships, their claims and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments import em, transfer, tree_of_thoughts
from experiments.em.problem import TERMS
from experiments.harness import Experiment, Results, Row, Trial
from posteriori.lm import LanguageModel
from posteriori.pocket.arithmetic import correct_answer
from posteriori.problems import build_problems


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


def trial(directory: Path) -> Trial:
    return Trial(seed=0, quick=True, directory=directory, console=Console(quiet=True))


def test_questions_have_digits_for_results_and_right_answers() -> None:
    found = em.questions(seed=3, count=40)
    assert len(dict(found)) == 40
    for question, answer in found:
        a, first, b, second, c = question.split()
        assert 0 <= correct_answer([int(a), int(b)], [first]) <= 9
        assert correct_answer([int(a), int(b), int(c)], [first, second]) == int(answer)
    assert em.questions(seed=3, count=40) == found != em.questions(seed=4, count=40)


def test_a_chain_is_scored_as_the_text_it_stands_for(pocket: LanguageModel, tmp_path: Path) -> None:
    (problem,) = build_problems(em.config(trial(tmp_path)), pocket)
    prompt = problem.prompts[0]
    moves = problem.moves(prompt)
    assert moves.count() == em.CHAINS
    a, first, b, second, c = prompt.fields["x"].split()
    z = pocket.encode(f" {a} {first} {b} = 7, 7 {second} {c} = 1")
    (scores,) = problem.reward.log_reward(prompt, [z])
    text = TERMS[0].context.replace("{x}", prompt.fields["x"])
    context = pocket.context(text)
    whole = [*context, *z, *pocket.encode(f". The answer is {prompt.fields['y']}.")]
    with torch.no_grad():
        log_p = torch.log_softmax(pocket.model(torch.tensor([whole])).logits[0].double(), dim=-1)
    expected = sum(float(log_p[i - 1, whole[i]]) for i in range(len(context), len(whole)))
    assert scores[-1] == pytest.approx(expected, abs=1e-3)


def test_the_three_posteriors_differ_in_what_the_policy_sees(pocket: LanguageModel) -> None:
    problems = build_problems(transfer.config(transfer.TASKS, 1, 0), pocket)
    assert [problem.name for problem in problems] == list(transfer.TASKS)
    seen = {
        tuple(problem.policy_ids(prompt))
        for problem in problems
        for prompt in (*problem.prompts, *problem.test_prompts)
    }
    assert len(seen) == sum(len(p.prompts) + len(p.test_prompts) for p in problems)
    assert all(problem.moves(problem.prompts[0]).count() <= 5000 for problem in problems)


def test_tree_questions_have_answers_their_trees_can_reach(
    pocket: LanguageModel, tmp_path: Path
) -> None:
    (problem,) = build_problems(tree_of_thoughts.config(trial(tmp_path)), pocket)
    for question, answer in (*tree_of_thoughts.TRAINED, *tree_of_thoughts.NEW):
        a, first, b, second, c = question.split()
        assert 1 <= correct_answer([int(a), int(b)], [first]) <= 6
        assert correct_answer([int(a), int(b), int(c)], [first, second]) == int(answer)
    prompt = problem.prompts[0]
    z = pocket.encode(" 3 - 1 = 2 ( 2 + 2 = 3 ; 2 + 2 = 4 ;) 3 - 1 = 3 ( 3 + 2 = 5 ;)")
    assert len(z) == 32 <= tree_of_thoughts.MAX_TOKENS
    (scores,) = problem.reward.log_reward(prompt, [z])
    assert list(np.flatnonzero(np.isfinite(scores))) == [19, 32]


def results(name: str, rows: dict[str, dict[str, float]]) -> Results:
    trials = {seed: [Row(method, metrics) for method, metrics in rows.items()] for seed in (0, 1)}
    return Results(name, False, trials, {0: 1.0, 1: 1.0}, ["a machine"])


def em_rows(gap: float, new: float) -> dict[str, dict[str, float]]:
    return {
        f"{done} M steps": {
            "evidence": -3.0 + done,
            "bound": -3.0 + done - gap,
            "bound_se": 0.01,
            "gap": gap,
            "evidence_new": -3.0 + new * done,
        }
        for done in range(em.ROUNDS + 1)
    }


def transfer_rows(own: float, other: float, many: float) -> dict[str, dict[str, float]]:
    rows = {"base LM": {f"kl_{task}": 5.0 for task in transfer.TASKS}}
    for mine in transfer.TASKS:
        rows[f"trained on {mine}"] = {
            f"kl_{task}": own if task == mine else other for task in transfer.TASKS
        }
    return rows | {"trained on all three": {f"kl_{task}": many for task in transfer.TASKS}}


def tree_rows(tv: float, kl: float) -> dict[str, dict[str, float]]:
    return {
        f"{sampler}, {which} questions": {"tv": tv, "kl_posterior": kl if ours else 20.0}
        for which in ("trained", "new")
        for sampler, ours in (("base LM", False), ("policy", True))
    }


@pytest.mark.parametrize(
    ("experiment", "rows", "holds"),
    [
        (em.EXPERIMENT, em_rows(0.05, 0.5), [True] * 4),
        (em.EXPERIMENT, em_rows(-0.05, -0.5), [True, False, True, False]),
        (em.EXPERIMENT, em_rows(0.2, 0.5), [True, True, False, True]),
        (transfer.EXPERIMENT, transfer_rows(0.1, 2.0, 0.2), [True] * 3),
        (transfer.EXPERIMENT, transfer_rows(2.0, 1.0, 3.0), [False] * 3),
        (tree_of_thoughts.EXPERIMENT, tree_rows(0.02, 0.1), [True] * 3),
        (tree_of_thoughts.EXPERIMENT, tree_rows(0.2, 5.0), [False] * 3),
    ],
)
def test_claims_can_fail_and_pictures_are_drawn(
    experiment: Experiment, rows: dict[str, dict[str, float]], holds: list[bool], tmp_path: Path
) -> None:
    found = results(experiment.name, rows)
    assert [claim.holds for claim in experiment.claims(found.summary())] == holds
    assert experiment.plot is not None
    experiment.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
