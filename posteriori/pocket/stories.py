"""Short causal stories of five sentences, written by walking a plot.

The fourth sentence is open given the first three and constrained by the fifth: plots offer several
middles for one beginning, and endings that need what a certain middle has brought about.
"""

from __future__ import annotations

import random
from typing import Final

from posteriori.pocket.plot import Bindings, Facts, Plot, fill
from posteriori.pocket.plots_home import HOME_PLOTS
from posteriori.pocket.plots_outdoors import OUTDOOR_PLOTS
from posteriori.pocket.plots_people import PEOPLE_PLOTS

PLOTS: Final[tuple[Plot, ...]] = HOME_PLOTS + OUTDOOR_PLOTS + PEOPLE_PLOTS


def story_sentences(rng: random.Random, plot: Plot | None = None) -> list[str]:
    """The five sentences of one story, of `plot` or of a random plot."""
    plot = plot or rng.choice(PLOTS)
    facts: Facts = frozenset()
    bound: Bindings = {}
    sentences = []
    for lines in plot.lines:
        line = rng.choice([line for line in lines if line.allowed(facts)])
        sentence, bound = fill(plot, line, bound, rng)
        facts |= line.gives
        sentences.append(sentence)
    return sentences


def story(rng: random.Random) -> str:
    """One story as a single line of text, sentences joined by a space."""
    return " ".join(story_sentences(rng))


def outline(rng: random.Random) -> str:
    """One story with its parts named, in natural order: the words of infilling, not the task."""
    *beginning, middle, ending = story_sentences(rng)
    return f"Beginning: {' '.join(beginning)}\nMiddle: {middle}\nEnding: {ending}"
