"""Read on: pocket, pre-trained further on the text of film sentences without their labels.

    python -m experiments.subjectivity.adapt --out runs/subjectivity-lm

Rows of packed documents, as in pre-training: three quarters of the tokens are unlabelled SUBJ sentences
of the training part, the rest pocket's own labelled reviews, so that what a label is stays known. The
held-out sentences are not read. The recipe is frozen below; the same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from math import cos, pi
from pathlib import Path
from typing import Final

import numpy as np
import torch

from experiments.subjectivity.data import subj_split
from posteriori.device import resolve_device
from posteriori.lm import POCKET, LanguageModel
from posteriori.pocket.pretrain import next_token_loss
from posteriori.pocket.reviews import labelled_review

STEPS: Final = 300
BATCH_ROWS: Final = 12
ROW_TOKENS: Final = 256
LEARNING_RATE: Final = 1e-3
WARMUP_STEPS: Final = 30
SEED: Final = 3
UNLABELLED_SHARE: Final = 0.75
"""Of the documents' tokens."""
DOCUMENT_TOKENS: Final = 75
"""Typical length of a SUBJ sentence; a labelled review has about half of it."""
REPORT_STEPS: Final = 20


def documents(sentences: list[str], seed: int) -> Iterator[str]:
    """Endless: sentences in a new order at every pass, labelled reviews in between."""
    rng = random.Random(seed)
    labelled_chance = 2 * (1 - UNLABELLED_SHARE) / (1 + (1 - UNLABELLED_SHARE))
    while True:
        rng.shuffle(sentences)
        for sentence in sentences:
            while rng.random() < labelled_chance:
                yield labelled_review(rng)
            yield sentence


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
    """Nats per token of sentences that are not trained on, each by itself."""
    total, tokens = 0.0, 0
    for sentence in sentences:
        ids = torch.tensor([lm.context(sentence)], device=lm.model.device)
        with torch.no_grad():
            loss = float(next_token_loss(lm.model, ids))
        total, tokens = total + loss * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    return total / tokens


def adapt(
    data: Path, out: Path, start: Path = POCKET, steps: int = STEPS, device: str = "cpu"
) -> dict[str, float]:
    """Train, and write model, tokenizer and ``adapt.json`` into ``out``.

    Args:
        data: directory of the SUBJ files.
        out: of the new model.
        start: of the old one.
        steps: fewer for tests.
        device: to train on.
    """
    lm = LanguageModel.load(str(start), device=device)
    training, test = subj_split(data)
    probe = [record.fields["x"] for record in test[:100]]
    before = held_out_loss(lm, probe)
    model = lm.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01
    )
    texts = documents([record.fields["x"] for record in training], SEED)
    began, recent = time.monotonic(), []
    for step in range(1, steps + 1):
        rate = min(step / WARMUP_STEPS, 0.5 * (1 + cos(pi * step / steps)) + 0.05)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        loss = next_token_loss(model, packed(lm, texts, BATCH_ROWS).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        if step % REPORT_STEPS == 0 or step == steps:
            sys.stdout.write(
                f"step {step} loss {np.mean(recent):.4f} {time.monotonic() - began:.0f} s\n"
            )
            sys.stdout.flush()
            recent.clear()
    model.eval()
    report = {
        "steps": steps,
        "tokens": steps * BATCH_ROWS * ROW_TOKENS,
        "seconds": round(time.monotonic() - began, 1),
        "held_out_loss_before_nats": round(before, 4),
        "held_out_loss_nats": round(held_out_loss(lm, probe), 4),
    }
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(out))
    lm.tokenizer.save_pretrained(str(out))
    (out / "adapt.json").write_text(json.dumps(report) + "\n")
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train pocket further on SUBJ's text.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/subj"))
    parser.add_argument("--start-from", type=Path, default=POCKET)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = adapt(
        arguments.data,
        arguments.out,
        arguments.start_from,
        arguments.steps,
        resolve_device(arguments.device, "--device"),
    )
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
