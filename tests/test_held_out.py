"""Held-out X's and gold Z's of a run file: read, checked, and refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.adapter_follower import ADAPTER_SLOTS
from actors.self_test import random_adapter
from actors.transformers_engine import TransformersEngine
from posteriori.commands.assessment import assess
from posteriori.commands.report import new_x_section
from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.oracle.cases import exact_cases
from posteriori.problems import Problem, build_problem

SETTINGS: dict[str, Any] = {
    "name": "p",
    "kind": "tempered",
    "alphabet": [" sat", " ran", " slept"],
    "stop": ".",
    "max_tokens": 2,
    "prompts": [{"x": " the cat", "z1": " sat ran"}, {"x": " a dog", "id": "dog"}],
    "test_prompts": [{"x": " the bird"}],
}


def build(lm: LanguageModel, **settings: Any) -> Problem:
    return build_problem(ProblemConfig.model_validate(SETTINGS | settings), lm)


def test_held_out_prompts_stand_apart(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    problem = build(tiny_lm)
    assert [prompt.id for prompt in problem.test_prompts] == ["test-0"]
    assert set(problem.by_id) == {"0", "dog"}
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text(" the cat\n a dog\n")
    test.write_text(" the bird\n")
    from_files = build(tiny_lm, prompts=str(train), test_prompts=str(test))
    assert [prompt.fields["x"] for prompt in from_files.prompts] == [" the cat", " a dog"]
    assert problem.policy_ids(from_files.test_prompts[0]) == tiny_lm.context(" the bird")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"test_prompts": [{"x": " a bird"}, {"x": " The  CAT"}]}, "'test-1' is prompt '0'"),
        # What the policy is conditioned on counts: another field does not make a new X.
        ({"test_prompts": [{"x": " the cat", "y": " sat"}]}, "'test-0' is prompt '0'"),
        ({"test_prompts": [{"x": " the bird", "id": "dog"}]}, "same id, 'dog'"),
        ({"test_prompts": [{"q": " the bird"}]}, r"uses \{x\}"),
        ({"test_prompts": []}, "no prompts"),
        ({"prompts": "x.jsonl", "prompts_format": "csv"}, "prompts_format|Input should be"),
        ({"gold": {"template": "{none}"}}, "no prompt has all fields"),
        ({"gold": {"template": " sat sat ran"}}, "no legal Z: token id .* at position 2"),
        ({"gold": {"template": ""}}, "no legal Z: may not end there"),
        ({"gold": {"template": "sat"}}, "no legal Z: token id .* not in the alphabet"),
    ],
)
def test_mistakes_are_named(tiny_lm: LanguageModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        build(tiny_lm, **settings)


def test_gold_from_a_template_or_a_file(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    sat, ran = tiny_lm.encode(" sat ran")
    assert build(tiny_lm, gold={"template": "{z1}"}).gold == {"0": [[sat, ran]]}
    file = tmp_path / "gold.jsonl"
    rows = [{"id": "dog", "z": " ran"}, {"id": "dog", "z": " sat"}, {"id": "dog", "z": " ran"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert build(tiny_lm, gold={"file": str(file)}).gold == {"dog": [[ran], [sat]]}
    file.write_text(json.dumps({"id": "cat", "z": " ran"}))
    with pytest.raises(UserError, match=r"gold.jsonl, line 1: no prompt 'cat'"):
        build(tiny_lm, gold={"file": str(file)})
    with pytest.raises(ValueError, match="exactly one of `template` and `file`"):
        build(tiny_lm, gold={"template": "{z1}", "file": str(file)})


def test_a_factory_has_held_out_prompts_too(
    tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held_out_factory.py").write_text(
        "from posteriori.problems import build_problem\n"
        "def plain(config, lm):\n"
        "    update = {'kind': 'tempered', 'factory': None, 'test_prompts': None}\n"
        "    return build_problem(config.model_copy(update=update), lm)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    python = {"kind": "python", "factory": "held_out_factory:plain"}
    assert build(tiny_lm, **python).test_prompts[0].fields == {"x": " the bird"}
    with pytest.raises(UserError, match="1 of 1 test items are found in training"):
        build(tiny_lm, **python, test_prompts=[{"x": " a dog"}])


def test_new_x_are_assessed_apart(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    """A policy that is the base LM with a random adapter: exact and drawn figures for both parts."""
    problem = build(tiny_lm)
    random_adapter(
        LanguageModel.load(tiny_lm.name).model, tmp_path / "a", rank=8, scale=0.3, seed=1
    )
    policy = tiny_lm.with_adapter(tmp_path / "a")
    engine = TransformersEngine(
        Path(tiny_lm.name), lora_rank=8, max_adapters=ADAPTER_SLOTS, device="cpu"
    )
    engine.add_adapter(1, tmp_path / "a")
    cases = exact_cases([problem], 1000, tmp_path / "oracle")
    assert [(case.name, case.held_out) for case in cases] == [
        ("p/0", False), ("p/dog", False), ("p/test-0", True),
    ]  # fmt: skip
    again = exact_cases([problem], 1000, tmp_path / "oracle")
    assert [case.exact.log_z for case in again] == [case.exact.log_z for case in cases]
    assert len({case.exact.log_z for case in cases}) == 3
    found = assess(
        [problem], cases, engine, tiny_lm, policy,
        adapter_version=1, draws=64, prompts_per_problem=8, seed=0,
    )  # fmt: skip
    engine.close()
    assert [item.held_out for item in found] == [False, False, True]
    new = found[2]
    assert new.exact is not None
    assert new.exact.policy.total_variation == pytest.approx(
        cases[2].fidelity(policy).total_variation
    )
    assert new.policy.log_z == pytest.approx(new.exact.log_z, abs=5 * new.policy.log_z_se + 0.05)
    trained, held_out = (line.strip("| ").split(" | ") for line in new_x_section(found)[6:8])
    assert (trained[:2], held_out[:2]) == (["trained", "2"], ["held out", "1"])
    assert float(held_out[2]) == pytest.approx(new.exact.policy.total_variation, abs=5e-4)
    assert new_x_section(found[:2]) == []
