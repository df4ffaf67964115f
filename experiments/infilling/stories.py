"""Pocket stories as an infilling problem: X = sentences 1-3, Z = sentence 4, Y = sentence 5."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posteriori.config import ProblemConfig, RewardTerm
from posteriori.data import Record, refuse_leaks
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.moves import DEAD, LegalMoves
from posteriori.pocket.stories import PLOTS, story_sentences

MIN_TOKENS, MAX_TOKENS = 3, 12
"""Length of every middle that the generator writes, its full stop aside."""

PAPER_PROMPT = "Beginning: {x}\nEnding:{y}\nMiddle:"
"""The paper's. pocket has read outlines, but never an ending before its middle: it hardly writes stories here."""

POLICY_PROMPT = "Ending:{y}\n{x}"
"""What is trained and prompted: X comes last, so that the base LM continues it as it can."""

TOKENS_PER_SENTENCE = 14

EVERY_PLOT = 4
"""One plot of so many is told: what a policy must learn in minutes on two cores."""


@dataclass(frozen=True)
class Split:
    """Stories with the fields ``x``, ``middle`` and ``y``; no beginning is in two parts.

    ``x + middle + "." + y`` is the text of a story. ``train`` are those whose Z may be used,
    ``unlabelled`` those whose X and Y alone may be.
    """

    train: list[dict[str, str]]
    unlabelled: list[dict[str, str]]
    test: list[dict[str, str]]


def split(seed: int, train: int, unlabelled: int, test: int) -> Split:
    """Stories of the generator with beginnings that differ from each other.

    Raises:
        UserError: a held-out story is found in training (which a change here might bring about).
    """
    rng = random.Random(f"infilling {seed}")
    stories: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(stories) < train + unlabelled + test:
        *beginning, middle, ending = story_sentences(rng, rng.choice(PLOTS[::EVERY_PLOT]))
        x = " ".join(beginning)
        if x not in seen:
            seen.add(x)
            stories.append({"x": x, "middle": f" {middle.removesuffix('.')}", "y": f" {ending}"})
    parts = stories[:train], stories[train : train + unlabelled], stories[train + unlabelled :]
    records = [
        [Record(story, f"story {index} of part {part}") for index, story in enumerate(stories)]
        for part, stories in enumerate(parts)
    ]
    refuse_leaks([*records[0], *records[1]], records[2], lambda record: record.fields["x"])
    return Split(*parts)


def problem_config(
    train: Sequence[dict[str, str]],
    test: Sequence[dict[str, str]],
    reward_model: str | None = None,
) -> ProblemConfig:
    """log R(Z) = log p(Z . Y | X): ⊤ is the full stop that ends Z, and is scored with Y.

    ``reward_model`` is p where it is not the policy's base.
    """
    return ProblemConfig(
        name="middle",
        kind="product",
        prompts=tuple(train),
        test_prompts=tuple(test),
        policy_prompt=POLICY_PROMPT,
        stop=".",
        min_tokens=MIN_TOKENS,
        max_tokens=MAX_TOKENS,
        terms=(RewardTerm(target="{z}.{y}", context="{x}", model=reward_model),),
    )


def joint_samples(
    lm: LanguageModel, beginnings: Sequence[str], each: int, seed: int
) -> list[dict[str, str]]:
    """(X, Z, Y) with Z, Y ~ p_LM(· | X): exact samples of p(Z | X, Y), one for each Y drawn.

    Z and Y are one sentence each; those whose Z is no legal Z of the problem are dropped, which leaves
    exact samples of the posterior over legal Z, and so are the few that text would not bring back.
    """
    moves = _two_sentences(lm)
    stop = lm.one_token(".", "full stop")
    rng = np.random.default_rng(seed)
    stories = []
    for x in beginnings:
        for drawn in sample(lm, lm.context(x), moves, each, int(rng.integers(2**62))):
            end = drawn.tokens.index(stop)
            middle, ending = drawn.tokens[:end], drawn.tokens[end + 1 :]
            texts = lm.text(middle), lm.text(ending)
            canonical = [lm.encode(text) for text in texts] == [middle, ending]
            if MIN_TOKENS <= end <= MAX_TOKENS and canonical:
                stories.append({"x": x, "middle": texts[0], "y": texts[1]})
    return stories


def _two_sentences(lm: LanguageModel) -> LegalMoves:
    """Any tokens with exactly two full stops, the second one last."""
    end = lm.tokenizer.eos_token_id
    alphabet = [i for i in range(lm.vocabulary_size) if i not in lm.special_ids]
    full_stop = alphabet.index(lm.one_token(".", "full stop"))
    next_state = np.tile(np.array([[0], [1], [DEAD]]), (1, len(alphabet)))
    next_state[0, full_stop], next_state[1, full_stop] = 1, 2
    return LegalMoves(
        alphabet=np.asarray(alphabet),
        stop=int(end),
        min_tokens=2,
        max_tokens=2 * TOKENS_PER_SENTENCE,
        next_state=next_state,
        accepting=np.array([False, False, True]),
    )
