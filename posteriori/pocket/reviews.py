"""Review-like sentences, plain or with an objective/subjective label and a short rationale.

Labels are noisy on purpose: a classifier prompted from this text has something to gain from a
better rationale.
"""

from __future__ import annotations

import random
from typing import Final

CLASSES: Final = ("objective", "subjective")

#: Chance that the rationale fits the text, and that the label fits the rationale.
FITTING_RATIONALE: Final = 0.8
FITTING_LABEL: Final = 0.92
#: Chance that a sentence gets a clause of the other class after it.
MIXED: Final = 0.3

_WHO: Final = (
    "a young teacher", "an old farmer", "a lonely nurse", "a shy painter", "a famous cook", "a poor driver",
    "the brother of a baker", "a mother of two", "a girl from the city", "a group of friends", "a man with no name",
    "the new doctor", "a police officer", "a dancer", "two sisters", "a soldier",
)  # fmt: skip
_DOES: Final = (
    "returns to", "leaves", "moves to", "gets lost in", "finds a letter in", "looks for money in",
    "meets a friend in", "hides in", "takes a trip to", "must save", "wakes up in", "dreams of",
)  # fmt: skip
_WHERE: Final = (
    "a small village", "the city", "a hospital", "the forest", "a farm by the lake", "an old school",
    "a train station", "the house of an uncle", "a prison", "a strange hotel", "the market", "a museum",
)  # fmt: skip
_WHEN: Final = (
    "after the war", "in the summer", "one winter", "with a dog", "to find a brother", "before the big game",
    "when the rain starts", "on a cold night", "and falls in love", "and learns the truth", "to sell a car", "",
)  # fmt: skip
_HEDGE: Final = (
    "",
    "",
    "really",
    "quietly",
    "never",
    "always",
    "almost",
    "truly",
    "often",
    "simply",
)
_GOOD: Final = (
    "funny",
    "charming",
    "moving",
    "clever",
    "warm",
    "brilliant",
    "lovely",
    "exciting",
    "honest",
    "fresh",
)
_BAD: Final = (
    "boring",
    "silly",
    "empty",
    "dull",
    "clumsy",
    "cheap",
    "tired",
    "ugly",
    "confused",
    "lazy",
)
_FILM: Final = ("film", "movie", "comedy", "drama", "thriller", "story", "picture", "show")
_PART: Final = ("script", "music", "acting", "plot", "ending", "cast", "camera", "humor")
_TURN: Final = ("and", "but", "yet")

#: Reasons by the class that they speak for.
RATIONALES: Final = {
    "objective": (
        "about the plot", "a description", "telling the story", "full of facts", "a plain summary", "about a person",
        "only facts", "about what happens", "a list of events", "without opinion",
    ),
    "subjective": (
        "an opinion", "full of feeling", "a personal view", "very critical", "praise", "about the acting",
        "a strong judgment", "not neutral", "how someone feels", "full of praise",
    ),
}  # fmt: skip


def _plot_clause(rng: random.Random) -> str:
    parts = (rng.choice(_WHO), rng.choice(_DOES), rng.choice(_WHERE), rng.choice(_WHEN))
    return " ".join(part for part in parts if part)


def _opinion_clause(rng: random.Random) -> str:
    tone, other = rng.choice(((_GOOD, _BAD), (_BAD, _GOOD)))
    first, second = rng.sample(tone, 2)
    turn, hedge = rng.choice(_TURN), rng.choice(_HEDGE)
    last = rng.choice(other) if turn != "and" else second
    form = rng.randrange(4)
    if form == 0:
        return f"a {hedge} {first} {turn} {last} {rng.choice(_FILM)}".replace("  ", " ")
    if form == 1:
        return f"the {rng.choice(_PART)} is {hedge} {first} {turn} the {rng.choice(_PART)} is {last}".replace(
            "  ", " "
        )
    if form == 2:
        return f"it is a {first} {rng.choice(_FILM)} with {rng.choice(('a', 'no', 'some'))} {second} {rng.choice(_PART)}"
    return f"one of the most {first} films about {rng.choice(_WHO)}"


def review(label: str, rng: random.Random) -> str:
    """A review sentence of class `label`, lower case with a full stop."""
    writers = {"objective": _plot_clause, "subjective": _opinion_clause}
    text = writers[label](rng)
    if rng.random() < MIXED:
        text += ", " + writers[CLASSES[1 - CLASSES.index(label)]](rng)
    return text + "."


def labelled_review(rng: random.Random) -> str:
    """A review with its (noisy) rationale and label, in the words of a classifier's prompt."""
    label = rng.choice(CLASSES)
    text = review(label, rng)
    thought = label if rng.random() < FITTING_RATIONALE else rng.choice(CLASSES)
    said = thought if rng.random() < FITTING_LABEL else CLASSES[1 - CLASSES.index(thought)]
    reason = rng.choice(RATIONALES[thought])
    return (
        f'Classify this movie review as objective or subjective: "{text}" '
        f"This review is {reason}, so it is {said}."
    )


def reviews(rng: random.Random) -> str:
    """A document: one to three labelled reviews, or one to four plain sentences."""
    if rng.random() < 0.6:
        return " ".join(
            labelled_review(rng)
            for _ in range(rng.choices((1, 2, 3, 4), (0.55, 0.15, 0.15, 0.15))[0])
        )
    return " ".join(review(rng.choice(CLASSES), rng) for _ in range(rng.randint(1, 4)))
