"""Overlap of a candidate with one reference, sentence by sentence: BLEU-4 and GLEU-4, in percent.

Both compare words, lower-cased. BLEU has the smoothing that the paper's evaluation used (method 1 of
Chen & Cherry 2014: an n-gram count of zero becomes ε = 0.1); orders longer than the candidate are left
out. GLEU (Wu et al. 2016) is the smaller of precision and recall over all 1- to 4-grams together.
"""

from __future__ import annotations

import math
from collections import Counter

ORDERS = (1, 2, 3, 4)
EPSILON = 0.1


def words(text: str) -> list[str]:
    """Lower-case words; punctuation at their end is dropped."""
    return [stripped for word in text.lower().split() if (stripped := word.strip(".,!?;:"))]


def _ngrams(tokens: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def bleu(candidate: str, reference: str) -> float:
    """Sentence BLEU-4 with smoothing method 1, in percent; 0 where no word is shared."""
    ours, theirs = words(candidate), words(reference)
    logs = []
    for order in ORDERS:
        mine = _ngrams(ours, order)
        total = sum(mine.values())
        if not total:
            continue
        shared = sum((mine & _ngrams(theirs, order)).values())
        if order == 1 and not shared:
            return 0.0
        logs.append(math.log((shared or EPSILON) / total))
    if not logs:
        return 0.0
    brevity = min(0.0, 1 - len(theirs) / len(ours))
    return 100 * math.exp(brevity + sum(logs) / len(logs))


def gleu(candidate: str, reference: str) -> float:
    """Sentence GLEU over 1- to 4-grams, in percent."""
    ours, theirs = words(candidate), words(reference)
    shared = mine = others = 0
    for order in ORDERS:
        a, b = _ngrams(ours, order), _ngrams(theirs, order)
        shared += sum((a & b).values())
        mine += sum(a.values())
        others += sum(b.values())
    return 100 * shared / max(mine, others) if max(mine, others) else 0.0
