"""A plot: five beats of alternative sentences with the facts they need and give.

A plot is a small non-deterministic state machine. Its state is a set of facts (plain words) and the
words bound to its slots so far. The same lines are used in both directions: `stories` walks them to
write a story, `judge` walks them to find out whether a story could have been written.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from posteriori.pocket import world

SENTENCES: Final = 5
_SLOT: Final = re.compile(r"\{(\w+)\}")

Facts = frozenset[str]
Bindings = dict[str, str]


@dataclass(frozen=True)
class Line:
    """One sentence template, written ``needs : sentence : gives`` with either side optional.

    ``needs`` is a list of facts that must all hold; ``a|b`` holds if either does, ``!a`` if a does
    not. ``gives`` is a list of facts that hold from here on. ``{n}`` in the sentence is a slot of
    the plot, ``{He}`` a pronoun of the main character ``n`` and ``{_time}`` a free slot, drawn anew
    every time.
    """

    needs: tuple[str, ...]
    text: str
    gives: Facts

    @staticmethod
    def parse(source: str) -> Line:
        """Read the notation; ValueError for more than three parts or no full stop."""
        parts = [part.strip() for part in source.split(" : ")]
        if len(parts) > 3:
            raise ValueError(f"too many parts in line {source!r}")
        sentence = next((i for i, part in enumerate(parts) if part.endswith(".")), None)
        if sentence is None or sentence > 1:
            raise ValueError(f"no sentence in line {source!r}")
        needs = parts[0].split() if sentence == 1 else []
        gives = parts[sentence + 1].split() if len(parts) > sentence + 1 else []
        return Line(tuple(needs), parts[sentence], frozenset(gives))

    def allowed(self, facts: Facts) -> bool:
        """Whether every need holds in `facts`."""
        return all(_holds(need, facts) for need in self.needs)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Slots in the order in which they occur, repeated ones repeated."""
        return tuple(_SLOT.findall(self.text))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The sentence as a regular expression, one group (any word) per slot occurrence."""
        literal = [re.escape(part) for part in _SLOT.split(self.text)[::2]]
        return re.compile("([A-Za-z]+)".join(literal))

    def write(self, words: Bindings) -> str:
        """The sentence with every slot filled from `words`."""
        return _SLOT.sub(lambda found: words[found[1]], self.text)


def _holds(need: str, facts: Facts) -> bool:
    if need.startswith("!"):
        return need[1:] not in facts
    return any(option in facts for option in need.split("|"))


@dataclass(frozen=True)
class Plot:
    """A title, the words of each slot, and five beats of alternative lines as `Line` reads them."""

    title: str
    slots: dict[str, tuple[str, ...]]
    beats: tuple[list[str], ...]
    lines: tuple[tuple[Line, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.beats) != SENTENCES:
            raise ValueError(f"plot {self.title!r} has {len(self.beats)} beats, not {SENTENCES}")
        parsed = tuple(tuple(Line.parse(source) for source in beat) for beat in self.beats)
        known = set(self.slots) | set(world.PRONOUNS) | set(world.FREE)
        for line in (line for beat in parsed for line in beat):
            if unknown := set(line.slots) - known:
                raise ValueError(
                    f"plot {self.title!r}: unknown slots {sorted(unknown)} in {line.text!r}"
                )
        object.__setattr__(self, "lines", parsed)

    def words_for(self, slot: str, bound: Bindings) -> tuple[str, ...]:
        """The words that `slot` may take: its list, without words that another slot has taken."""
        taken = {word for other, word in bound.items() if other != slot}
        return tuple(word for word in self.slots[slot] if word not in taken)


def pronoun(slot: str, name: str) -> str:
    """The word of pronoun slot `slot` for the character `name`."""
    return world.PRONOUNS[slot][0 if name in world.MEN else 1]


def fill(plot: Plot, line: Line, bound: Bindings, rng: random.Random) -> tuple[str, Bindings]:
    """Write `line`, binding slots at their first use; returns the sentence and all bindings."""
    bound = dict(bound)
    words: Bindings = {}
    for slot in line.slots:
        if slot in world.FREE:
            words[slot] = rng.choice(world.FREE[slot])
        elif slot in world.PRONOUNS:
            continue
        else:
            if slot not in bound:
                bound[slot] = rng.choice(plot.words_for(slot, bound))
            words[slot] = bound[slot]
    words |= {slot: pronoun(slot, bound["n"]) for slot in line.slots if slot in world.PRONOUNS}
    return line.write(words), bound
