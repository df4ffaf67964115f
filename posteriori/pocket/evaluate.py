"""Measure a trained pocket: ``python -m posteriori.pocket.evaluate --model DIR [--steps-of-text
N]``.

Writes ``evaluation.json`` and the model card into the model's folder. Everything is seeded; samples
are drawn from the whole distribution at temperature 1 unless said otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from posteriori.pocket import WEIGHTS
from posteriori.pocket.arithmetic import correct_answer, expression, question_operands
from posteriori.pocket.card import write_card
from posteriori.pocket.corpus import GENRES, documents
from posteriori.pocket.integers import PROMPT as NUMBER_PROMPT
from posteriori.pocket.judge import judge
from posteriori.pocket.ngram import KneserNey
from posteriori.pocket.pretrain import HELD_OUT_SEED, pack_rows
from posteriori.pocket.recipe import RECIPES
from posteriori.pocket.reviews import CLASSES, review
from posteriori.pocket.stories import story_sentences

#: Three right demonstrations, as the prompted baseline gets them.
DEMONSTRATIONS: Final = (
    "Question: 3 + 5 - 9 = ? Answer: 3 + 5 = 8, 8 - 9 = -1. The answer is -1. "
    "Question: 7 - 2 + 6 - 4 = ? Answer: 7 - 2 = 5, 5 + 6 = 11, 11 - 4 = 7. The answer is 7. "
    "Question: 1 - 8 - 2 = ? Answer: 1 - 8 = -7, -7 - 2 = -9. The answer is -9."
)
_ANSWER: Final = re.compile(r"The answer is (-?\d+)\.")
_BATCH_ROWS: Final = 64


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in evaluation mode, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    return model.eval(), AutoTokenizer.from_pretrained(str(folder))


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """One continuation (without the prompt) of each prompt; greedy at temperature 0."""
    torch.manual_seed(seed)
    continuations: list[str] = []
    for start in range(0, len(prompts), _BATCH_ROWS):
        batch = tokenizer(
            list(prompts[start : start + _BATCH_ROWS]), return_tensors="pt", padding=True
        )
        choice = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            **choice,
        )
        new = ids[:, batch["input_ids"].shape[1] :]
        continuations += tokenizer.batch_decode(new, skip_special_tokens=True)
    return continuations


@torch.no_grad()
def document_log_probability(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[float, int]:
    """Sum of natural log p over the tokens of `texts` (with EOS, given BOS), and their number."""
    total, count = 0.0, 0
    for start in range(0, len(texts), _BATCH_ROWS):
        rows = [
            [*ids, tokenizer.eos_token_id]
            for ids in tokenizer(list(texts[start : start + _BATCH_ROWS]))["input_ids"]
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        logs = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        chosen = logs.gather(-1, ids[:, 1:, None])[..., 0]
        real = torch.tensor([[i < len(row) for i in range(1, width)] for row in rows])
        total += float(chosen[real].sum())
        count += int(real.sum())
    return total, count


def perplexities(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    baseline: KneserNey,
    documents_per_genre: int = 400,
) -> dict[str, dict[str, float]]:
    """Held-out perplexity per token of the model and of the 5-gram, by genre."""
    result = {}
    for genre in GENRES:
        texts = [
            document.text
            for document in islice(documents(HELD_OUT_SEED, genre), documents_per_genre)
        ]
        total, count = document_log_probability(model, tokenizer, texts)
        stream = np.concatenate(
            [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
        )
        gram = float(baseline.log_probabilities(stream).mean())
        result[genre] = {"pocket": math.exp(-total / count), "5-gram": math.exp(-gram)}
    return result


def story_consistency(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stories: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Share of stories, sampled after a held-out first sentence, that the judge accepts."""
    rng = random.Random(HELD_OUT_SEED + seed)
    prompts = [story_sentences(rng)[0] for _ in range(stories)]
    texts = [
        p + c
        for p, c in zip(prompts, sample(model, tokenizer, prompts, 90, seed=seed), strict=True)
    ]
    verdicts = [judge(text) for text in texts]
    return {
        "stories": stories,
        "consistent": sum(map(bool, verdicts)) / stories,
        "broken_rules": dict(Counter(verdict.rule for verdict in verdicts if not verdict)),
        "distinct": len(set(texts)),
        "examples": [
            {"text": t, "rule": v.rule} for t, v in list(zip(texts, verdicts, strict=True))[:8]
        ],
    }


def arithmetic_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: int = 400
) -> dict[str, Any]:
    """Share of right answers after three demonstrations, by operands and by way of decoding."""
    result: dict[str, Any] = {"questions": questions, "demonstrations": 3}
    for operands_count in (3, 4, 5):
        rng = random.Random(HELD_OUT_SEED + operands_count)
        drawn = [question_operands(rng, operands_count) for _ in range(questions)]
        prompts = [f"{DEMONSTRATIONS} Question: {expression(*each)} = ? Answer:" for each in drawn]
        row = {}
        for name, temperature in (
            ("temperature 1", 1.0),
            ("temperature 0.5", 0.5),
            ("greedy", 0.0),
        ):
            texts = sample(model, tokenizer, prompts, 52, temperature=temperature)
            answers = [_ANSWER.search(text) for text in texts]
            right = [
                a and int(a[1]) == correct_answer(*d) for a, d in zip(answers, drawn, strict=True)
            ]
            row[name] = sum(map(bool, right)) / questions
            if name == "temperature 1" and operands_count == 3:
                result["examples"] = texts[:5]
        result[f"{operands_count} operands"] = row
    return result


def number_validity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, draws: int = 1000
) -> dict[str, Any]:
    """Share of answers to the random-integer prompt that are one of 0..99; the commonest."""
    texts = [text.strip() for text in sample(model, tokenizer, [NUMBER_PROMPT] * draws, 8)]
    valid = [text for text in texts if text in {str(value) for value in range(100)}]
    return {
        "draws": draws,
        "valid": len(valid) / draws,
        "commonest": Counter(texts).most_common(10),
    }


def review_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: int = 400
) -> dict[str, Any]:
    """Share of sampled rationales and labels that name the class the review was written in."""
    rng = random.Random(HELD_OUT_SEED)
    labels = [rng.choice(CLASSES) for _ in range(texts)]
    prompts = [
        f'Classify this movie review as objective or subjective: "{review(label, rng)}" '
        "This review is"
        for label in labels
    ]
    answers = sample(model, tokenizer, prompts, 16)
    right = [f"so it is {label}." in answer for label, answer in zip(labels, answers, strict=True)]
    return {"texts": texts, "right": sum(right) / texts, "examples": answers[:5]}


def evaluate(folder: Path, ngram_recipe: str = "pocket") -> dict[str, Any]:
    """All measurements of the model in `folder`; the 5-gram sees the text of `ngram_recipe`."""
    model, tokenizer = load(folder)
    plan = RECIPES[ngram_recipe]
    rows = pack_rows(tokenizer, plan.seed, plan.steps * plan.batch_rows, plan.row_tokens)
    baseline = KneserNey(rows.ravel(), len(tokenizer), tokenizer.bos_token_id)
    return {
        "ngram_tokens": int(rows.size),
        "perplexity": perplexities(model, tokenizer, baseline),
        "stories": story_consistency(model, tokenizer),
        "arithmetic": arithmetic_accuracy(model, tokenizer),
        "numbers": number_validity(model, tokenizer),
        "reviews": review_accuracy(model, tokenizer),
    }


def main() -> None:
    """Command line: measure, write ``evaluation.json`` and the card."""
    parser = argparse.ArgumentParser(
        description="Measure a trained pocket and write its model card."
    )
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--ngram-recipe", choices=sorted(RECIPES), default="pocket", help="text of the 5-gram"
    )
    arguments = parser.parse_args()
    figures = evaluate(arguments.model, arguments.ngram_recipe)
    (arguments.model / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(arguments.model, figures)
    sys.stdout.write(
        json.dumps({k: v for k, v in figures.items() if k != "examples"}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
