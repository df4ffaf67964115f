"""Stories and their judge: every story written is accepted, every kind of corruption is named."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from posteriori.pocket import world
from posteriori.pocket.judge import Verdict, judge
from posteriori.pocket.plot import Line, Plot
from posteriori.pocket.stories import PLOTS, story, story_sentences

LOST = (
    "Tom had a red key. One morning the red key was gone. He asked Anna for help. "
    "Then Anna found the red key in the attic. Tom thanked Anna and put the red key away."
)


def test_every_story_is_consistent() -> None:
    rng = random.Random(1)
    for plot in PLOTS:
        for _ in range(100):
            text = " ".join(story_sentences(rng, plot))
            assert judge(text), text


def test_no_plot_has_a_dead_end() -> None:
    """Whatever has happened, some line may follow: explore every reachable set of facts."""
    for plot in PLOTS:
        reachable = {frozenset[str]()}
        for lines in plot.lines:
            following = set()
            for facts in reachable:
                allowed = [line for line in lines if line.allowed(facts)]
                assert allowed, (plot.title, facts)
                following |= {facts | line.gives for line in allowed}
            reachable = following


def test_every_line_is_reachable() -> None:
    for plot in PLOTS:
        reachable = {frozenset[str]()}
        for lines in plot.lines:
            for line in lines:
                assert any(line.allowed(facts) for facts in reachable), (plot.title, line.text)
            reachable = {f | line.gives for f in reachable for line in lines if line.allowed(f)}


def test_the_middle_is_open_given_the_beginning() -> None:
    """Several middles may follow any beginning, and the ending excludes some of them."""
    for plot in PLOTS:
        beginnings = {frozenset[str]()}
        for lines in plot.lines[:3]:
            beginnings = {f | line.gives for f in beginnings for line in lines if line.allowed(f)}
        for facts in beginnings:
            middles = [line for line in plot.lines[3] if line.allowed(facts)]
            assert len(middles) >= 2, (plot.title, facts)
            endings = [
                {e.text for e in plot.lines[4] if e.allowed(facts | m.gives)} for m in middles
            ]
            assert any(a != b for a in endings for b in endings), (plot.title, facts)


def test_words_are_few_and_one_piece_each() -> None:
    rng = random.Random(2)
    words = Counter(word for _ in range(3000) for word in re.findall(r"\w+", story(rng).lower()))
    assert 300 < len(words) < 600
    for words_of_slot in (words for plot in PLOTS for words in plot.slots.values()):
        assert all(re.fullmatch("[A-Za-z]+", word) for word in words_of_slot)
        assert len(set(words_of_slot)) == len(words_of_slot)


@pytest.mark.parametrize(
    ("old", "new", "rule", "sentence"),
    [
        ("Tom thanked", "Ben thanked", "reference", 4),
        ("Then Anna found", "Then Lucy found", "reference", 3),
        ("Tom thanked Anna", "Tom thanked Tom", "reference", 4),
        ("found the red key in", "found the red ring in", "reference", 3),
        ("found the red key", "found the blue key", "reference", 3),
        ("He asked", "She asked", "pronoun", 2),
        ("Tom thanked Anna and put the red key away.", "Tom was happy.", "unknown sentence", 4),
        ("Tom thanked Anna and put the red key away.", "Tom went to bed hungry.", "order", 4),
        (
            "Tom thanked Anna and put the red key away.",
            "Tom laughed and thanked the dog.",
            "cause",
            4,
        ),
        ("in the attic", "in the lake", "unknown word", 3),
        ("He asked Anna for help.", "He was very sad and looked in the office.", "cause", 3),
        (" Tom thanked Anna and put the red key away.", "", "length", 4),
        ("put the red key away.", "put the red key away. Tom was gone.", "length", 5),
        ("put the red key away.", "put the red key away", "unknown sentence", 4),
    ],
)
def test_corruptions_are_named(old: str, new: str, rule: str, sentence: int) -> None:
    assert judge(LOST)
    assert old in LOST
    assert judge(LOST.replace(old, new)) == Verdict(False, rule, sentence)


def test_other_names_and_shuffled_sentences_are_rejected() -> None:
    """Systematic corruptions of many stories; each changes the meaning of all of them."""
    rng = random.Random(3)
    for _ in range(300):
        sentences = story_sentences(rng)
        text = " ".join(sentences)
        ending = sentences[4]
        names = re.findall("|".join(world.NAMES), ending)
        if names and names[0] in " ".join(sentences[:4]):
            stranger = rng.choice([name for name in world.NAMES if name not in text])
            corrupt = [*sentences[:4], ending.replace(names[0], stranger)]
            assert not judge(" ".join(corrupt)), corrupt
        assert not judge(" ".join(sentences[::-1]))
        assert not judge(" ".join(sentences[:4]))


def test_endings_of_other_middles_are_rejected() -> None:
    """Swap the ending for one that this middle does not allow, slots filled as they are."""
    rng = random.Random(4)
    rejected = 0
    for plot in PLOTS:
        for _ in range(20):
            first, second = story_sentences(rng, plot), story_sentences(rng, plot)
            rejected += not judge(" ".join([*first[:4], second[4]]))
    assert rejected > 0.8 * 20 * len(PLOTS)


@pytest.mark.parametrize("source", ["a : b : c. : d", "no stop", "a : b : c."])
def test_bad_notation_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(source))):
        Line.parse(source)


def test_unknown_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown slots"):
        Plot("x", {"n": world.NAMES}, (["{n} saw {who}."],) * 5)
