"""Tool outputs inside Z: moves, masks, failures, and the exact posterior with them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from posteriori.decoding import sample
from posteriori.errors import CorruptPayload, UserError
from posteriori.groups import legal_rows
from posteriori.lm import LanguageModel
from posteriori.metrics import log_sum_exp
from posteriori.moves import LegalMoves
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.oracle.scoring import sequence_log_q
from posteriori.oracle.strings import StringTree
from posteriori.seams import Prompt
from posteriori.tools import BoundTool, ToolSpan
from tests.actors.conftest import naive_log_q
from tests.learner.helpers import LengthReward, trajectory
from tests.tools.parrot import FAILURE, Parrot, parrot_moves
from tests.tools.problem import parrot_problem


def ids(lm: LanguageModel, text: str) -> list[int]:
    return lm.encode(text)


@pytest.fixture(scope="module")
def moves(tiny_lm: LanguageModel) -> LegalMoves:
    return parrot_moves(tiny_lm, 1, 3)


@pytest.mark.parametrize(
    ("actions", "z", "spans"),
    [
        (" cat dog", " cat dog", []),
        (" cat then", " cat then cat cat", [ToolSpan(2, 4, False)]),
        (
            " cat then then",
            " cat then cat cat then cat cat",
            [ToolSpan(2, 4, False), ToolSpan(5, 7, False)],
        ),
        (" then dog", f" then{FAILURE} dog", [ToolSpan(1, 2, True)]),
        (" fish then", f" fish then{FAILURE}", [ToolSpan(2, 3, True)]),
    ],
)
def test_actions_and_what_the_tool_answers(
    tiny_lm: LanguageModel, moves: LegalMoves, actions: str, z: str, spans: list[ToolSpan]
) -> None:
    tokens = moves.execute(ids(tiny_lm, actions))
    assert tiny_lm.text(tokens) == z
    assert list(moves.spans(tokens)) == spans
    assert moves.actions(tokens) == ids(tiny_lm, actions)


def test_masks_see_actions_alone(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    tokens = ids(tiny_lm, " cat then cat cat dog")
    masks = moves.masks(tokens)
    *_, stop = masks.T
    # Before " cat" min_tokens forbids ⊤; before the parrot's two words nothing is legal.
    assert stop.tolist() == [False, True, False, False, True, True]
    assert masks[:, :-1].any(axis=1).tolist() == [True, True, False, False, True, False]
    assert moves.longest == 9
    assert moves.count() == 4 + 16 + 64


def test_a_z_without_its_tool_output_is_illegal(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    for z in (" cat then", " cat then dog dog", " cat then cat"):
        with pytest.raises(ValueError, match="not what the tool answers"):
            moves.masks(ids(tiny_lm, z))


def test_the_longest_z_under_an_automaton(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    # The trigger only as second move: one span of two tokens.
    once = LegalMoves(
        moves.alphabet, moves.stop, 0, 3,
        np.array([[1, 1, 1, -1], [2, 2, 2, 2], [2, 2, 2, -1]]), np.ones(3, dtype=np.bool_),
        moves.tool,
    )  # fmt: skip
    assert once.longest == 5


class Recorder:
    """Answers from a list of functions, one a call."""

    triggers: Sequence[str] = (" then",)

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.texts: list[str] = []

    def run(self, text: str) -> str | None:
        self.texts.append(text)
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer  # type: ignore[return-value]


@pytest.mark.parametrize("answer", [None, "", " cat cat cat", 7, [].pop])
def test_what_is_no_answer_is_the_failed_span(tiny_lm: LanguageModel, answer: object) -> None:
    tool = BoundTool(Recorder(answer), tiny_lm, max_output_tokens=2, failure=FAILURE)
    assert tool.output(ids(tiny_lm, " dog then")) == tuple(ids(tiny_lm, FAILURE))


def test_a_tool_that_hangs_is_a_failed_span_and_in_the_end_an_error(tiny_lm: LanguageModel) -> None:
    released = threading.Event()
    recorder = Recorder(*[released.wait] * 8)
    tool = BoundTool(recorder, tiny_lm, timeout_seconds=0.01, failure=FAILURE)
    words = itertools.cycle([" cat", " dog"])
    texts = [" a" * n + next(words) + " then" for n in range(8)]
    for text in texts[:-1]:
        assert tool.output(ids(tiny_lm, text)) == tuple(ids(tiny_lm, FAILURE))
    with pytest.raises(UserError, match="8 times"):
        tool.output(ids(tiny_lm, texts[-1]))
    released.set()


def test_an_answer_is_asked_for_once(tiny_lm: LanguageModel) -> None:
    recorder = Recorder(" cat", " dog")
    tool = BoundTool(recorder, tiny_lm, timeout_seconds=5.0, failure=FAILURE)
    z = ids(tiny_lm, " big then")
    assert tool.output(z) == tool.output(z) == tuple(ids(tiny_lm, " cat"))
    assert recorder.texts == [" big then"]


def test_stored_spans_are_replayed_verbatim(tiny_lm: LanguageModel) -> None:
    """An actor's tool failed, this process's would not: what is stored counts."""
    problem = parrot_problem(tiny_lm, 1, 3)
    prompt = problem.prompts[0]
    here = problem.moves(prompt)
    tokens = ids(tiny_lm, f" cat then{FAILURE} dog")
    action = np.array([True, True, False, True])
    stored = trajectory(
        problem, prompt, tokens, action=action,
        stop_legal=np.array([False, True, False, True, True]),
        log_reward=np.zeros(5, np.float32),
    )  # fmt: skip
    rows = legal_rows(stored, here)
    assert rows.any(axis=1).tolist() == [True, True, False, True, True]
    assert here.execute(ids(tiny_lm, " cat then dog")) == tokens
    wrong = trajectory(
        problem, prompt, tokens, action=action,
        stop_legal=np.array([False, True, True, True, True]),
        log_reward=np.zeros(5, np.float32),
    )  # fmt: skip
    with pytest.raises(CorruptPayload, match="stopping after 2 tokens"):
        legal_rows(wrong, here)


def test_tools_that_cannot_be_called_are_refused(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    deaf = Recorder()
    deaf.triggers = (" no such", "xyz")
    with pytest.raises(UserError, match="No trigger of the tool is one token"):
        BoundTool(deaf, tiny_lm, failure=FAILURE)
    with pytest.raises(UserError, match="failed tool span"):
        BoundTool(Parrot(), tiny_lm, failure=" ?")
    with pytest.raises(UserError, match="would never be called"):
        LegalMoves.free(moves.alphabet[:2], moves.stop, 1, 2, moves.tool)


# ------------------------------------------------------------------------------------- oracle


def test_the_tree_holds_every_z_with_its_spans(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    tree = StringTree.of(moves, 1000)
    found = {tuple(tree.tokens(k)) for k in range(tree.count)}
    alphabet = moves.alphabet.tolist()
    expected = {
        tuple(moves.execute(z)) for n in (1, 2, 3) for z in itertools.product(alphabet, repeat=n)
    }
    assert found == expected
    for k in range(0, tree.count, 7):
        assert tree.index(tree.tokens(k)) == k
        assert tree.token_depths[tree.strings[k]] == len(tree.tokens(k))


def test_exact_log_q_skips_tool_outputs(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    tree = StringTree.of(moves, 1000)
    prompt = tiny_lm.context(" the")
    log_q = exact_log_q(tree, tiny_lm, prompt)
    assert np.exp(log_q).sum() == pytest.approx(1.0, abs=1e-6)
    strings = [tree.tokens(k) for k in range(tree.count)]
    strings, log_q = strings[::3], log_q[::3]
    naive = [naive_total(tiny_lm, prompt, z, moves) for z in strings]
    np.testing.assert_allclose(log_q, naive, atol=1e-4)
    np.testing.assert_allclose(sequence_log_q(tiny_lm, prompt, moves, strings), naive, atol=1e-4)


def naive_total(lm: LanguageModel, prompt: list[int], z: list[int], moves: LegalMoves) -> float:
    log_q, log_q_stop = naive_log_q(lm.model, prompt, z, moves)
    return sum(log_q) + log_q_stop[-1]


def test_the_exact_posterior_scores_tool_outputs(tiny_lm: LanguageModel) -> None:
    problem = parrot_problem(tiny_lm, 1, 3)
    prompt = problem.prompts[0]
    exact = enumerate_posterior("parrot", prompt, problem.moves(prompt), problem.reward, 1000)
    context = tiny_lm.context(prompt.fields["x"])
    for k in range(0, exact.count, 5):
        z = exact.tree.tokens(k)
        row = torch.tensor([[*context, *z, problem.moves(prompt).stop]])
        with torch.no_grad():
            log_p = torch.log_softmax(tiny_lm.model(row).logits[0].double(), dim=-1)
        places = range(len(context) - 1, row.shape[1] - 1)
        total = sum(float(log_p[i, row[0, i + 1]]) for i in places)
        assert exact.log_reward[k] == pytest.approx(total, abs=1e-4)
    assert exact.log_z == pytest.approx(log_sum_exp(exact.log_reward))


def test_samples_in_process_follow_exact_q(tiny_lm: LanguageModel) -> None:
    moves = parrot_moves(tiny_lm, 1, 2)
    prompt = tiny_lm.context(" the")
    tree = StringTree.of(moves, 1000)
    q = np.exp(exact_log_q(tree, tiny_lm, prompt))
    samples = sample(tiny_lm, prompt, moves, 4000, seed=3)
    counts = np.bincount([tree.index(s.tokens) for s in samples], minlength=tree.count)
    large = q * len(samples) >= 5
    observed, expected = counts[large], q[large] * len(samples)
    # Pearson's statistic of a true model exceeds its degrees of freedom by 5 deviations never.
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < large.sum() + 5 * np.sqrt(2 * large.sum())
    by_tokens = {tuple(tree.tokens(k)): np.log(q[k]) for k in range(tree.count)}
    for drawn in samples[:200]:
        assert drawn.total_log_q == pytest.approx(by_tokens[tuple(drawn.tokens)], abs=1e-4)
        assert drawn.spans == moves.spans(drawn.tokens)


def test_rewards_of_other_kinds_take_any_prefix(tiny_lm: LanguageModel, moves: LegalMoves) -> None:
    exact = enumerate_posterior("length", Prompt("0", {"x": " the"}), moves, LengthReward(), 1000)
    longest = max(range(exact.count), key=lambda k: len(exact.tree.tokens(k)))
    z = exact.tree.tokens(longest)
    assert len(z) == 3 + 4  # cat then cat cat then cat cat
    assert (
        exact.log_reward[longest]
        == LengthReward().log_reward(Prompt("0", {"x": " the"}), [z])[0][-1]
    )
