"""The shipped weights: small, loadable, better than counting, true to the rules of the world."""

from __future__ import annotations

import json
import math
from itertools import islice

import numpy as np
import pytest

from posteriori.pocket import WEIGHTS
from posteriori.pocket.corpus import documents
from posteriori.pocket.evaluate import document_log_probability, sample, story_consistency
from posteriori.pocket.ngram import KneserNey
from posteriori.pocket.pretrain import pack_rows
from tests.pocket.conftest import Pocket

#: Perplexity per token of the mixed text, which the model must stay below.
PERPLEXITY_BOUND = 2.0

#: Share of stories, sampled at temperature 1, that keep the rules of the world.
CONSISTENT_SHARE = 0.7
#: The same for a hundred stories only, three standard errors lower.
CONSISTENT_SHARE_OF_A_HUNDRED = 0.6


def test_size_and_shape(pocket: Pocket) -> None:
    model, tokenizer = pocket
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 10 * 2**20
    assert model.config.model_type == "llama"
    assert model.config.head_dim == 64
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.slow
def test_perplexity_is_low_and_below_a_5_gram(pocket: Pocket) -> None:
    model, tokenizer = pocket
    texts = [document.text for document in islice(documents(700_001), 150)]
    total, count = document_log_probability(model, tokenizer, texts)
    perplexity = math.exp(-total / count)
    assert perplexity < PERPLEXITY_BOUND

    rows = pack_rows(tokenizer, 1, 1500, 256)
    baseline = KneserNey(rows.ravel(), len(tokenizer), tokenizer.bos_token_id)
    ids = tokenizer(texts)["input_ids"]
    stream = np.concatenate([[*each, tokenizer.eos_token_id] for each in ids])
    assert perplexity < 0.8 * math.exp(-baseline.log_probabilities(stream).mean())


def test_sampled_stories_are_consistent(pocket: Pocket) -> None:
    assert (
        story_consistency(*pocket, stories=100, seed=1)["consistent"]
        >= CONSISTENT_SHARE_OF_A_HUNDRED
    )


def test_it_knows_sums_and_labels(pocket: Pocket) -> None:
    question = "Question: 3 + 4 = ? Answer: 3 + 4 ="
    assert sample(*pocket, [question], 2, temperature=0.0)[0].startswith(" 7")
    plain = 'Classify this movie review as objective or subjective: "{}" This review is'
    texts = [
        "an old farmer leaves the city after the war.",
        "a truly funny and charming film.",
    ]
    answers = sample(*pocket, [plain.format(text) for text in texts], 14, temperature=0.0)
    assert "so it is objective." in answers[0]
    assert "so it is subjective." in answers[1]


def test_the_card_tells_what_was_measured() -> None:
    figures = json.loads((WEIGHTS / "evaluation.json").read_text())
    card = (WEIGHTS / "README.md").read_text()
    assert f"{figures['stories']['consistent']:.1%}" in card
    assert figures["stories"]["consistent"] >= CONSISTENT_SHARE
    for row in figures["perplexity"].values():
        assert row["pocket"] < row["5-gram"]
