"""Label-revealed rationales: what the LM writes once it is shown Y, cut where it stops being words."""

from __future__ import annotations

import pytest

from posteriori.config import ProblemConfig
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.problems.wishful import alphanumeric, wishful, with_wishful

REVEAL = "{x}{y} and"


@pytest.fixture(scope="module")
def problem(tiny_lm: LanguageModel) -> Problem:
    return build_problem(
        ProblemConfig.model_validate(
            {
                "name": "why",
                "kind": "reasoning",
                "prompts": [{"x": " the cat", "y": " sat"}, {"x": " a dog", "y": " ran"}],
                "gold": {"template": " big"},
                "max_tokens": 4,
            }
        ),
        tiny_lm,
    )


def test_they_are_draws_with_the_label_in_sight(problem: Problem, tiny_lm: LanguageModel) -> None:
    prompt = problem.prompts[0]
    found = wishful(problem, prompt, REVEAL, 40, seed=5)
    shown = tiny_lm.context(" the cat sat and")
    drawn = sample(tiny_lm, shown, problem.moves(prompt), 40, seed=5)
    expected = []
    for one in drawn:
        texts = [tiny_lm.text([t]) for t in one.tokens]
        cut = next((i for i, text in enumerate(texts) if not alphanumeric(text)), len(texts))
        if cut and one.tokens[:cut] not in expected:
            expected.append(one.tokens[:cut])
    assert found == expected and len(found) > 5
    assert all(z and problem.moves(prompt).stop_legal(z)[-1] for z in found)


def test_they_join_the_gold(problem: Problem) -> None:
    seeded = with_wishful(problem, REVEAL, 20, seed=0)
    big = problem.gold["0"][0]
    for index, prompt in enumerate(problem.prompts):
        known = seeded.gold[prompt.id]
        assert known[0] == big
        assert len(known) == len({tuple(z) for z in known})
        assert all(z in known for z in wishful(problem, prompt, REVEAL, 20, seed=index))
    assert problem.gold["0"] == [big]
