"""The arithmetic experiment: what counts as right and valid, what is held out, and a trial from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.arithmetic import EXPERIMENT, assess
from experiments.arithmetic.problem import (
    MISSPECIFIED,
    OPERANDS,
    TESTED_ACTIONS,
    TRAINED_ACTIONS,
    WORKED,
    held_out,
    problem,
    run_config,
    training_prompts,
    write_items,
)
from experiments.arithmetic.trial import GFN_MISLED, PPO_MISLED, WRITTEN
from experiments.harness import Cell, Trial
from posteriori.config import ProblemConfig, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.pocket.arithmetic import apply, question_operands
from posteriori.problems import build_problem, build_problems


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sums")
    write_items(directory, train=20, test=12, demonstrations=8, seed=1)
    return directory


def test_every_right_chain_fits_and_is_right(pocket: LanguageModel, data: Path) -> None:
    for k in OPERANDS:
        section = problem(held_out(data, k), TESTED_ACTIONS)
        sums = build_problem(ProblemConfig.model_validate(section), pocket)
        for prompt in sums.prompts:
            question = prompt.fields["x"].removeprefix("Question: ").removesuffix(" = ? Answer:")
            chain = assess.written(sums, prompt, assess.right_chain(question))
            assert chain.text.endswith(f" = {prompt.fields['answer']}")
            assert assess.accuracy(sums, {prompt.id: [chain]})["valid"] == 1.0


def test_the_longest_right_chain_of_training_fits(pocket: LanguageModel) -> None:
    longest = max(
        len(pocket.encode(assess.right_chain(text)))
        for text in ("0 - 9 - 9 - 9", "9 + 9 + 9 + 9", "0 - 9 - 9 - 0", "9 - 9 - 9 - 9")
    )
    assert longest == 17 < TRAINED_ACTIONS


def test_gold_is_the_actions_of_the_right_chain(pocket: LanguageModel, data: Path) -> None:
    (sums,) = build_problems(run_config(data, seed=0, steps=4, gold=True), pocket)
    assert len(sums.gold) == 8
    for identity, (actions,) in sums.gold.items():
        prompt = sums.by_id[identity]
        text = sums.text(sums.moves(prompt).execute(actions))
        assert text.endswith(f" = {prompt.fields['answer']}")


def test_a_test_item_in_training_is_refused(pocket: LanguageModel, data: Path) -> None:
    config = run_config(data, seed=0, steps=4, gold=True)
    (section,) = config.problems
    assert isinstance(section.prompts, tuple)
    assert section.test_prompts is not None
    stolen = {**section.prompts[3], "id": "test-stolen"}
    leaking = section.model_copy(update={"test_prompts": (*section.test_prompts, stolen)})
    with pytest.raises(UserError, match="1 of 37 test items"):
        build_problems(RunConfig.model_validate({**dict(config), "problems": (leaking,)}), pocket)
    assert len(training_prompts(data)) == 28


@pytest.mark.parametrize(
    ("text", "answer", "valid"),
    [
        (" 1 - 9 = -8, -8 - 8 = -16", -16, True),
        (" 1 - 9 - 8 = 1", 1, False),
        (" 1 - 9 = -8, -8", None, False),
        (" 1 = ?, 1 - 9 = -8", -8, False),
        (" 1 - 9 = ?", None, False),
        (" 9 + 4 = 13, 13 - 5 = 8, 8 - 5 = 33", 33, True),
    ],
)
def test_what_a_chain_ends_in(text: str, answer: int | None, valid: bool) -> None:
    assert assess.last_result(text) == answer
    assert assess.is_valid(text) == valid


def test_the_steps_of_a_right_chain(pocket: LanguageModel) -> None:
    import random

    rng = random.Random(0)
    for _ in range(20):
        operands, signs = question_operands(rng, 4)
        text = str(operands[0]) + "".join(
            f" {s} {v}" for s, v in zip(signs, operands[1:], strict=True)
        )
        left = operands[0]
        for call, sign, right in zip(
            assess.right_chain(text).split(","), signs, operands[1:], strict=True
        ):
            assert call == f" {left} {sign} {right} ="
            left = apply(left, sign, right)


def test_claims_follow_the_means() -> None:
    def rows(**right: tuple[float, float, float]) -> dict[str, dict[str, Cell]]:
        return {
            name.replace("_", " "): {
                f"right{k}": Cell(value, 0.0, 3) for k, value in zip(OPERANDS, values, strict=True)
            }
            for name, values in right.items()
        }

    good = rows(
        SFT=(0.7, 0.3, 0.2), PPO=(0.3, 0.2, 0.1), GFN=(0.9, 0.8, 0.4),
        GFN_without_gold=(0.4, 0.2, 0.1),
    )  # fmt: skip
    good |= {PPO_MISLED: good["PPO"], GFN_MISLED: good["GFN"]}
    assert all(claim.holds for claim in EXPERIMENT.claims(good))
    bad = {**good, **rows(PPO=(0.71, 0.2, 0.1))}
    assert [claim.holds for claim in EXPERIMENT.claims(bad)].count(False) == 1


@pytest.mark.slow
def test_a_quick_trial(tmp_path: Path) -> None:
    rows = EXPERIMENT.run(Trial(0, True, tmp_path, Console(quiet=True)))
    by_method = {row.method: row.metrics for row in rows}
    assert by_method["GFN"]["reward_evaluations"] > 0
    assert by_method["log R: right chain"]["log_r"] > by_method["log R: first call alone"]["log_r"]
    assert all(0 <= by_method[m][f"right{k}"] <= 1 for m in ("SFT", "PPO", "GFN") for k in OPERANDS)


def test_the_misspecified_reward_prefers_the_question_repeated(
    pocket: LanguageModel, data: Path
) -> None:
    for context, repeated_wins in ((WORKED, False), (MISSPECIFIED, True)):
        section = problem(held_out(data, 4), TESTED_ACTIONS, context)
        sums = build_problem(ProblemConfig.model_validate(section), pocket)
        means = [
            np.mean(
                assess.log_rewards(
                    sums,
                    {
                        prompt.id: [assess.written(sums, prompt, write(prompt.fields["sum"]))]
                        for prompt in sums.prompts
                    },
                )
            )
            for write in (WRITTEN["the question repeated"], WRITTEN["right chain"])
        ]
        assert (means[0] > means[1] + 10) == repeated_wins
