"""Building problems: every mistake is found before anything starts, with the offending value and a fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem

DEFAULTS: dict[str, Any] = {
    "name": "p",
    "kind": "tempered",
    "prompts": [{"x": " the cat"}],
    "alphabet": [" sat", " ran"],
    "stop": ".",
    "max_tokens": 3,
}


def build(lm: LanguageModel, **settings: Any) -> Problem:
    return build_problem(ProblemConfig.model_validate({**DEFAULTS, **settings}), lm)


def test_prompts_from_a_file(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(
        "\n".join(json.dumps({"x": x, "id": f"p-{x.strip()}"}) for x in (" cat", " dog"))
    )
    problem = build(tiny_lm, prompts=str(file))
    assert [prompt.id for prompt in problem.prompts] == ["p-cat", "p-dog"]
    assert problem.policy_ids(problem.prompts[1]) == tiny_lm.context(" dog")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{bad", "line 1: not JSON"),
        ('{"x": 1}', "not an object of strings"),
        ("\n", "line 1: the line is empty"),
    ],
)
def test_malformed_prompt_files(
    tiny_lm: LanguageModel, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        build(tiny_lm, prompts=str(file))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alphabet": [" sat", " satt"]}, r"Alphabet entry ' satt' is not one token"),
        ({"stop": " cat sat"}, "Terminator ' cat sat' is not one token.*' cat', ' sat'"),
        ({"stop": " sat"}, "also in the alphabet"),
        ({"max_tokens": 500}, "needs up to 50[0-9] tokens, but the context of .* is 128"),
        ({"policy_prompt": "{q}"}, r"uses \{q\}"),
        ({"policy_prompt": "{x}{z}"}, r"holds \{z\} or"),
        ({"kind": "infilling"}, r"uses \{y\}"),
        (
            {"kind": "product", "terms": [{"target": "{z}", "context": "{x}{z}"}]},
            "both context and target",
        ),
        ({"kind": "product", "terms": [{"target": "{z}{stop} and"}]}, r"\{stop\} does not end"),
        ({"kind": "constrained", "constraint": {"regex": "("}}, "cannot be read"),
        ({"kind": "constrained", "constraint": {"regex": " fish"}}, "log Z = -inf"),
        ({"kind": "constrained", "constraint": {"contains": [" fish"]}}, "not in the alphabet"),
        ({"prompts": [{"x": "a", "id": "1"}, {"x": "b", "id": "1"}]}, "same id"),
        ({"kind": "python", "factory": "nowhere:thing"}, "cannot import factory 'nowhere:thing'"),
        ({"model": "/nowhere/at-all"}, "Cannot load a causal language model from"),
    ],
)
def test_mistakes_are_named(tiny_lm: LanguageModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_problem(
            ProblemConfig.model_validate({**DEFAULTS, **settings}),
            tiny_lm,
            lambda name: tiny_lm if name is None else LanguageModel.load(name),
        )


FACTORY = '''
from posteriori.problems import Problem, build_problem
from posteriori.factors import FactorReward


def rhyme(config, lm):
    """Tempered continuation that prefers to end in " ran"."""
    plain = build_problem(config.model_copy(update={"kind": "tempered", "factory": None}), lm)
    reward = FactorReward(
        plain.reward, lambda prompt, text, tokens: 2.0 * text.endswith(" ran"), lm.text
    )
    return Problem(config.name, plain.prompts, reward, lm, plain.policy_prompt, plain.legal_moves)
'''


def test_a_problem_of_your_own_lives_outside_the_package(
    tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_problem.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = build(tiny_lm, kind="python", factory="my_problem:rhyme")
    plain = build(tiny_lm)
    ran = tiny_lm.one_token(" ran", "")
    z = [ran, tiny_lm.one_token(" sat", ""), ran]
    (ours,) = problem.reward.log_reward(problem.prompts[0], [z])
    (theirs,) = plain.reward.log_reward(plain.prompts[0], [z])
    assert ours[1:] - theirs[1:] == pytest.approx([2.0, 0.0, 2.0])
    sys.modules.pop("my_problem")


def test_words_a_tokenizer_does_not_have(tmp_path: Path) -> None:
    """A word-level tokenizer without an unknown token raises; the user is told which text."""
    from posteriori.markov_model import write_markov_lm

    lm = LanguageModel.load(str(write_markov_lm(tmp_path / "markov")))
    with pytest.raises(UserError, match="cannot tokenise 'zebra'"):
        lm.encode("zebra")
