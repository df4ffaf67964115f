"""The tokenizer of pocket: byte-level BPE in which every word of the corpus is one token.

Text is first cut into pieces: a word, a digit, a punctuation mark, each with the space before it,
or a white-space character. Pieces never join, hence text that is cut at a space before a word
tokenises the same as the whole. A piece in the vocabulary is one token (`ignore_merges`); any other
is spelt by the merges, in the last resort byte by byte.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from posteriori.pocket.corpus import documents

BOS: Final = "<|bos|>"
EOS: Final = "<|eos|>"
PAD: Final = "<|pad|>"
SPECIAL: Final = (BOS, EOS, PAD)
VOCABULARY: Final = 1024

#: A word, one digit or one mark, each with the space before it; otherwise a single white-space
#: character.
PIECE: Final = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
_PIECE_ASCII: Final = re.compile(r" ?[A-Za-z]+")
#: Pieces that must be tokens although the corpus may lack them.
_ALWAYS: Final = [f"{space}{mark}" for mark in "0123456789.,=+-?!:;\"'()" for space in ("", " ")]


def _byte_level(piece: str) -> str:
    """The printable form in which byte-level BPE stores `piece` (a space becomes Ġ)."""
    return piece.replace(" ", "Ġ")


def train_tokenizer(seed: int = 0, sample_documents: int = 40_000) -> PreTrainedTokenizerFast:
    """Build the tokenizer from a sample of the corpus. ValueError if the words do not fit."""
    texts = [document.text for document in islice(documents(seed), sample_documents)]
    counts = Counter(piece for text in texts for piece in _PIECE_ASCII.findall(text))
    words = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    words = [word for word in dict.fromkeys(_ALWAYS + words) if len(word) > 1]

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spare = VOCABULARY - len(SPECIAL) - len(alphabet) - len(words)
    if spare < 0:
        raise ValueError(f"{len(words)} words do not fit a vocabulary of {VOCABULARY}")
    merges, merged = _train_merges(texts, alphabet, {_byte_level(word) for word in words}, spare)
    tokens = [*SPECIAL, *alphabet, *map(_byte_level, words), *merged]
    vocabulary = {token: index for index, token in enumerate(tokens)}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _train_merges(
    texts: list[str], alphabet: list[str], words: set[str], spare: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """The first merges BPE learns, until `spare` tokens that are no words are made, and those."""
    trainee = Tokenizer(models.BPE())
    trainee.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    trainee.train_from_iterator(texts, trainer)
    ranked = sorted(trainee.get_vocab(), key=trainee.get_vocab().__getitem__)
    made = [token for token in ranked if len(token) > 1]
    merges: list[tuple[str, str]] = []
    merged: list[str] = []
    known = set(alphabet)
    for token in made:
        halves = _halves(token, known)
        if halves is None or (token not in words and len(merged) == spare):
            continue
        merges.append(halves)
        known.add(token)
        if token not in words:
            merged.append(token)
    return merges, merged


def _halves(token: str, known: set[str]) -> tuple[str, str] | None:
    """Two known tokens that make up `token`, the first as long as possible, else None."""
    for cut in range(len(token) - 1, 0, -1):
        if token[:cut] in known and token[cut:] in known:
            return token[:cut], token[cut:]
    return None


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer and write its files into `folder`."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer
