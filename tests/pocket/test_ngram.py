"""The 5-gram baseline: it is a distribution, and agrees with a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from posteriori.pocket.ngram import KneserNey

BOS = 0
TEXT = np.array([0, 1, 2, 3, 0, 1, 2, 2, 3, 0, 2, 3, 1, 1, 3])


@pytest.mark.parametrize("context", [[0], [0, 1], [0, 1, 2], [0, 3, 3, 2, 1, 2], [0, 4, 4, 4, 4]])
def test_probabilities_sum_to_one(context: list[int]) -> None:
    model = KneserNey(TEXT, 5, BOS)
    following = [model.log_probabilities(np.array([*context, i]))[-1] for i in range(1, 5)]
    # The rest is what the uniform distribution gives to BOS, which is never predicted.
    assert 0.8 < np.exp(following).sum() <= 1 + 1e-12


def test_seen_text_is_likelier_than_unseen() -> None:
    model = KneserNey(TEXT, 5, BOS)
    seen, unseen = np.array([0, 1, 2, 3]), np.array([0, 3, 2, 1])
    assert model.log_probabilities(seen).sum() > model.log_probabilities(unseen).sum() + 2


def test_one_order_by_hand() -> None:
    """Ids that have never occurred fall back, step by step, on the unigrams' share of uniform."""
    model = KneserNey(np.array([0, 1, 0, 1, 0, 2]), 4, BOS)
    # 5-grams: 0000→1 twice, 0000→2 once. Discount: n1 = 1, n2 = 1, so 1/3; two types, total 3.
    # Lower orders count contexts: 1 and 2 once each, n1 = 2, n2 = 0, so discount 1: all mass falls
    # through to uniform, 1/4.
    expected = (2 - 1 / 3) / 3 + (1 / 3) * 2 / 3 * 0.25
    assert np.exp(model.log_probabilities(np.array([0, 1])))[0] == pytest.approx(expected)


def test_too_many_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        KneserNey(TEXT, 2**13, BOS)
