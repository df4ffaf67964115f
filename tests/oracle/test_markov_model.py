"""The shipped Markov reward LM is what the oracle takes it for, through the project's own scorer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from posteriori.config import RewardTerm
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.markov_model import WORDS, fit_policy_base, markov_model, write_markov_lm
from posteriori.moves import LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt

STOP = len(WORDS)
X = Prompt("x", {"x": "ba do mi", "y": "ko la"})


@pytest.fixture(scope="module")
def reward_lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(str(write_markov_lm(tmp_path_factory.mktemp("markov"))))


@pytest.fixture(scope="module")
def table(reward_lm: LanguageModel) -> MarkovTable:
    return MarkovTable.from_model(reward_lm.model)


def test_words_are_one_token_each(reward_lm: LanguageModel) -> None:
    assert [reward_lm.one_token(word, "word") for word in WORDS] == list(range(32))
    assert reward_lm.encode("ba do <|end|>") == [0, 7, STOP]
    assert reward_lm.text([0, 7]) == "ba do"
    assert reward_lm.bos is None and reward_lm.special_ids == {STOP}


def test_recipe_is_reproducible_and_as_uncertain_as_it_says(table: MarkovTable) -> None:
    again = MarkovTable.from_model(markov_model())
    np.testing.assert_array_equal(again.log_p, table.log_p)
    words = table.log_p.reshape(33, 33, 33)[:32, :32]
    assert -(np.exp(words) * words).sum(axis=-1).mean() == pytest.approx(1.49, abs=0.01)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_logits_depend_on_exactly_the_last_w_tokens(window: int) -> None:
    model = markov_model(seed=1, window=window)
    rng = torch.Generator().manual_seed(0)
    one = torch.randint(0, 32, (64, 20), generator=rng)
    same, other = one.clone(), one.clone()
    same[:, :-window] = torch.randint(0, 32, (64, 20 - window), generator=rng)
    other[:, -window] = (one[:, -window] + 1) % 32
    with torch.no_grad():
        logits, equal, changed = (model(ids).logits[:, -1] for ids in (one, same, other))
    assert (logits - equal).abs().max() < 1e-5
    assert (logits - changed).abs().amax(dim=1).median() > 1


def test_a_model_that_looks_further_back_is_refused() -> None:
    with pytest.raises(UserError, match="more than the last 1 tokens"):
        MarkovTable.from_model(markov_model(window=2), window=1)


def test_a_table_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(UserError, match=r"1,185,921 contexts"):
        MarkovTable.from_model(markov_model(window=4))


def terms(kind: str) -> tuple[RewardTerm, LegalMoves]:
    free = LegalMoves.free(range(32), STOP, 1, 32)
    if kind == "tempered":
        return RewardTerm(weight=1 / 0.7), free
    if kind == "infilling":
        return RewardTerm(target="{z} {y}"), free
    needs_zero = LegalMoves(
        np.arange(32), STOP, 1, 32, np.array([[1] + [0] * 31, [1] * 32]), np.array([False, True])
    )
    return RewardTerm(), needs_zero


@pytest.mark.parametrize("kind", ["tempered", "constrained", "infilling"])
def test_oracle_scores_strings_as_the_projects_reward_does(
    reward_lm: LanguageModel, table: MarkovTable, kind: str
) -> None:
    """The reward runs token trees through the transformer; the oracle reads its table."""
    term, moves = terms(kind)
    prompt_ids = reward_lm.context(X.fields["x"])
    if kind == "infilling":
        case = MarkovPosterior.infilling(table, moves, prompt_ids, reward_lm.encode(X.fields["y"]))
    else:
        case = MarkovPosterior.tempered(
            table, moves, prompt_ids, 0.7 if kind == "tempered" else 1.0
        )
    strings = case.sample(12, seed=0) + case.sample(12, seed=1, sampler=case.local_sampler())
    scored = ProductReward([term], [reward_lm], lambda _: moves).log_reward(X, strings)
    np.testing.assert_allclose(case.log_reward(strings), [s[-1] for s in scored], atol=2e-3)


def test_samples_of_the_table_follow_it(table: MarkovTable) -> None:
    from scipy import stats

    drawn = table.sample(np.tile([3, 7], (20_000, 1)), 1, seed=0)[:, 0]
    expected = 20_000 * np.exp(table.log_p[table.context_of([3, 7])])
    observed = np.bincount(drawn, minlength=33).astype(float)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("positions", "kind"), [("rotary", "llama"), ("learned", "gpt2")])
def test_policy_base_learns_the_reward_lm_and_loads(
    reward_lm: LanguageModel, tmp_path: Path, positions: Literal["rotary", "learned"], kind: str
) -> None:
    small = partial(fit_policy_base, reward_lm, hidden=64, layers=1, positions=positions)
    before = small(tmp_path / "untrained", steps=0)
    after = small(tmp_path / "base", steps=40, batch=32)
    assert after.kl_per_token < 0.8 * before.kl_per_token
    base = LanguageModel.load(str(tmp_path / "base"))
    assert base.model.config.model_type == kind and base.encode("ba do") == [0, 7]
    assert after.tokens > 0 and before.tokens == 0
