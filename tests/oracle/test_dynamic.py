"""Dynamic programming against sums over every string, written as plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from posteriori import metrics
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable

WORDS, STOP = [0, 1, 2], 3
PROMPT = (1, 2, 0)


def random_table(window: int, seed: int = 0) -> MarkovTable:
    rng = np.random.default_rng(seed)
    return MarkovTable(window, np.log(rng.dirichlet(np.full(4, 0.7), size=4**window)))


def mod_three(min_tokens: int, max_tokens: int) -> LegalMoves:
    """Sum of tokens ≡ 1 mod 3, and never 2 twice in a row: state = 2·(sum mod 3) + last was 2."""
    following = np.full((6, 3), -1)
    for residue, repeated, token in itertools.product(range(3), range(2), range(3)):
        if not (repeated and token == 2):
            following[2 * residue + repeated, token] = 2 * ((residue + token) % 3) + (token == 2)
    accepting = np.array([state // 2 == 1 for state in range(6)])
    return LegalMoves(np.array(WORDS), STOP, min_tokens, max_tokens, following, accepting)


def context_row(table: MarkovTable, history: list[int]) -> np.ndarray:
    index = 0
    for token in history[-table.window :]:
        index = index * 4 + token
    return table.log_p[index]


def naive_log_reward(case: MarkovPosterior, kind: str, z: tuple[int, ...]) -> float:
    history, total = list(PROMPT), 0.0
    for token in z:
        total += context_row(case.table, history)[token]
        history.append(token)
    if kind == "infilling":
        for token in (2, 0, 2):
            total += context_row(case.table, history)[token]
            history.append(token)
        return total
    return (total + context_row(case.table, history)[STOP]) * case.token_weight


def build(kind: str, window: int, low: int, high: int) -> MarkovPosterior:
    table, free = random_table(window), LegalMoves.free(WORDS, STOP, low, high)
    if kind == "tempered":
        return MarkovPosterior.tempered(table, free, PROMPT, temperature=0.6)
    if kind == "constrained":
        return MarkovPosterior.tempered(table, mod_three(low, high), PROMPT)
    return MarkovPosterior.infilling(table, free, PROMPT, (2, 0, 2))


def brute(case: MarkovPosterior, kind: str) -> dict[tuple[int, ...], float]:
    """log R of every legal Z."""
    moves, found = case.moves, {}
    for length in range(moves.min_tokens, moves.max_tokens + 1):
        for z in itertools.product(WORDS, repeat=length):
            state = 0
            for token in z:
                state = int(moves.next_state[state, token]) if state >= 0 else -1
            if state >= 0 and moves.accepting[state]:
                found[z] = naive_log_reward(case, kind, z)
    return found


CASES = [
    pytest.param(kind, window, low, high, id=f"{kind}-w{window}-{low}to{high}")
    for kind in ("tempered", "constrained", "infilling")
    for window, low, high in ((1, 5, 5), (2, 0, 5), (2, 5, 5), (3, 2, 5))
]


@pytest.mark.parametrize(("kind", "window", "low", "high"), CASES)
def test_sigma_equals_enumeration(kind: str, window: int, low: int, high: int) -> None:
    case = build(kind, window, low, high)
    log_reward = brute(case, kind)
    strings = list(log_reward)
    values = np.array(list(log_reward.values()))
    log_z = float(np.log(np.exp(values).sum()))
    assert case.log_z == pytest.approx(log_z, abs=1e-10)
    np.testing.assert_allclose(case.log_reward(strings), values, atol=1e-10)
    log_sigma = case.log_sigma(strings)
    assert abs(metrics.log_sum_exp(log_sigma)) < 1e-10
    # The same through the conditionals, which the samples and the KLs are made of.
    np.testing.assert_allclose(case.log_q(case.conditional, strings), values - log_z, atol=1e-10)
    sigma = np.exp(values - log_z)
    lengths = np.bincount([len(z) for z in strings], sigma, minlength=high + 1)
    np.testing.assert_allclose(case.length_marginal(), lengths, atol=1e-12)
    first = np.bincount([z[0] if z else 3 for z in strings], sigma, minlength=4)
    np.testing.assert_allclose(case.first_token_marginal(), first, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("kind", "window", "low", "high"), CASES)
def test_divergences_equal_enumeration(
    kind: str, window: int, low: int, high: int, temperature: float
) -> None:
    case = build(kind, window, low, high)
    strings = list(brute(case, kind))
    sampler = case.local_sampler(temperature)
    log_q, log_sigma = case.log_q(sampler, strings), case.log_sigma(strings)
    assert abs(metrics.log_sum_exp(log_q)) < 1e-10
    assert case.kl_posterior_q(sampler) == pytest.approx(
        metrics.kl_divergence(log_sigma, log_q), abs=1e-10
    )
    assert case.kl_q_posterior(sampler) == pytest.approx(
        metrics.kl_divergence(log_q, log_sigma), abs=1e-10
    )
    assert case.ess_fraction(sampler) == pytest.approx(
        metrics.exact_ess_fraction(log_sigma, log_q), abs=1e-10
    )
    assert case.kl_posterior_q(case.conditional) == pytest.approx(0, abs=1e-12)
    assert case.ess_fraction(case.conditional) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("kind", "window", "low", "high"), CASES[::2])
def test_samples_follow_sigma(kind: str, window: int, low: int, high: int) -> None:
    case = build(kind, window, low, high)
    strings = sorted(brute(case, kind), key=lambda z: -case.log_sigma([z])[0])
    expected = np.exp(case.log_sigma(strings))
    draws = case.sample(20_000, seed=1)
    counts = dict.fromkeys(strings, 0)
    for draw in draws:
        counts[tuple(draw)] += 1  # a KeyError here is an illegal draw
    observed = np.array([counts[z] for z in strings], dtype=float)
    common = expected * 20_000 >= 5
    # Strings are in falling order, so the rare ones share a cell with the last common one.
    cells = np.minimum(np.arange(len(strings)), common.sum() - 1)
    assert (
        stats.chisquare(np.bincount(cells, observed), np.bincount(cells, 20_000 * expected)).pvalue
        > 1e-3
    )
    assert case.sample(50, seed=1) != case.sample(50, seed=2)


def test_samples_of_a_sampler_follow_the_sampler() -> None:
    case = build("tempered", 2, 0, 5)
    base = case.local_sampler()
    draws = case.sample(20_000, seed=1, sampler=base)
    lengths = np.bincount([len(z) for z in draws], minlength=6)
    assert stats.chisquare(lengths, 20_000 * case.length_marginal(base)).pvalue > 1e-3


def test_kl_from_exact_draws_agrees_with_the_recursion() -> None:
    case = build("tempered", 2, 1, 5)
    base = case.local_sampler()
    draws = case.sample(20_000, seed=5)
    found = metrics.mean_estimate(case.log_sigma(draws) - case.log_q(base, draws))
    assert abs(found.value - case.kl_posterior_q(base)) < 4 * found.standard_error


def test_illegal_strings_have_no_probability() -> None:
    case = build("constrained", 2, 1, 4)
    assert case.log_sigma([[2, 2], [], [0, 0], [1, 0, 0, 0, 0], [3], [7]]).tolist() == [-np.inf] * 6


def test_a_sampler_that_misses_a_string_is_infinitely_far() -> None:
    case = build("tempered", 2, 1, 4)
    base = case.local_sampler()

    def never_zero(length: int) -> np.ndarray:
        log_q = base(length).copy()
        log_q[:, :, 0] = -np.inf
        return log_q

    assert case.kl_posterior_q(never_zero) == np.inf
    assert case.ess_fraction(never_zero) == 0.0


def test_the_shipped_size_does_not_underflow() -> None:
    rng = np.random.default_rng(0)
    table = MarkovTable(2, np.log(rng.dirichlet(np.full(33, 0.1), size=33**2) + 1e-12))
    case = MarkovPosterior.tempered(table, LegalMoves.free(range(32), 32, 32, 32), (0, 1), 0.5)
    assert np.isfinite(case.log_z)
    assert np.exp(case.log_sigma(case.sample(4, seed=0))).max() < 1
    assert case.length_marginal()[-1] == pytest.approx(1)


def test_a_prompt_shorter_than_the_window_is_refused() -> None:
    case = MarkovPosterior.tempered(random_table(2), LegalMoves.free(WORDS, STOP, 1, 3), (1,))
    with pytest.raises(UserError, match="at least 2 tokens"):
        _ = case.log_z
