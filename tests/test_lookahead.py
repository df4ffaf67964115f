"""Lookahead against sums over all completions, and the samplers that walk by it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actors.behaviour import MoveTable, behaviour_log_q
from posteriori import lookahead, smc
from posteriori.config import ConstraintConfig, ProblemConfig, RewardTerm
from posteriori.decoding import move_log_q, sample
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.lookahead import Lookahead
from posteriori.markov_model import write_markov_lm
from posteriori.moves import LegalMoves
from posteriori.ngrams import fit_ngrams, smoothed
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.enumeration import exact_log_q
from posteriori.oracle.markov import MarkovTable
from posteriori.oracle.scoring import sequence_log_q
from posteriori.policy import Policy
from posteriori.problems import Problem, build_problem
from posteriori.seams import Prompt, Reward
from posteriori.trajectory import Trajectory
from tests.small import KINDS, build, exact, string_index
from tests.tools.problem import parrot_problem

WORDS = [4, 7, 9]
"""Token ids."""
STOP = 1


def moves_with_a_late_seven(
    min_tokens: int, max_tokens: int, ahead: Lookahead | None = None
) -> LegalMoves:
    """Z holds a 7, with no 4 behind it."""
    moves = LegalMoves(
        alphabet=np.array(WORDS),
        stop=STOP,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        next_state=np.array([[0, 1, 0], [-1, 1, 1]]),
        accepting=np.array([False, True]),
    )
    return moves if ahead is None else moves.looking_ahead(ahead)


BIGRAMS = np.random.default_rng(0).dirichlet(np.ones(5), size=(1, 3))[..., :4]
"""Rows whose sums are below 1, as those of an alphabet are."""

TRIGRAMS = np.random.default_rng(1).dirichlet(np.ones(5), size=(4, 3))[..., :4]


@pytest.mark.parametrize("table", [BIGRAMS, TRIGRAMS], ids=["bigrams", "trigrams"])
@pytest.mark.parametrize(("min_tokens", "max_tokens"), [(1, 4), (3, 4), (4, 4)])
def test_promise_is_the_sum_over_legal_completions(
    min_tokens: int, max_tokens: int, table: NDArray[np.float64]
) -> None:
    moves = moves_with_a_late_seven(min_tokens, max_tokens, Lookahead(table))

    def p(z: tuple[int, ...], place: int, column: int) -> float:
        """p̂ of a move behind the first ``place`` actions of z."""
        memory = z[place - 2] + 1 if len(table) > 1 and place > 1 else 0
        return float(table[memory, z[place - 1], column])

    def completions(prefix: tuple[int, ...]) -> float:
        """Σ p̂(rest | prefix) over all rests, of columns, that make it a legal Z."""
        total = 0.0
        for more in range(max_tokens - len(prefix) + 1):
            for rest in itertools.product(range(3), repeat=more):
                z = (*prefix, *rest)
                if len(z) < min_tokens or not _legal([WORDS[c] for c in z]):
                    continue
                mass = np.prod([p(z, k, z[k]) for k in range(len(prefix), len(z))])
                total += float(mass) * (p(z, len(z), -1) if min_tokens < max_tokens else 1.0)
        return total

    checked = 0
    for length in range(max_tokens):
        for prefix in itertools.product(range(3), repeat=length):
            try:
                state = moves.states([WORDS[c] for c in prefix])[-1]
            except ValueError:
                continue
            found = moves.promises(length, state)
            assert found[-1] == 0.0
            for column in np.flatnonzero(moves.row(length, state)[:-1]):
                expected = completions((*prefix, int(column)))
                np.testing.assert_allclose(np.exp(found[column]), expected, rtol=1e-12)
                checked += 1
    assert checked > 20
    assert (moves.promises(max_tokens, moves.states([WORDS[1]])[-1]) == 0).all()


def _legal(z: list[int]) -> bool:
    return 7 in z and 4 not in z[z.index(7) :]


@pytest.mark.parametrize("table", [BIGRAMS, TRIGRAMS], ids=["bigrams", "trigrams"])
def test_engines_and_oracles_add_the_same_to_logits(table: NDArray[np.float64]) -> None:
    moves = moves_with_a_late_seven(1, 4, Lookahead(table))
    logits = np.random.default_rng(1).normal(size=(3, 4))
    places = [(0, 0), (1, moves.states([9])[-1]), (3, moves.states([9, 7, 9])[-1])]
    expected = move_log_q(moves.scores(logits, places), temperature=0.7)
    rows_of = MoveTable(moves)
    rows = [rows_of.row(*place) for place in places]
    scores = rows_of.scores(torch.from_numpy(logits), rows)
    found = behaviour_log_q(scores, torch.full((3, 1), 0.7), torch.zeros(3, 1))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    path = moves.path_scores(np.zeros((3, 4)), [9, 7])
    at = list(enumerate(moves.states([9, 7])))
    np.testing.assert_array_equal(path, moves.scores(np.zeros((3, 4)), at))


@pytest.fixture(params=[1, 2])
def guided(soft_lm: LanguageModel, request: pytest.FixtureRequest) -> Problem:
    return with_lookahead(build(soft_lm, **KINDS["constrained"]), request.param)


def test_every_log_q_is_of_one_sampler(guided: Problem, soft_lm: LanguageModel) -> None:
    """Draws, given strings, enumeration and the learner's forward pass; and it is not masking."""
    prompt = guided.prompts[0]
    moves, ids = guided.moves(prompt), guided.policy_ids(prompt)
    posterior = exact(guided)
    log_q = exact_log_q(posterior.tree, soft_lm, ids)
    assert np.exp(log_q).sum() == pytest.approx(1.0)
    strings = [posterior.tree.tokens(k) for k in range(posterior.count)]
    np.testing.assert_allclose(sequence_log_q(soft_lm, ids, moves, strings), log_q, atol=1e-5)
    index = string_index(posterior)
    drawn = sample(soft_lm, ids, moves, 64, seed=0)
    for one in drawn:
        assert one.total_log_q == pytest.approx(log_q[index[tuple(one.tokens)]], abs=1e-4)
    np.testing.assert_allclose(_learned(guided, strings), log_q, atol=1e-4)
    masked = build(soft_lm, **KINDS["constrained"])
    plain = exact_log_q(exact(masked).tree, soft_lm, ids)
    assert np.abs(plain - log_q).max() > 0.1


def _learned(problem: Problem, strings: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """log q of the strings by a fresh policy's forward pass."""
    from baselines.sft import sequence_log_q as learner_log_q
    from baselines.trained import given
    from posteriori.config import LearnerConfig
    from posteriori.groups import prepare

    prompt = problem.prompts[0]
    trajectories: list[Trajectory] = [given(problem, prompt, z) for z in strings]
    policy = Policy(problem.lm, LearnerConfig(lora_rank=8))
    found = learner_log_q(policy, [prepare(trajectories, problem)])
    return found.detach().double().numpy()


def test_z_is_unbiased_by_lookahead(guided: Problem, soft_lm: LanguageModel) -> None:
    runs = 400
    found = smc.sample(
        guided,
        guided.prompts[0],
        soft_lm,
        particles=4,
        runs=runs,
        twist=smc.likelihood_twist(),
        ess_threshold=0.9,
        seed=3,
    )
    ratios = np.exp(np.array([p.log_z for p in found.populations]) - exact(guided).log_z)
    error = ratios.std(ddof=1) / np.sqrt(runs)
    assert abs(ratios.mean() - 1) < 3 * error
    assert 0 < error < 0.1
    assert sum(p.resamplings for p in found.populations) > runs / 4


@pytest.fixture(scope="module")
def bigram_lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A Markov LM of order 1."""
    directory = tmp_path_factory.mktemp("bigram")
    return LanguageModel.load(str(write_markov_lm(directory / "lm", window=1)))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_fitted_ngrams_are_the_lms_where_it_is_a_bigram_model(
    bigram_lm: LanguageModel, exponent: float, order: int
) -> None:
    alphabet = [i for i in range(bigram_lm.vocabulary_size) if i not in bigram_lm.special_ids]
    moves = LegalMoves.free(alphabet, int(bigram_lm.tokenizer.eos_token_id), 1, 20)
    expected = exact_bigrams(bigram_lm, moves) ** exponent
    context = bigram_lm.context("ma mo")
    found, forwards = fit_ngrams(
        bigram_lm, [context], moves, 2000, seed=0, order=order, exponent=exponent
    )
    assert found.shape == (1 if order == 1 else len(alphabet) + 1, len(alphabet), len(alphabet) + 1)
    # a word that is visited n times has n / (n + 0.1) of its own row
    error = np.abs(found - expected).sum(axis=(1, 2)) / expected.sum()
    assert np.median(error) < 0.03 and error[0] < 0.03
    assert forwards > 2000


def test_a_row_without_visits_is_that_of_a_shorter_context() -> None:
    total, visits = np.zeros((3, 2, 3)), np.zeros((3, 2))
    total[1, 0], visits[1, 0] = [8.0, 1.0, 1.0], 10  # p = .8 .1 .1, ten times
    total[2, 0], visits[2, 0] = [1.0, 8.0, 1.0], 10
    found = smoothed(total, visits)
    np.testing.assert_allclose(found[0, 0], [0.45, 0.45, 0.1], atol=1e-3)
    np.testing.assert_allclose(found[1, 0], [0.8, 0.1, 0.1], atol=5e-3)
    # an action that never came has what moves have on average
    np.testing.assert_allclose(found[:, 1], np.tile([0.45, 0.45, 0.1], (3, 1)), atol=1e-9)
    bigrams = smoothed(total.sum(axis=0, keepdims=True), visits.sum(axis=0, keepdims=True))
    np.testing.assert_allclose(bigrams[0], found[0], atol=1e-9)


def exact_bigrams(lm: LanguageModel, moves: LegalMoves) -> NDArray[np.float64]:
    table = MarkovTable.from_model(lm.model)
    contexts = [table.context_of([int(token)]) for token in moves.alphabet]
    found: NDArray[np.float64] = np.exp(table.log_p[contexts][:, moves.column_tokens])[None]
    return found


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_where_the_bigrams_are_the_lm_the_lookahead_is_the_posterior(
    bigram_lm: LanguageModel, exponent: float
) -> None:
    """Six keywords in order and a sum modulo 7 in eight tokens, of p^β: every draw weighs Z."""
    problem = build_problem(
        ProblemConfig(
            name="late",
            kind="product",
            terms=(RewardTerm(target="{z}"),),
            constraint=ConstraintConfig(automaton="benchmarks.ladder.constraint:automaton"),
            prompts=({"x": "ma mo"},),
            min_tokens=8,
            max_tokens=8,
        ),
        bigram_lm,
    )
    problem = replace(problem, reward=Powered(problem.reward, exponent))
    (prompt,) = problem.prompts
    moves = problem.moves(prompt)
    ahead = moves.looking_ahead(Lookahead(exact_bigrams(bigram_lm, moves) ** exponent))
    guided = replace(problem, legal_moves=lambda prompt: ahead)
    table = MarkovTable.from_model(bigram_lm.model)
    posterior = MarkovPosterior(
        table, moves, tuple(problem.policy_ids(prompt)), exponent, np.zeros(len(table.log_p))
    )
    # p(a | s)^β h is what the policy draws by where its base is p^β
    sharp = bigram_lm.at_temperature(1 / exponent)
    by_h, blind = (
        smc.sample(p, prompt, sharp, particles=64, ess_threshold=0.0).populations[0]
        for p in (guided, problem)
    )
    np.testing.assert_allclose(by_h.log_weights, posterior.log_z, atol=1e-3)
    assert blind.log_weights.std() > 1
    # as a sampler of the oracle's table it has no distance from σ either
    if exponent == 1.0:
        by_table = replace(posterior, moves=guided.moves(prompt))
        assert by_table.kl_posterior_q(by_table.local_sampler()) < 1e-6
    assert posterior.kl_posterior_q(posterior.local_sampler()) > 1


@dataclass(frozen=True, eq=False)
class Powered:
    """R^exponent."""

    reward: Reward
    exponent: float
    version: int = 0

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> Any:
        return [self.exponent * row for row in self.reward.log_reward(prompt, sequences)]


def test_a_tool_may_answer(soft_lm: LanguageModel) -> None:
    """N-grams are of the policy's own tokens; what the parrot says between them moves no state."""
    problem = with_lookahead(parrot_problem(soft_lm, 1, 3), order=2)
    found = smc.sample(problem, problem.prompts[0], soft_lm, particles=64, runs=50, seed=1)
    ratios = np.exp(np.array([p.log_z for p in found.populations]) - exact(problem).log_z)
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 3 * error + 0.01


@pytest.mark.parametrize("memories", [1, 5])
def test_a_run_file_names_the_table(soft_lm: LanguageModel, tmp_path: Path, memories: int) -> None:
    problem = build(soft_lm, **KINDS["constrained"], temperature=0.5)
    moves = problem.moves(problem.prompts[0])
    table = np.random.default_rng(0).uniform(0.01, 0.2, (memories, 4, 5))
    path = tmp_path / "ahead.npz"
    # rows in another order than the alphabet's
    order = [2, 0, 3, 1]
    rows = table[:, order][:, :, [*order, 4]]
    rows = rows if memories == 1 else rows[[0, 3, 1, 4, 2]]
    lookahead.save(path, rows, moves.alphabet[order], 2.0, soft_lm.name)
    found = build(soft_lm, **KINDS["constrained"], temperature=0.5, lookahead=path)
    ahead = found.moves(found.prompts[0]).lookahead
    assert ahead is not None
    np.testing.assert_allclose(ahead.table, table)
    with pytest.raises(UserError, match=r"of temperature 0\.5, the problem of 1"):
        build(soft_lm, **KINDS["constrained"], lookahead=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read lookahead"),
        (b"no archive", "no lookahead file"),
        ((np.full((1, 4, 5), 0.1), [1, 2, 3, 4]), "another alphabet"),
        ((np.full((4, 5), 0.1), None), "no positive table"),
        ((np.full((2, 4, 5), 0.1), None), "no positive table"),
        ((np.zeros((1, 4, 5)), None), "no positive table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    soft_lm: LanguageModel, tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "ahead.npz"
    problem = build(soft_lm)
    alphabet = problem.moves(problem.prompts[0]).alphabet
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        known = alphabet if content[1] is None else content[1]
        lookahead.save(path, content[0], known, 1.0, "lm")
    with pytest.raises(UserError, match=message) as caught:
        build(soft_lm, lookahead=path)
    assert "posteriori lookahead" in str(caught.value)


def test_an_alphabet_without_a_table_is_refused(soft_lm: LanguageModel) -> None:
    for order, size in ((1, 5000), (2, 300), (3, 4)):
        large = LegalMoves.free(np.arange(size), size, 1, 2)
        with pytest.raises(UserError, match="too large"):
            fit_ngrams(soft_lm, [[1]], large, 4, seed=0, order=order)
    with pytest.raises(UserError, match="shape"):
        moves_with_a_late_seven(1, 4, Lookahead(np.ones((1, 5, 6))))


def with_lookahead(problem: Problem, order: int = 1) -> Problem:
    """By 64 draws for the first X."""
    prompt = problem.prompts[0]
    moves = problem.moves(prompt)
    context = problem.policy_ids(prompt)
    table, _ = fit_ngrams(problem.lm, [context], moves, 64, seed=0, order=order)
    guided = moves.looking_ahead(Lookahead(table))
    return replace(problem, legal_moves=lambda prompt: guided)
