"""Rewards that this actor has computed already: of the Z's of a small posterior most are seen again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Prompt
from posteriori.trajectory import Float32Array

CAPACITY_BYTES = 64 * 2**20
"""About 200,000 Z's of 8 tokens, 35,000 of 200; a small part of what an engine takes."""

ENTRY_BYTES = 300
"""Of one entry beside tokens and scores: two objects, their headers, a place in the table."""

Key = tuple[str, str, int, bytes]


class ScoreCache:
    """log R of Z's by problem, prompt, version of the reward and tokens; the least recently used go first.

    An M step changes the version, so what was computed before is never found again and makes room.

    Args:
        capacity_bytes: of tokens and scores, with ``ENTRY_BYTES`` each; 0 remembers nothing.

    Attributes:
        found, computed: Z's whose scores were there, and were not.
        held_bytes: at present.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._scores: OrderedDict[Key, Float32Array] = OrderedDict()
        self.held_bytes = 0
        self.found = 0
        self.computed = 0

    def log_rewards(
        self, problem: Problem, prompt: Prompt, sequences: Sequence[tuple[int, ...]]
    ) -> tuple[int, dict[tuple[int, ...], Float32Array]]:
        """Score Z's of one X, those that are not known in one call.

        Args:
            problem: whose reward.
            prompt: X.
            sequences: Z's without ⊤, each once.

        Returns:
            The reward's version, and log R at every prefix of each Z, float32 [n + 1].

        Raises:
            RewardError: the reward broke its contract.
        """
        version = problem.reward.version
        scores: dict[tuple[int, ...], Float32Array] = {}
        unknown: dict[tuple[int, ...], Key] = {}
        for z in sequences:
            key = (problem.name, prompt.id, version, np.asarray(z, dtype=np.int32).tobytes())
            known = self._scores.get(key)
            if known is None:
                unknown[z] = key
            else:
                self._scores.move_to_end(key)
                scores[z] = known
        self.found += len(scores)
        self.computed += len(unknown)
        if unknown:
            computed = checked_log_reward(
                problem.reward, problem.name, prompt, problem.moves(prompt), list(unknown)
            )
            for (z, key), score in zip(unknown.items(), computed, strict=True):
                scores[z] = self._scores[key] = score.astype(np.float32)
                self.held_bytes += _size_bytes(key, scores[z])
            while self.held_bytes > self._capacity_bytes:
                self.held_bytes -= _size_bytes(*self._scores.popitem(last=False))
        return version, scores


def _size_bytes(key: Key, score: Float32Array) -> int:
    return len(key[3]) + score.nbytes + ENTRY_BYTES
