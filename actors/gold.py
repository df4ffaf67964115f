"""Gold Z's into the replay buffer once a run, however many actors start and restart.

The actor that holds the claim queues them; the claim is settled when the buffer has taken them all, and
a settled claim is never given again. If the actor dies in between, its lease runs out and another actor
starts over: what the buffer has taken already is merged, so nothing is ever stored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from posteriori.problems import Problem
from posteriori.seams import Prompt

Claim = Literal["yours", "taken", "done"]
"""``taken``: by another, who may still fail."""

TASK = "gold"
"""Its name in the run registry."""

LEASE_SECONDS = 120.0
"""Longer than scoring and inserting takes; how late gold comes if the claimant dies."""


@dataclass
class GoldSupply:
    """What one worker has to do about gold.

    Args:
        problems: of the run.
        claim: asks for the task.
        settle: says that the buffer has it all.
    """

    problems: Sequence[Problem]
    claim: Callable[[], Claim]
    settle: Callable[[], object]

    def __post_init__(self) -> None:
        self.waiting = any(problem.gold for problem in self.problems)
        """Is there gold that nobody is known to have stored?"""
        self._queued = False

    def take(self) -> Iterator[tuple[Problem, Prompt, Sequence[Sequence[int]]]]:
        """(problem, X, its gold Z's) to queue now; nothing unless the claim is this worker's."""
        found = self.claim()
        self.waiting = found == "taken"
        if found == "yours":
            self._queued = True
            for problem in self.problems:
                for identity, sequences in problem.gold.items():
                    yield problem, problem.by_id[identity], sequences

    def stored(self) -> None:
        """The buffer has taken everything that was queued."""
        if self._queued:
            self._queued = False
            self.settle()
