"""Trees of thoughts: parsing, log R against plain forwards, and the worked example's automaton."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.tree_of_thoughts.problem import operands, pattern
from posteriori.commands.local import train_locally
from posteriori.config import parse as parse_config
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.oracle.cases import exact_cases
from posteriori.problems import Problem
from posteriori.problems.automata import from_regex
from posteriori.seams import Prompt
from posteriori.thoughts import Marks, TreeReward, parse

OPEN, CLOSE, LEAF = 100, 101, 102
MARKS = Marks(OPEN, CLOSE, LEAF)


def test_a_flattened_tree_is_read_back() -> None:
    # 1 2 ( 3 ; 4 ( 5 ; ) ) 6 ;
    tokens = [1, 2, OPEN, 3, LEAF, 4, OPEN, 5, LEAF, CLOSE, CLOSE, 6, LEAF]
    found = parse(tokens, MARKS)
    assert found.inner == [((1, 2),), ((1, 2), (4,))]
    assert found.leaves == [((1, 2), (3,)), ((1, 2), (4,), (5,)), ((6,),)]


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [1],
        [1, OPEN, 2, LEAF],
        [1, OPEN, CLOSE],
        [1, LEAF, CLOSE],
        [LEAF],
        [1, OPEN, LEAF, CLOSE],
        [1, OPEN, 2, CLOSE],
        [1, OPEN, 2, LEAF, CLOSE, 3],
        [1, LEAF, 2, OPEN, CLOSE],
    ],
)
def test_what_is_no_tree_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match=r"thought is empty|not opened|not complete"):
        parse(tokens, MARKS)


def tiny_trees(lm: LanguageModel) -> Problem:
    """One or two thoughts of one word, each with one or two children; b, c and d are the marks."""
    words = [" cat", " dog", "b", "c", "d"]
    ids = np.array([lm.one_token(word, "word") for word in words])
    thought = "( cat| dog)"
    automaton = from_regex(f"({thought}b({thought}d){{1,2}}c){{1,2}}", words)
    moves = LegalMoves(ids, lm.one_token(".", "stop"), 1, 14, *automaton)
    marks = Marks(int(ids[2]), int(ids[3]), int(ids[4]))
    reward = TreeReward(
        lm, marks, lambda prompt: moves, context="{x}", answer=" sat{y}", going_on=" and"
    )
    prompts = [Prompt("0", {"x": " the big", "y": " on"}), Prompt("1", {"x": " a", "y": " in"})]
    return Problem(
        "tree", prompts, reward, lm, lambda p: lm.context(p.fields["x"]), lambda p: moves
    )


def naive(lm: LanguageModel, context: list[int], target: list[int]) -> float:
    with torch.no_grad():
        logits = lm.model(torch.tensor([context + target])).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return sum(float(log_p[len(context) + k - 1, token]) for k, token in enumerate(target))


def test_log_reward_is_that_of_plain_forwards(tiny_lm: LanguageModel) -> None:
    """Thoughts behind their own ancestors alone; Y averaged over leaves; at both legal prefixes."""
    problem = tiny_trees(tiny_lm)
    prompt = problem.prompts[0]
    cat, dog, b, c, d = (tiny_lm.one_token(w, "w") for w in (" cat", " dog", "b", "c", "d"))
    z = [cat, b, dog, d, cat, d, c, dog, b, dog, d, c]
    (found,) = problem.reward.log_reward(prompt, [z])
    assert list(np.flatnonzero(np.isfinite(found))) == [7, 12]

    x, y = tiny_lm.context(" the big"), tiny_lm.encode(" sat on")
    goes_on, ends = tiny_lm.encode(" and"), tiny_lm.encode(".")

    def leaf(first: int, second: int) -> tuple[float, float]:
        above = [*x, first, *goes_on]
        return naive(tiny_lm, above, [second, *ends]), naive(tiny_lm, [*above, second, *ends], y)

    scores = [naive(tiny_lm, x, [first, *goes_on]) for first in (cat, dog)]
    leaves = [leaf(cat, dog), leaf(cat, cat), leaf(dog, dog)]
    for place, inner, those in ((7, scores[:1], leaves[:2]), (12, scores, leaves)):
        answer = math.log(sum(math.exp(y_score) for _, y_score in those) / len(those))
        expected = sum(inner) + sum(own for own, _ in those) + answer
        assert found[place] == pytest.approx(expected, abs=1e-4)


def test_every_z_of_the_automaton_is_a_tree(tiny_lm: LanguageModel) -> None:
    problem = tiny_trees(tiny_lm)
    moves = problem.moves(problem.prompts[0])
    branches = 2 * (2 + 4)
    assert moves.count() == branches + branches**2
    (case, _) = exact_cases([problem], 1000)
    assert case.exact.count == moves.count()
    assert np.isfinite(case.exact.log_reward).all()  # each was parsed


def test_trees_about_sums_are_counted() -> None:
    """21 sets of children, 6 first results: 6·21 single thoughts and 15·21² ordered pairs of them."""
    words = [*(f" {digit}" for digit in range(10)), " +", " -", " =", " (", ")", " ;"]
    automaton = from_regex(pattern("3 - 1 + 2"), words)
    moves = LegalMoves(np.arange(len(words)), len(words), 1, 38, *automaton)
    assert moves.count() == 6 * 21 + 15 * 21**2
    assert operands("3 - 1 + 2") == ("3", r"\-", "1", r"\+", "2")
    with pytest.raises(UserError, match="three digits"):
        pattern("3 - 1")


@pytest.mark.slow
def test_a_policy_learns_the_posterior_over_trees(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    config = parse_config(
        {
            "run": "tree",
            "model": tiny_lm.name,
            "problems": [
                {"name": "tree", "kind": "tempered", "prompts": [{"x": " a"}], "max_tokens": 14}
            ],
            "sampling": {"engine": "transformers", "group_size": 32, "groups_in_flight": 4},
            "learner": {"steps": 100, "learning_rate": 0.003, "prompts_per_step": 1},
            "oracle_max_strings": 0,
        }
    )
    problem = tiny_trees(tiny_lm)
    problem = replace(problem, prompts=problem.prompts[1:])
    (case,) = exact_cases([problem], 1000)
    policy = train_locally(config, [problem], directory=tmp_path / "run", lm=tiny_lm).policy()
    base, trained = case.fidelity(tiny_lm), case.fidelity(policy)
    assert base.total_variation > 0.9 and base.kl_posterior_q > 5
    assert trained.total_variation < 0.1 and trained.kl_posterior_q < 0.1
