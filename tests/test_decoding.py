"""The in-process sampler: the very draws of the engine, and the exact distribution by enumeration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from actors.transformers_engine import TransformersEngine
from posteriori import decoding
from posteriori.decoding import move_log_q, sample
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.oracle.enumeration import exact_log_q
from posteriori.oracle.strings import StringTree
from posteriori.seams import SampleRequest


def moves_of(lm: LanguageModel) -> LegalMoves:
    """Three words and ⊤; the first word only an even number of times."""
    return LegalMoves(
        alphabet=np.array([lm.one_token(word, "word") for word in (" cat", " dog", " sat")]),
        stop=lm.one_token(".", "stop"),
        min_tokens=1,
        max_tokens=4,
        next_state=np.array([[1, 0, 0], [0, 1, 1]]),
        accepting=np.array([True, False]),
    )


def test_draws_are_those_of_the_engine(
    tiny_lm: LanguageModel, tiny_lm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same seed, same Z and log q, also when the rows are decoded in several batches."""
    moves, prompt = moves_of(tiny_lm), tiny_lm.context(" the big")
    engine = TransformersEngine(tiny_lm_path, device="cpu")
    engine.submit(SampleRequest("r", prompt, moves, 40, seed=5))
    groups = []
    while engine.unfinished:
        groups += engine.step()
    for rows in (256, 16):
        monkeypatch.setattr(decoding, "ROWS_PER_BATCH", rows)
        ours = sample(tiny_lm, prompt, moves, 40, seed=5)
        for mine, theirs in zip(ours, groups[0].samples, strict=True):
            assert mine.tokens == theirs.tokens
            np.testing.assert_allclose(mine.log_q, theirs.log_q, atol=1e-4)
            np.testing.assert_allclose(mine.log_q_stop, theirs.log_q_stop, atol=1e-4)


def test_frequencies_match_enumeration(tiny_lm: LanguageModel) -> None:
    """χ² of 4,000 draws against the exact probabilities; reported log q equals the exact one."""
    moves, prompt = moves_of(tiny_lm), tiny_lm.context(" the")
    tree = StringTree.of(moves, 1000)
    log_q = exact_log_q(tree, tiny_lm, prompt)
    index = {tuple(tree.tokens(k)): k for k in range(tree.count)}
    counts = np.zeros(tree.count)
    for drawn in sample(tiny_lm, prompt, moves, 4000, seed=1):
        k = index[tuple(drawn.tokens)]
        counts[k] += 1
        assert drawn.total_log_q == pytest.approx(log_q[k], abs=1e-4)
    expected = 4000 * np.exp(log_q)
    common = expected >= 5
    merged = [np.append(x[common], x[~common].sum()) for x in (counts, expected)]
    assert stats.chisquare(merged[0], merged[1] * 4000 / merged[1].sum()).pvalue > 1e-4


def test_temperature_and_nucleus_by_hand() -> None:
    """Probabilities .5 .3 .15 .05 (one more illegal): T = ½ squares them, top-p .7 keeps two."""
    p = np.array([[0.5, 0.3, 0.15, 0.05, 0.9]])
    scores = np.log(p)
    scores[0, -1] = -np.inf
    sharp = np.exp(move_log_q(scores, temperature=0.5))
    np.testing.assert_allclose(sharp[0], [*(p[0, :4] ** 2 / (p[0, :4] ** 2).sum()), 0])
    for top_p, kept in ((0.7, 2), (0.81, 3), (0.01, 1), (1.0, 4)):
        cut = np.exp(move_log_q(scores, top_p=top_p))[0]
        np.testing.assert_allclose(cut[:kept], p[0, :kept] / p[0, :kept].sum())
        assert (cut[kept:] == 0).all()


def test_tempered_draws_report_the_distribution_drawn_from(tiny_lm: LanguageModel) -> None:
    """Drawn with top-p, no move outside the nucleus occurs, and log q is normalised over it."""
    moves, prompt = moves_of(tiny_lm), tiny_lm.context(" the")
    plain = {tuple(s.tokens): s for s in sample(tiny_lm, prompt, moves, 400, seed=2)}
    cut = sample(tiny_lm, prompt, moves, 400, seed=3, temperature=0.7, top_p=0.6)
    assert len({tuple(s.tokens) for s in cut}) < len(plain)
    assert all(np.isfinite(s.total_log_q) for s in cut)
    mass = sum(np.exp(s.total_log_q) for s in {tuple(s.tokens): s for s in cut}.values())
    assert mass == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_refuses_what_is_no_distribution(tiny_lm: LanguageModel, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        sample(tiny_lm, [3], moves_of(tiny_lm), 1, seed=0, **wrong)
