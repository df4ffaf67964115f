"""An interpolated Kneser-Ney n-gram model: the baseline that a language model of this text has to
beat.

An n-gram of token ids is packed into one int64, newest token in the lowest digits, so that counting
is a sort and looking up is a binary search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ORDER: Final = 5


@dataclass(frozen=True)
class _Level:
    """Counts of one order: n-grams, and by context the sum and the number of different tokens."""

    grams: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    types: Ids
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney of order `ORDER` over ids below `vocabulary`, trained on documents
    that start with `bos`.

    Each document is preceded by ORDER − 1 times `bos` (the only place where it may occur), and
    `bos` is never predicted. One discount per order, n₁/(n₁ + 2n₂); the unigrams are interpolated
    with the uniform distribution.
    """

    def __init__(self, stream: npt.NDArray[np.integer], vocabulary: int, bos: int) -> None:
        """Count `stream`, documents one after another. ValueError if n-grams exceed 63 bits."""
        if vocabulary**ORDER >= 2**63:
            raise ValueError(f"{ORDER}-grams over {vocabulary} ids do not fit 63 bits")
        self._vocabulary, self._bos = vocabulary, bos
        grams, counts = np.unique(self._grams(stream), return_counts=True)
        levels = []
        for order in range(ORDER, 0, -1):
            levels.append(self._level(grams, counts))
            # A lower order counts in how many contexts an n-gram occurs, not how often.
            grams, counts = np.unique(grams % vocabulary ** (order - 1), return_counts=True)
        self._levels = levels[::-1]

    def log_probabilities(self, stream: npt.NDArray[np.integer]) -> Floats:
        """Natural log p of every id of `stream` that is not `bos`, in order."""
        grams = self._grams(stream)
        probability: Floats = np.full(len(grams), 1.0 / self._vocabulary)
        for order, level in enumerate(self._levels, start=1):
            own = grams % self._vocabulary**order
            count = _look_up(level.grams, level.counts, own)
            context = own // self._vocabulary
            total = _look_up(level.contexts, level.totals, context)
            types = _look_up(level.contexts, level.types, context)
            known = total > 0
            safe = np.where(known, total, 1)
            mixed = (
                np.maximum(count - level.discount, 0) + level.discount * types * probability
            ) / safe
            probability = np.where(known, mixed, probability)
        logs: Floats = np.log(probability)
        return logs

    def _grams(self, stream: npt.NDArray[np.integer]) -> Ids:
        """The n-gram that ends at every id of `stream` but `bos`."""
        ids = stream.astype(np.int64)
        ids = np.repeat(ids, np.where(ids == self._bos, ORDER - 1, 1))
        grams: Ids = np.zeros(len(ids) - ORDER + 1, dtype=np.int64)
        for offset in range(ORDER):
            grams = grams * self._vocabulary + ids[offset : offset + len(grams)]
        wanted: Ids = grams[ids[ORDER - 1 :] != self._bos]
        return wanted

    def _level(self, grams: Ids, counts: Ids) -> _Level:
        contexts, first = np.unique(grams // self._vocabulary, return_index=True)
        totals: Ids = np.add.reduceat(counts, first).astype(np.int64)
        types: Ids = np.diff(np.append(first, len(grams))).astype(np.int64)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        # Where nothing occurs once there is nothing to learn a discount from; a half is the
        # customary guess.
        discount = once / (once + 2 * twice) if once else 0.5
        return _Level(grams, counts.astype(np.int64), contexts, totals, types, discount)


def _look_up(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """values[keys == wanted], 0 where there is none; `keys` sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Ids = np.where(keys[place] == wanted, values[place], 0)
    return found
