"""Read on: pocket, with a larger vocabulary, pre-trained further on film sentences without their labels.

    python -m experiments.subjectivity.adapt --out runs/subjectivity-lm

Pocket spells most words of real sentences, and a label is a fact about words: so a new tokenizer is
fitted to the text first, and a token that pocket lacks begins as the mean of the pieces it had for it.

Rows of packed documents, as in pre-training. Most of the tokens are unlabelled SUBJ sentences of the
training part, more than half of them inside the question that asks for their label, without an answer.
The rest are pocket's own labelled reviews, so that what a label is stays known; in half of them every
second word is replaced, or joined, by a word of the sentences, so that it is known among other words,
too. In a second phase half the words of most sentences stand behind the question, where the answer would
be: what a sentence is about is then known there, too, and not only where its words are read.
The held-out sentences are not read. The recipe is frozen below; the same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from experiments.subjectivity.data import subj_split
from experiments.subjectivity.methods import QUESTION
from posteriori.device import resolve_device
from posteriori.lm import POCKET, LanguageModel
from posteriori.pocket.pretrain import next_token_loss
from posteriori.pocket.reviews import labelled_review

VOCABULARY: Final = 4096
"""Tokens, about 36 a sentence where pocket's thousand need 75."""
VOCABULARY_REVIEWS: Final = 4000
"""Labelled reviews that the tokenizer is fitted to besides, so that no word of a rationale is split."""
BATCH_ROWS: Final = 12
ROW_TOKENS: Final = 256
WARMUP_STEPS: Final = 30
UNLABELLED_SHARE: Final = 0.55
"""Of the documents; two thirds of the tokens."""
ASKED_SHARE: Final = 0.6
"""Of the unlabelled sentences: they stand inside the question."""
GARBLED_SHARE: Final = 0.5
"""Of the labelled reviews, and then of the words of one."""
REPORT_STEPS: Final = 20


@dataclass(frozen=True)
class Phase:
    """Steps under one optimiser.

    Attributes:
        steps: of the optimiser.
        learning_rate: half a cosine from here to a twentieth.
        left_out_share: of the unlabelled sentences, asked for their words behind the question.
        seed: of the documents.
    """

    steps: int
    learning_rate: float
    left_out_share: float
    seed: int


PHASES: Final = (
    Phase(steps=1600, learning_rate=1e-3, left_out_share=0.0, seed=3),
    Phase(steps=600, learning_rate=7e-4, left_out_share=0.6, seed=4),
)


def fitted_tokenizer(old: PreTrainedTokenizerBase, sentences: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of the same kind for the sentences and for labelled reviews."""
    rng = random.Random(PHASES[0].seed)
    texts = [*sentences, *(labelled_review(rng) for _ in range(VOCABULARY_REVIEWS))]
    return old.train_new_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)


def with_tokenizer(lm: LanguageModel, new: PreTrainedTokenizerBase) -> LanguageModel:
    """The LM, its embeddings resized in place: those of tokens it has stay, others are means of its pieces."""
    model, old = lm.model, lm.tokenizer
    known = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(new), mean_resizing=False)
    rows = model.get_input_embeddings().weight.detach()
    ids = old.get_vocab()
    for token, row in new.get_vocab().items():
        pieces = (
            [ids[token]]
            if token in ids
            else old.encode(new.convert_tokens_to_string([token]), add_special_tokens=False)
        )
        rows[row] = known[pieces].mean(dim=0)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            setattr(config, name, getattr(new, name))
    return LanguageModel(model, new, lm.name)


def garbled_review(rng: random.Random, words: list[str]) -> str:
    """A labelled review among other words: of its own every second is replaced by one of them, or joined."""
    question, text, answer = labelled_review(rng).split('"')
    mixed = []
    for word in text.rstrip(".").replace(",", " ,").split():
        draw = rng.random()
        if draw < GARBLED_SHARE:
            mixed.append(rng.choice(words))
        if draw >= GARBLED_SHARE / 2:
            mixed.append(word)
    return f'{question}"{" ".join(mixed)} ."{answer}'


def left_out(sentence: str, rng: random.Random) -> str:
    """The question about half of a sentence's words, and the others where its answer would begin."""
    halves: tuple[list[str], list[str]] = ([], [])
    for word in sentence.split():
        halves[rng.random() < 0.5].append(word)
    kept, said = (" ".join(words) for words in halves)
    return f'{QUESTION.format(text=kept)} {rng.choice(("This review is", "It is"))} "{said}"'


def documents(sentences: list[str], phase: Phase) -> Iterator[str]:
    """Endless: sentences in a new order at every pass, labelled reviews in between."""
    rng = random.Random(phase.seed)
    words = [word for sentence in sentences for word in sentence.split() if word.isalpha()]
    while True:
        for sentence in rng.sample(sentences, len(sentences)):
            while rng.random() >= UNLABELLED_SHARE:
                garble = rng.random() < GARBLED_SHARE
                yield garbled_review(rng, words) if garble else labelled_review(rng)
            if phase.left_out_share and rng.random() < phase.left_out_share:
                yield left_out(sentence, rng)
            else:
                yield QUESTION.format(text=sentence) if rng.random() < ASKED_SHARE else sentence


def packed(lm: LanguageModel, texts: Iterator[str], rows: int) -> torch.Tensor:
    """Token ids [rows, ROW_TOKENS]; every row begins with a document and cuts its last one off."""
    ids = np.empty((rows, ROW_TOKENS), dtype=np.int64)
    for row in ids:
        filled = 0
        while filled < ROW_TOKENS:
            document = [*lm.context(next(texts)), lm.tokenizer.eos_token_id][: ROW_TOKENS - filled]
            row[filled : filled + len(document)] = document
            filled += len(document)
    return torch.from_numpy(ids)


def held_out_loss(lm: LanguageModel, sentences: list[str]) -> float:
    """Nats per character, which tokenizers have in common, of sentences that are not trained on, each by itself."""
    total = 0.0
    for sentence in sentences:
        ids = torch.tensor([lm.context(sentence)], device=lm.model.device)
        with torch.no_grad():
            total += float(next_token_loss(lm.model, ids)) * (ids.shape[1] - 1)
    return total / sum(len(sentence) for sentence in sentences)


def train(lm: LanguageModel, texts: Iterator[str], phase: Phase) -> None:
    """One phase; the model is trained in place."""
    model = lm.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    began, recent = time.monotonic(), []
    for step in range(1, phase.steps + 1):
        rate = min(step / WARMUP_STEPS, 0.5 * (1 + cos(pi * step / phase.steps)) + 0.05)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * rate
        loss = next_token_loss(model, packed(lm, texts, BATCH_ROWS).to(model.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        if step % REPORT_STEPS == 0 or step == phase.steps:
            sys.stdout.write(
                f"step {step} loss {np.mean(recent):.4f} {time.monotonic() - began:.0f} s\n"
            )
            sys.stdout.flush()
            recent.clear()
    model.eval()


def adapt(
    data: Path,
    out: Path,
    start: Path = POCKET,
    phases: Sequence[Phase] = PHASES,
    device: str = "cpu",
) -> dict[str, float]:
    """Train, and write model, tokenizer and ``adapt.json`` into ``out``.

    Args:
        data: directory of the SUBJ files.
        out: of the new model.
        start: of the old one.
        phases: fewer steps for tests.
        device: to train on.
    """
    lm = LanguageModel.load(str(start), device=device)
    training, test = subj_split(data)
    sentences = [record.fields["x"] for record in training]
    probe = [record.fields["x"] for record in test[:100]]
    before = held_out_loss(lm, probe)
    lm = with_tokenizer(lm, fitted_tokenizer(lm.tokenizer, sentences))
    began = time.monotonic()
    for phase in phases:
        train(lm, documents(sentences, phase), phase)
    steps = sum(phase.steps for phase in phases)
    report = {
        "steps": steps,
        "tokens": steps * BATCH_ROWS * ROW_TOKENS,
        "seconds": round(time.monotonic() - began, 1),
        "held_out_nats_per_character_before": round(before, 4),
        "held_out_nats_per_character": round(held_out_loss(lm, probe), 4),
    }
    out.mkdir(parents=True, exist_ok=True)
    lm.model.save_pretrained(str(out))
    lm.tokenizer.save_pretrained(str(out))
    (out / "adapt.json").write_text(json.dumps(report) + "\n")
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train pocket further on SUBJ's text.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/subj"))
    parser.add_argument("--start-from", type=Path, default=POCKET)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = adapt(
        arguments.data,
        arguments.out,
        arguments.start_from,
        device=resolve_device(arguments.device, "--device"),
    )
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
