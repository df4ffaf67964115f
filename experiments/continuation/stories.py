"""Beginnings of pocket stories, one to three sentences, and the next sentence as Z."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from posteriori.config import ConstraintConfig, ProblemConfig
from posteriori.data import Record, refuse_leaks
from posteriori.pocket import plots_people, world
from posteriori.pocket.plot import Plot
from posteriori.pocket.stories import story_sentences

MAX_TOKENS: Final = 14
"""The longest sentence of 200 stories has 12 tokens, its full stop aside."""

JOB: Final = plots_people.JOB
"""Goes on in two ways: one of few Z that are likely each, one of many that are not."""

_NAME, _DAY, _COLOR, _CLOTHES = (
    "(" + "|".join(f" {word}" for word in words) + ")"
    for words in (world.NAMES, world.DAYS, world.COLORS, world.CLOTHES)
)

JOB_SENTENCES: Final = (
    f"{_NAME} asked( him| her) to come on{_DAY}"
    f"|( He| She) put on a{_COLOR}{_CLOTHES} and went to talk to{_NAME}"
)
"""Second sentences of that plot, as a constraint: 2,544 Z, all enumerated."""


@dataclass(frozen=True)
class Beginnings:
    """X's with the sentence that followed, which no method is trained on; none is in both parts."""

    train: list[dict[str, str]]
    test: list[dict[str, str]]


def beginnings(seed: int, train: int, test: int, plot: Plot | None = None) -> Beginnings:
    """X's, all different: one to three sentences of any plot, or the first sentence of one plot.

    Raises:
        UserError: a held-out X is found in training (which a change here might bring about).
    """
    rng = random.Random(f"continuation {seed}")
    found: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(found) < train + test:
        sentences = story_sentences(rng, plot)
        length = rng.randint(1, 3) if plot is None else 1
        x = " ".join(sentences[:length])
        if x not in seen:
            seen.add(x)
            found.append({"x": x, "next": " " + sentences[length].removesuffix(".")})
    parts = found[:train], found[train:]
    records = [
        [Record(story, f"beginning {k} of part {part}") for k, story in enumerate(stories)]
        for part, stories in enumerate(parts)
    ]
    refuse_leaks(records[0], records[1], lambda record: record.fields["x"])
    return Beginnings(*parts)


def problem_config(
    train: Sequence[dict[str, str]], temperature: float, enumerable: bool = False
) -> ProblemConfig:
    """σ(Z) ∝ p(Z . | X)^{1/T}, over all Z of at most ``MAX_TOKENS`` or over ``JOB_SENTENCES``."""
    words = sorted(set(re.findall(r" \w+", JOB_SENTENCES)))
    return ProblemConfig(
        name="next",
        kind="constrained" if enumerable else "tempered",
        constraint=ConstraintConfig(regex=JOB_SENTENCES) if enumerable else None,
        prompts=tuple({"x": story["x"]} for story in train),
        alphabet=tuple(words) if enumerable else "vocabulary",
        stop=".",
        max_tokens=MAX_TOKENS,
        temperature=temperature,
    )
