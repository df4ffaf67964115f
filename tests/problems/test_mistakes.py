"""Mistakes in the newer kinds are refused at submit time, with the offending value and a fix."""

from __future__ import annotations

from typing import Any

import pytest

from posteriori.config import parse
from posteriori.errors import RewardError, UserError
from posteriori.lm import LanguageModel
from tests.problems.naive import DEFAULTS, build

HERE = __name__
NOT_A_FUNCTION = 3


def never_two(text: str, fields: dict[str, str]) -> bool:
    """A predicate with a mistake: it divides by the number of words less two."""
    return 1 / (len(text.split()) - 2) > 0


def run_file(learner: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return {"run": "r", "problems": [{**DEFAULTS, **settings}], "learner": learner or {}}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "contrastive"}, "`contrast` belongs to kind `contrastive`"),
        ({"kind": "tempered", "contrast": {"model": "pocket"}}, "belongs to kind `contrastive`"),
        ({"kind": "contrastive", "contrast": {}}, "an anti-`prompt`, an amateur `model`"),
        (
            {"kind": "contrastive", "contrast": {"promt": "{y}"}},
            "problems.0.contrast.promt.*Did you mean `prompt`",
        ),
        ({"kind": "preference"}, "`preference` belongs to kind `preference`"),
        ({"kind": "infilling", "labels": ["a", "b"]}, "`labels` belong to kind `reasoning`"),
        ({"kind": "reasoning", "labels": ["a", "a"]}, "at least two"),
        ({"kind": "uniform", "temperature": 0.5}, "no temperature"),
        ({"kind": "constrained", "constraint": {}}, "a `predicate`, or both"),
        (
            {"kind": "constrained", "constraint": {"regex": "a", "words": [1, 2]}},
            "one of `regex`, `contains`, `words` and `automaton`",
        ),
        ({"kind": "constrained", "constraint": {"words": [3, 2]}}, r"words \[3, 2\]"),
        ({"kind": "constrained", "constraint": {"regex": "a", "floor_nats": -3}}, "`floor_nats`"),
        (
            {"kind": "product", "terms": [{"renormalise": True, "token_floor_nats": -3}]},
            "use one of both",
        ),
        (
            {"kind": "constrained", "constraint": {"predicate": "a:b"}},
            "problem 'p' falls by a step.*huber_delta_nats, such as 5",
        ),
        ({"kind": "reasoning", "labels": ["a", "b"]}, "huber_delta_nats"),
    ],
)
def test_in_the_run_file(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(run_file(**settings))


def test_a_floor_is_accepted_with_huber() -> None:
    config = parse(
        run_file(
            {"huber_delta_nats": 5.0}, kind="constrained", constraint={"predicate": "module:name"}
        )
    )
    assert config.problems[0].constraint.floor_nats == -10.0


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"kind": "constrained", "constraint": {"predicate": "nowhere:f"}},
            "cannot import predicate 'nowhere:f'",
        ),
        (
            {"kind": "constrained", "constraint": {"predicate": f"{HERE}:NOT_A_FUNCTION"}},
            "predicate .* is int, not a function",
        ),
        (
            {"kind": "preference", "preference": {"model": "nowhere.at:all"}},
            "cannot import reward model 'nowhere.at:all'",
        ),
        ({"kind": "contrastive", "contrast": {"prompt": "{other}"}}, r"uses \{other\}"),
        (
            {"kind": "preference", "preference": {"model": f"{HERE}:run_file", "reference": "{q}"}},
            r"uses \{q\}",
        ),
        ({"kind": "reverse", "prompts": [{"x": " the"}]}, r"uses \{y\}"),
        (
            {"kind": "reasoning", "labels": [" happy", " sad"]},
            "y is ' then the bird ate.', which is not one of the labels ' happy', ' sad'",
        ),
        ({"kind": "uniform", "constraint": {"regex": " fish", "masked": False}}, "log Z = -inf"),
    ],
)
def test_when_the_problem_is_built(
    tiny_lm: LanguageModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny_lm, **settings)


def test_a_predicate_that_raises_names_problem_prompt_and_z(tiny_lm: LanguageModel) -> None:
    problem = build(tiny_lm, kind="constrained", constraint={"predicate": f"{HERE}:never_two"})
    cat, ran = (tiny_lm.one_token(text, "") for text in (" cat", " ran"))
    problem.reward.log_reward(problem.prompts[0], [[cat]])
    message = (
        r"Problem 'p': its constraint raised ZeroDivisionError for prompt '0', Z = ' cat ran': "
        "division by zero"
    )
    with pytest.raises(RewardError, match=message):
        problem.reward.log_reward(problem.prompts[0], [[cat, ran]])
