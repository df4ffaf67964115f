"""Beginnings of pocket stories, and how they go on as Z: the rest of the story, or one sentence of one plot.

The paper continues with one sentence, of which a large LM of natural text has more than any number of samples
shows. Pocket's next sentence has so few that 20 draws of any method hold the likeliest one; of the four sentences
that follow the first it has more than that.
"""

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

MAX_TOKENS: Final = 50
"""The longest rest of 3,000 stories has 45 tokens."""

JOB_TOKENS: Final = 14
"""Of the longest sentence of that plot, its full stop aside: 12."""

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
    """First sentences, all different, of stories of any plot or of one, and what followed them.

    Args:
        seed: of the stories.
        train, test: how many X's.
        plot: None: all of them, and what followed is the rest of the story; else the next sentence.

    Raises:
        UserError: a held-out X is found in training (which a change here might bring about).
    """
    rng = random.Random(f"continuation {seed}")
    found: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(found) < train + test:
        x, *rest = story_sentences(rng, plot)
        if x not in seen:
            seen.add(x)
            following = " ".join(rest) if plot is None else rest[0].removesuffix(".")
            found.append({"x": x, "next": " " + following})
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
    """σ(Z) ∝ p(Z⊤ | X)^{1/T}: over all Z of at most ``MAX_TOKENS``, or ``enumerable``: over ``JOB_SENTENCES``.

    ⊤ is the end of the text, or the full stop of the sentence.
    """
    words = sorted(set(re.findall(r" \w+", JOB_SENTENCES)))
    return ProblemConfig(
        name="next",
        kind="constrained" if enumerable else "tempered",
        model="pocket",  # whatever the policy's base is
        constraint=ConstraintConfig(regex=JOB_SENTENCES) if enumerable else None,
        prompts=tuple({"x": story["x"]} for story in train),
        alphabet=tuple(words) if enumerable else "vocabulary",
        stop="." if enumerable else None,
        max_tokens=JOB_TOKENS if enumerable else MAX_TOKENS,
        temperature=temperature,
    )
