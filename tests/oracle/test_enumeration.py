"""Enumeration against a plain loop over strings with Hugging Face forwards."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from posteriori import metrics
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.oracle.enumeration import ExactPosterior, enumerate_posterior, exact_log_q, fidelity
from posteriori.oracle.scoring import sequence_log_q
from posteriori.oracle.strings import StringTree
from posteriori.seams import Prompt

X = Prompt("x0", {"x": "x"})
PROMPT_IDS = [3, 17, 5]
ALPHABET = [4, 9, 2, 11]
STOP = 1


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return LanguageModel(
        LlamaForCausalLM(config).eval(), SimpleNamespace(bos_token_id=None), "tiny"
    )


def even_count(min_tokens: int, max_tokens: int) -> LegalMoves:
    """Accepts an even number of the first token; the last token is allowed only after the first."""
    return LegalMoves(
        alphabet=np.array(ALPHABET),
        stop=STOP,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        next_state=np.array([[1, 0, 0, -1], [0, 1, 1, 1]]),
        accepting=np.array([True, False]),
    )


def cases() -> list[LegalMoves]:
    free = [LegalMoves.free(ALPHABET, STOP, m, 4) for m in (0, 1, 2, 4)]
    return [*free, *(even_count(m, 4) for m in (0, 1, 2)), LegalMoves.free(ALPHABET, STOP, 0, 0)]


def brute_strings(moves: LegalMoves) -> list[tuple[int, ...]]:
    """Every legal Z, by filtering all strings through the automaton."""
    found = []
    for length in range(moves.min_tokens, moves.max_tokens + 1):
        for columns in itertools.product(range(len(moves.alphabet)), repeat=length):
            state = 0
            for column in columns:
                state = int(moves.next_state[state, column]) if state >= 0 else -1
            if state >= 0 and moves.accepting[state]:
                found.append(tuple(int(moves.alphabet[c]) for c in columns))
    return found


def logits_after(lm: LanguageModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([tokens])).logits[0, -1].double()


def naive_log_q(lm: LanguageModel, moves: LegalMoves, z: tuple[int, ...]) -> float:
    """Σ of masked log-softmaxes, one plain forward a move; a move is legal if a string follows it."""
    strings = brute_strings(moves)
    total = 0.0
    for i in range(len(z) + 1):
        move = z[i] if i < len(z) else STOP
        legal = {s[i] if len(s) > i else STOP for s in strings if s[:i] == z[:i]}
        ids = sorted(legal)
        log_p = torch.log_softmax(logits_after(lm, [*PROMPT_IDS, *z[:i]])[ids], dim=0)
        total += float(log_p[ids.index(move)])
    return total


class LastTokenReward:
    """A reward that depends on every token, its place and where Z stops."""

    version = 0

    def log_reward(self, prompt: Prompt, sequences: list[list[int]]) -> list[np.ndarray]:
        return [
            np.array(
                [np.sin(np.dot(np.arange(1, k + 1), z[:k])) - 0.4 * k for k in range(len(z) + 1)]
            )
            for z in map(np.asarray, sequences)
        ]


@pytest.mark.parametrize("moves", cases())
def test_tree_lists_exactly_the_legal_strings(moves: LegalMoves) -> None:
    tree = StringTree.of(moves, 10_000)
    listed = [tuple(tree.tokens(k)) for k in range(tree.count)]
    assert sorted(listed) == sorted(brute_strings(moves))
    assert tree.count == moves.count()
    assert [tree.index(z) for z in listed] == list(range(tree.count))
    assert tree.lengths.tolist() == [len(z) for z in listed]
    expected_first = [ALPHABET.index(z[0]) if z else len(ALPHABET) for z in listed]
    assert tree.first_columns.tolist() == expected_first


def test_index_refuses_what_is_not_a_string() -> None:
    tree = StringTree.of(even_count(1, 3), 100)
    for not_a_string in ([], [4], [11], [7], [9, 9, 9, 9], [STOP]):
        with pytest.raises(KeyError):
            tree.index(not_a_string)


@pytest.mark.parametrize("moves", cases())
def test_log_q_equals_plain_forwards_and_sums_to_one(lm: LanguageModel, moves: LegalMoves) -> None:
    tree = StringTree.of(moves, 10_000)
    log_q = exact_log_q(tree, lm, PROMPT_IDS)
    assert abs(metrics.log_sum_exp(log_q)) < 1e-6
    chosen = np.random.default_rng(1).permutation(tree.count)[:25]
    naive = [naive_log_q(lm, moves, tuple(tree.tokens(int(k)))) for k in chosen]
    np.testing.assert_allclose(log_q[chosen], naive, atol=2e-5)


def test_packs_cover_every_wanted_prefix_once_when_rows_are_small(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = StringTree.of(LegalMoves.free(ALPHABET, STOP, 0, 4), 10_000)
    whole = exact_log_q(tree, lm, PROMPT_IDS)
    monkeypatch.setattr("posteriori.oracle.strings.NODES_PER_PACK", 3)
    wanted = np.random.default_rng(0).random(len(tree)) < 0.5
    covered = np.concatenate([nodes for _, nodes, _ in tree.packs(wanted, PROMPT_IDS)])
    assert sorted(covered) == np.flatnonzero(wanted).tolist()
    np.testing.assert_allclose(exact_log_q(tree, lm, PROMPT_IDS), whole, atol=1e-5)


def test_an_adapter_changes_q_and_stays_normalised(lm: LanguageModel) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    tree = StringTree.of(even_count(1, 4), 10_000)
    base = LlamaForCausalLM(lm.model.config).eval()
    base.load_state_dict(lm.model.state_dict())
    torch.manual_seed(1)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    policy = LanguageModel(adapted.eval(), lm.tokenizer, "policy")
    log_q = exact_log_q(tree, policy, PROMPT_IDS)
    assert abs(metrics.log_sum_exp(log_q)) < 1e-6
    assert metrics.total_variation(log_q, exact_log_q(tree, lm, PROMPT_IDS)) > 0.01
    naive = [naive_log_q(policy, tree.moves, tuple(tree.tokens(k))) for k in range(5)]
    np.testing.assert_allclose(log_q[:5], naive, atol=2e-5)


@pytest.mark.parametrize("moves", cases())
def test_posterior_equals_a_loop_over_strings(moves: LegalMoves) -> None:
    exact = enumerate_posterior("toy", X, moves, LastTokenReward(), 10_000)
    reward = LastTokenReward()
    by_hand = {z: float(reward.log_reward(X, [list(z)])[0][-1]) for z in brute_strings(moves)}
    log_z = np.log(sum(np.exp(v) for v in by_hand.values()))
    assert exact.log_z == pytest.approx(log_z, abs=1e-12)
    for k in range(exact.count):
        z = tuple(exact.tree.tokens(k))
        assert exact.log_sigma[k] == pytest.approx(by_hand[z] - log_z, abs=1e-12)
    sigma = {z: np.exp(v - log_z) for z, v in by_hand.items()}
    lengths = [sum(p for z, p in sigma.items() if len(z) == n) for n in range(moves.max_tokens + 1)]
    np.testing.assert_allclose(exact.length_marginal(), lengths, atol=1e-12)
    first = [sum(p for z, p in sigma.items() if z and z[0] == a) for a in ALPHABET]
    np.testing.assert_allclose(
        exact.first_token_marginal(), [*first, sigma.get((), 0.0)], atol=1e-12
    )
    assert exact.entropy == pytest.approx(-sum(p * np.log(p) for p in sigma.values()), abs=1e-12)


def test_samples_follow_sigma_and_repeat_under_one_seed() -> None:
    exact = enumerate_posterior(
        "toy", X, LegalMoves.free(ALPHABET, STOP, 1, 3), LastTokenReward(), 100
    )
    draws = exact.sample(40_000, seed=3)
    counts = np.bincount(draws, minlength=exact.count)
    assert stats.chisquare(counts, 40_000 * np.exp(exact.log_sigma)).pvalue > 1e-3
    assert (exact.sample(100, seed=3) == draws[:100]).all()
    assert (exact.sample(100, seed=4) != draws[:100]).any()


def test_top_is_ordered() -> None:
    exact = enumerate_posterior(
        "toy", X, LegalMoves.free(ALPHABET, STOP, 1, 3), LastTokenReward(), 100
    )
    assert exact.log_sigma[exact.top(5)].tolist() == sorted(exact.log_sigma, reverse=True)[:5]


class NeverCalled:
    version = 0

    def log_reward(self, prompt: Prompt, sequences: list[list[int]]) -> list[np.ndarray]:
        raise AssertionError("strings were scored before they were counted")


def test_too_many_strings_are_refused_before_any_work() -> None:
    moves = LegalMoves.free(range(2, 52), STOP, 1, 60)
    with pytest.raises(UserError, match="legal Z, more than the 20,000"):
        enumerate_posterior("toy", X, moves, NeverCalled(), 20_000)


def test_fidelity_of_two_strings_by_hand() -> None:
    moves = LegalMoves.free([4, 9], STOP, 1, 1)
    exact = ExactPosterior(StringTree.of(moves, 2), np.log([3.0, 1.0]) + 5)
    found = fidelity(exact, np.log([0.5, 0.5]), worst=1)
    assert exact.log_z == pytest.approx(5 + np.log(4))
    assert found.total_variation == pytest.approx(0.25)
    assert found.kl_posterior_q == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert found.kl_q_posterior == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(2))
    assert found.ess_fraction == pytest.approx(1 / (0.75**2 / 0.5 + 0.25**2 / 0.5))
    assert found.first_token_error == pytest.approx(0.25)
    assert found.length_error == pytest.approx(0)
    assert found.worst[0].tokens == (4,)
    assert found.worst[0].contribution == pytest.approx(0.75 * np.log(1.5))


def test_fidelity_of_the_posterior_itself_is_perfect() -> None:
    exact = enumerate_posterior("toy", X, even_count(0, 4), LastTokenReward(), 10_000)
    found = fidelity(exact, exact.log_sigma)
    assert found.total_variation == 0 and found.kl_posterior_q == 0 and found.kl_q_posterior == 0
    assert found.ess_fraction == pytest.approx(1)


@pytest.mark.parametrize("moves", cases())
def test_log_q_of_given_strings_equals_that_of_all(lm: LanguageModel, moves: LegalMoves) -> None:
    tree = StringTree.of(moves, 10_000)
    chosen = np.random.default_rng(2).integers(0, tree.count, 40)  # repeats included
    found = sequence_log_q(lm, PROMPT_IDS, moves, [tree.tokens(int(k)) for k in chosen])
    np.testing.assert_allclose(found, exact_log_q(tree, lm, PROMPT_IDS)[chosen], atol=2e-5)


def test_log_q_of_an_illegal_string_is_an_error(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="not a legal move"):
        sequence_log_q(lm, PROMPT_IDS, even_count(1, 4), [[4, 4], [11]])
