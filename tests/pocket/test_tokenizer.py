"""The tokenizer: one token per word and digit, nothing lost, cuts at spaces change nothing."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posteriori.pocket.corpus import GENRES, documents
from posteriori.pocket.stories import PLOTS
from posteriori.pocket.tokenizer import VOCABULARY, save_tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def test_size_and_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == VOCABULARY
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == [
        "<|bos|>",
        "<|eos|>",
        "<|pad|>",
    ]
    assert tokenizer("Tom").input_ids[0] == tokenizer.bos_token_id


def test_any_text_comes_back(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["Zebra  xylophone\n\té 'x' 漢字 🙂", " leading", "trailing ", "1234.5e-6", "don't"]
    texts += [document.text for genre in GENRES for document in islice(documents(7, genre), 20)]
    for text in texts:
        assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_cuts_before_a_space_change_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(0)
    for document in islice(documents(8), 300):
        text = document.text
        cut = rng.choice([i for i, c in enumerate(text) if c in " \n"] or [0])
        parts = _ids(tokenizer, text[:cut]) + _ids(tokenizer, text[cut:])
        assert parts == _ids(tokenizer, text)


def test_words_of_the_world_are_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    words = {word for plot in PLOTS for slot in plot.slots.values() for word in slot}
    assert len(words) > 150
    split = [word for word in words if len(_ids(tokenizer, f" {word}")) != 1]
    assert not split
    for genre in GENRES:
        for document in islice(documents(9, genre), 100):
            pieces = [tokenizer.decode([i]).strip() for i in _ids(tokenizer, document.text)]
            assert [p for p in pieces if p.isalpha()] == re.findall(r"[A-Za-z]+", document.text)


def test_digits_and_signs(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "6 - 0 = 6, 6 - 4 =, 12. The answer is -16."
    pieces = tokenizer.convert_ids_to_tokens(_ids(tokenizer, text))
    assert "".join(pieces).replace("Ġ", " ") == text
    expected = "6|Ġ-|Ġ0|Ġ=|Ġ6|,|Ġ6|Ġ-|Ġ4|Ġ=|,|Ġ1|2|.|ĠThe|Ġanswer|Ġis|Ġ-|1|6|."
    assert "|".join(pieces) == expected
    for mark in "0123456789.,=+-?":
        assert len(_ids(tokenizer, mark)) == len(_ids(tokenizer, f" {mark}")) == 1


@pytest.mark.slow
def test_training_it_again_gives_the_shipped_files(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
