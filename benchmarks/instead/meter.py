"""What a method costs, by one rule for all: positions through the language model, sequences scored, CPU seconds.

A position of a forward pass counts 1; where a gradient is wanted it counts 3, for a backward pass takes about
two forwards. Whose LM it is and what for, whether it samples, scores or learns, makes no difference, and padding
counts, for it is computed. So does everything that the training loop does beside its work: checks, adapters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori.problems import Problem
from posteriori.seams import Prompt, Reward

FORWARD = 1
FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Cost:
    """What has been spent.

    Attributes:
        token_forwards: see the module.
        reward_evaluations: sequences handed to the reward, all prefixes of one together.
        seconds: of all threads of this process.
    """

    token_forwards: float = 0.0
    reward_evaluations: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.token_forwards + other.token_forwards,
            self.reward_evaluations + other.reward_evaluations,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(
            self.token_forwards * times, self.reward_evaluations * times, self.seconds * times
        )


class Meter:
    """Counts while it runs; what happens within :meth:`paused` is not counted."""

    def __init__(self) -> None:
        self._spent = Cost()
        self._since: float | None = None

    @property
    def cost(self) -> Cost:
        """Spent so far."""
        running = 0.0 if self._since is None else time.process_time() - self._since
        return self._spent + Cost(seconds=running)

    def add(self, token_forwards: int = 0, reward_evaluations: int = 0) -> None:
        """Count work, unless paused."""
        if self._since is not None:
            self._spent += Cost(token_forwards, reward_evaluations)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Measuring itself costs nothing."""
        self._stop()
        try:
            yield
        finally:
            self._since = time.process_time()

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """Count the forwards of every language model of ``model``'s class, copies and adapters included."""
        kind = type(model.get_decoder())
        forward = kind.forward

        def counted(inner: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            each = FORWARD_AND_BACKWARD if torch.is_grad_enabled() else FORWARD
            self.add(token_forwards=each * input_ids.numel())
            return forward(inner, input_ids, *args, **kwargs)

        kind.forward = counted
        self._since = time.process_time()
        try:
            yield
        finally:
            kind.forward = forward
            self._stop()

    def _stop(self) -> None:
        assert self._since is not None
        self._spent += Cost(seconds=time.process_time() - self._since)
        self._since = None

    def problem(self, problem: Problem) -> Problem:
        """The same problem, its reward evaluations counted."""
        return replace(problem, reward=_Counted(problem.reward, self))


class _Counted:
    """A reward that counts; ``base`` is what it counts for, as ``rewards.layers`` expects."""

    def __init__(self, base: Reward, meter: Meter) -> None:
        self.base = base
        self._meter = meter

    @property
    def version(self) -> int:
        return self.base.version

    def log_reward(
        self, prompt: Prompt, sequences: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        self._meter.add(reward_evaluations=len(sequences))
        return self.base.log_reward(prompt, sequences)
