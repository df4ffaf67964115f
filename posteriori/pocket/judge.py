"""Is a story one that the world allows? The generator's own rules, read backwards.

`judge` keeps every hypothesis (plot, words bound to slots, facts) that explains the sentences so
far. A story is consistent if at least one hypothesis survives all five sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from posteriori.pocket import world
from posteriori.pocket.plot import SENTENCES, Bindings, Facts, Line, Plot, pronoun
from posteriori.pocket.stories import PLOTS

#: Rules from the least to the most specific: the most specific one broken at the first bad sentence
#: is reported.
RULES: Final = (
    "length",
    "unknown sentence",
    "order",
    "unknown word",
    "cause",
    "reference",
    "pronoun",
)

_SENTENCE: Final = re.compile(r"[^.]+\.")


@dataclass(frozen=True)
class Verdict:
    """Whether a story is consistent; if not, the rule it broke, and the index (from 0) of the first
    bad sentence.

    Rules: ``length`` (not five sentences), ``unknown sentence`` (no template of the world),
    ``order`` (a template of another plot or place in the plot), ``unknown word`` (a word that its
    slot cannot take), ``cause`` (a fact that the sentence needs does not hold, or one it excludes
    does), ``reference`` (another name, thing or place than before, or one word for two things),
    ``pronoun`` (the wrong gender).
    """

    consistent: bool
    rule: str | None = None
    sentence: int | None = None

    def __bool__(self) -> bool:
        return self.consistent


@dataclass(frozen=True)
class _Hypothesis:
    plot: Plot
    bound: Bindings
    facts: Facts


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` with their full stops; a remainder without one counts too."""
    sentences = [found.strip() for found in _SENTENCE.findall(text)]
    rest = text[text.rfind(".") + 1 :].strip()
    return [*sentences, rest] if rest else sentences


def judge(text: str) -> Verdict:
    """Judge one story of five sentences; never raises."""
    sentences = split_sentences(text)
    hypotheses = [_Hypothesis(plot, {}, frozenset()) for plot in PLOTS]
    for index, sentence in enumerate(sentences[:SENTENCES]):
        survivors: list[_Hypothesis] = []
        broken = "unknown sentence"
        for hypothesis in hypotheses:
            for line in hypothesis.plot.lines[index]:
                result = _read(hypothesis, line, sentence)
                if isinstance(result, _Hypothesis):
                    survivors.append(result)
                elif result is not None:
                    broken = max(broken, result, key=RULES.index)
        if not survivors:
            if broken == "unknown sentence" and _known(sentence):
                broken = "order"
            return Verdict(False, broken, index)
        hypotheses = survivors
    if len(sentences) != SENTENCES:
        return Verdict(False, "length", min(len(sentences), SENTENCES))
    return Verdict(True)


def _known(sentence: str) -> bool:
    """Whether any line of any plot could read like `sentence`."""
    lines = (line for plot in PLOTS for beat in plot.lines for line in beat)
    return any(line.pattern.fullmatch(sentence) for line in lines)


def _read(before: _Hypothesis, line: Line, sentence: str) -> _Hypothesis | str | None:
    """The hypothesis after `sentence` read as `line`, the rule it breaks, or None if no match."""
    found = line.pattern.fullmatch(sentence)
    if found is None:
        return None
    bound = dict(before.bound)
    pairs = list(zip(line.slots, found.groups(), strict=True))
    for slot, word in pairs:
        if slot in world.PRONOUNS:
            continue
        allowed = world.FREE[slot] if slot in world.FREE else before.plot.slots[slot]
        if word not in allowed:
            return "unknown word"
        if slot in world.FREE:
            continue
        if bound.get(slot, word) != word or word not in before.plot.words_for(slot, bound):
            return "reference"
        bound[slot] = word
    for slot, word in pairs:
        if slot in world.PRONOUNS and ("n" not in bound or word != pronoun(slot, bound["n"])):
            return "pronoun"
    if not line.allowed(before.facts):
        return "cause"
    return _Hypothesis(before.plot, bound, before.facts | line.gives)
