"""Every kind of posterior against the product of likelihoods that its documentation states, on every Z."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posteriori.lm import LanguageModel
from posteriori.metrics import log_sum_exp
from posteriori.oracle.enumeration import ExactPosterior
from posteriori.problems import Problem
from posteriori.rewards import draw_marks
from tests.problems.naive import Naive, build, exact
from tests.tiny import write_tiny_lm

LogReward = Callable[[list[int], str], float]


@pytest.fixture(scope="module")
def naive(tiny_lm: LanguageModel) -> Naive:
    return Naive(tiny_lm)


@pytest.fixture(scope="module")
def amateur(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Another random model with the same tokenizer."""
    return LanguageModel.load(str(write_tiny_lm(tmp_path_factory.mktemp("amateur"), seed=1)))


def agree(problem: Problem, log_reward: LogReward, prompt: int = 0) -> ExactPosterior:
    """The oracle's log R, σ and log Z are those of ``log_reward(tokens, text)`` on every string."""
    found = exact(problem, prompt)
    strings = [found.tree.tokens(k) for k in range(found.count)]
    expected = np.array([log_reward(list(z), problem.text(z)) for z in strings])
    np.testing.assert_allclose(found.log_reward, expected, rtol=1e-5, atol=1e-5)
    assert found.log_z == pytest.approx(log_sum_exp(expected), rel=1e-5)
    return found


def marked(problem: Problem, found: ExactPosterior, name: str) -> np.ndarray:
    strings = [found.tree.tokens(k) for k in range(found.count)]
    return draw_marks(problem.reward, problem.prompts[0], strings)[name]


def test_a_reward_model_scores_and_the_base_samples(
    tiny_lm: LanguageModel, amateur: LanguageModel
) -> None:
    terms = [{"target": "{z}{stop}", "model": amateur.name}]
    problem = build(tiny_lm, kind="product", terms=terms)
    stop = problem.moves(problem.prompts[0]).stop
    theirs = Naive(amateur)
    here = amateur.context(problem.prompts[0].fields["x"])
    agree(problem, lambda z, text: theirs(here, [*z, stop]))
    assert problem.lm is tiny_lm


def test_contrastive_with_an_anti_prompt(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(
        tiny_lm,
        kind="contrastive",
        temperature=0.5,
        prompts=[{"x": " the big", "other": " a small"}],
        contrast={"prompt": "{other}", "alpha": 1.5, "beta": 0.7, "token_floor_nats": -9.0},
    )
    stop = problem.moves(problem.prompts[0]).stop
    here, there = tiny_lm.context(" the big"), tiny_lm.context(" a small")

    def tokens(z: list[int]) -> np.ndarray:
        return naive.tokens(tuple(there), (*z, stop))

    found = agree(
        problem,
        lambda z, _: (
            2 * (1.5 * naive(here, [*z, stop]) - 0.7 * float(np.maximum(tokens(z), -9.0).sum()))
        ),
    )
    clipped = [bool((tokens(list(found.tree.tokens(k))) < -9.0).any()) for k in range(found.count)]
    assert 0 < sum(clipped) < found.count
    assert marked(problem, found, "clipped").tolist() == clipped


def test_contrastive_with_an_amateur(
    tiny_lm: LanguageModel, amateur: LanguageModel, naive: Naive
) -> None:
    problem = build(
        tiny_lm,
        kind="contrastive",
        contrast={"model": amateur.name, "token_floor_nats": -50.0},
    )
    weak, stop = Naive(amateur), problem.moves(problem.prompts[0]).stop
    x = tiny_lm.context(" the big")
    found = agree(problem, lambda z, _: naive(x, [*z, stop]) - 0.5 * weak(x, [*z, stop]))
    assert not marked(problem, found, "clipped").any()


def test_reverse_samples_the_beginning(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(tiny_lm, kind="reverse", prompts=[{"y": " sat on the mat."}], temperature=0.8)
    nothing, y = tiny_lm.context(""), tiny_lm.encode(" sat on the mat.")
    agree(problem, lambda z, _: (naive(nothing, z) + naive(nothing + z, y)) / 0.8)
    assert problem.policy_ids(problem.prompts[0]) == tiny_lm.context(" sat on the mat.")


LABELS = [" happy", " sad", " big"]


def test_reasoning_with_the_penalty_of_wrong_labels(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(
        tiny_lm,
        kind="reasoning",
        prompts=[{"x": " the cat", "y": " sad"}],
        labels=LABELS,
        wrong_label_penalty_nats=30.0,
    )
    x = tiny_lm.context(" the cat")
    ids = {label: tiny_lm.encode(label) for label in LABELS}

    def wrong(z: list[int]) -> bool:
        return max(ids, key=lambda label: naive(x + z, ids[label])) != " sad"

    found = agree(
        problem,
        lambda z, _: naive(x, z) + naive(x + z, ids[" sad"]) - 30.0 * wrong(z),
    )
    expected = [wrong(list(found.tree.tokens(k))) for k in range(found.count)]
    assert 0 < sum(expected) < found.count
    assert marked(problem, found, "mislabelled").tolist() == expected
    assert problem.policy_ids(problem.prompts[0]) == x


def test_reasoning_without_labels_is_infilling(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(tiny_lm, kind="reasoning")
    x, y = tiny_lm.context(" the big"), tiny_lm.encode(" then the bird ate.")
    agree(problem, lambda z, _: naive(x, z + y))


def test_words_are_counted(tiny_lm: LanguageModel, naive: Naive) -> None:
    """ " cat" begins a word, "a" goes on with one."""
    problem = build(
        tiny_lm, kind="constrained", alphabet=[" cat", "a"], constraint={"words": [2, 2]}
    )
    x, stop = tiny_lm.context(" the big"), problem.moves(problem.prompts[0]).stop
    found = agree(problem, lambda z, _: naive(x, [*z, stop]))
    texts = {problem.text(found.tree.tokens(k)) for k in range(found.count)}
    assert texts == {" cat cat", " cata cat", " cat cata", "a cat", "aa cat", "a cata"}


def short(text: str, fields: dict[str, str]) -> bool:
    """A predicate that no mask knows."""
    return len(text) <= int(fields["most"])


def test_a_predicate_has_a_floor(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(
        tiny_lm,
        kind="constrained",
        prompts=[{"x": " the big", "most": "8"}],
        constraint={"predicate": f"{__name__}:short", "floor_nats": -6.0},
    )
    x, stop = tiny_lm.context(" the big"), problem.moves(problem.prompts[0]).stop
    found = agree(problem, lambda z, text: naive(x, [*z, stop]) - 6.0 * (len(text) > 8))
    assert 0 < marked(problem, found, "violating").sum() < found.count


def test_a_mask_and_a_predicate_together(tiny_lm: LanguageModel, naive: Naive) -> None:
    problem = build(
        tiny_lm,
        kind="constrained",
        prompts=[{"x": " the big", "most": "8"}],
        constraint={"contains": [" ran"], "predicate": f"{__name__}:short"},
    )
    x, stop = tiny_lm.context(" the big"), problem.moves(problem.prompts[0]).stop
    found = agree(problem, lambda z, text: naive(x, [*z, stop]) - 10.0 * (len(text) > 8))
    assert all(" ran" in problem.text(found.tree.tokens(k)) for k in range(found.count))


@pytest.mark.parametrize("masked", [True, False])
def test_uniform(tiny_lm: LanguageModel, naive: Naive, masked: bool) -> None:
    """Masked: R = 1 everywhere. Unmasked: 1 where it matches, e^floor · p_LM elsewhere."""
    constraint: dict[str, Any] = {"regex": "( cat| ran)+", "masked": masked}
    if not masked:
        constraint["floor_nats"] = -9.0
    problem = build(tiny_lm, kind="uniform", constraint=constraint)
    x, stop = tiny_lm.context(" the big"), problem.moves(problem.prompts[0]).stop
    found = agree(
        problem,
        lambda z, text: 0.0 if "slept" not in text else -9.0 + naive(x, [*z, stop]),
    )
    assert found.count == (2 + 4 + 8 if masked else 3 + 9 + 27)
    assert found.log_z == pytest.approx(math.log(2 + 4 + 8), abs=1e-4)


def test_uniform_over_all_legal_z(tiny_lm: LanguageModel) -> None:
    found = exact(build(tiny_lm, kind="uniform"))
    np.testing.assert_allclose(np.exp(found.log_sigma), 1 / 39)


def test_one_policy_prompt_cannot_stand_for_two_posteriors(tiny_lm: LanguageModel) -> None:
    """Several y for one x: refused unless the policy sees y."""
    from posteriori.errors import UserError

    prompts = [{"x": " the cat", "y": " sat."}, {"x": " the cat", "y": " ran."}]
    for kind in ("reasoning", "infilling"):
        with pytest.raises(UserError, match=r"prompts '0' and '1' differ in \{y\}.*policy_prompt"):
            build(tiny_lm, kind=kind, prompts=prompts)
        build(tiny_lm, kind=kind, prompts=prompts, policy_prompt="{y}{x}")
    # What the reward does not look at may differ.
    build(tiny_lm, kind="tempered", prompts=prompts)
    with pytest.raises(UserError, match=r"differ in \{y\}"):
        build(
            tiny_lm,
            kind="constrained",
            prompts=prompts,
            constraint={"predicate": f"{__name__}:short"},
        )


def test_the_other_model_is_loaded_once_by_name(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    from posteriori.config import parse
    from posteriori.problems import build_problems

    amateur = str(write_tiny_lm(tmp_path / "amateur", seed=1))
    block = {
        "kind": "contrastive",
        "prompts": [{"x": " the"}],
        "stop": ".",
        "max_tokens": 2,
        "contrast": {"model": amateur},
    }
    config = parse(
        {
            "run": "r",
            "model": tiny_lm.name,
            "problems": [{"name": "a", **block}, {"name": "b", **block}],
        }
    )
    a, b = build_problems(config, tiny_lm)
    models = [problem.reward.terms[1][1] for problem in (a, b)]
    assert models[0] is models[1] and models[0].name == amateur
