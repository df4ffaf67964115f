"""log Z(x) as a learned table, one number for each X of each problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posteriori.config import LearnerConfig
from posteriori.problems import Problem


class LogZTable:
    """Learned log Z(x).

    A prompt starts at the mean D of its first group instead of 0: log Z is often tens of nats away,
    and the policy would be pulled there meanwhile. The table is trained by plain gradient descent.
    Adam's momentum would go on moving the entries of prompts that were not drawn.

    Args:
        problems: all problems of the run.
        learning_rate: share of the distance to its groups' mean D (twice that for TB) an entry
            moves at each visit.
        prompts_per_step: prompts that share the mean loss of a step.
    """

    def __init__(
        self, problems: Sequence[Problem], learning_rate: float, prompts_per_step: int
    ) -> None:
        self.keys = [
            (problem.name, prompt.id) for problem in problems for prompt in problem.prompts
        ]
        self._row = {key: row for row, key in enumerate(self.keys)}
        self.values = torch.nn.Parameter(
            torch.full((len(self.keys),), torch.nan, dtype=torch.float64)
        )
        # The mean over a step's trajectories gives one prompt 1/P of the gradient it has alone.
        self._rate = learning_rate * prompts_per_step

    @classmethod
    def for_run(cls, problems: Sequence[Problem], config: LearnerConfig) -> LogZTable | None:
        """The table a run's objective needs, None where it needs none."""
        if config.objective != "tb" and config.root != "learned":
            return None
        return cls(problems, config.log_z_learning_rate, config.prompts_per_step)

    def row(self, problem: str, prompt: str) -> int:
        """Row of one X."""
        return self._row[problem, prompt]

    def at(self, rows: Tensor, estimates: Tensor) -> Tensor:
        """log Z of each trajectory, [B], with gradients.

        Args:
            rows: table rows, int64 [B].
            estimates: mean D of each trajectory's group, [B], for rows not seen before.
        """
        rows, estimates = rows.cpu(), estimates.detach().double().cpu()
        unseen = self.values.detach()[rows].isnan()
        with torch.no_grad():
            self.values[rows[unseen]] = estimates[unseen]
        return self.values[rows]

    def step(self) -> None:
        """Move along the accumulated gradient, and forget it."""
        if self.values.grad is not None:
            with torch.no_grad():
                # Rows never seen are NaN and have no gradient; they stay NaN.
                self.values.sub_(self.values.grad, alpha=self._rate)
            self.values.grad = None

    def forget(self) -> None:
        """Start all entries anew, from the next group of each: R has changed."""
        with torch.no_grad():
            self.values.fill_(torch.nan)

    def restore(self, keys: Sequence[Sequence[str]], values: Tensor) -> None:
        """Take over the entries of a checkpoint; prompts it does not know stay unseen."""
        with torch.no_grad():
            for key, value in zip(keys, values, strict=True):
                row = self._row.get((key[0], key[1]))
                if row is not None:
                    self.values[row] = value

    def learned(self) -> dict[tuple[str, str], float]:
        """(problem, prompt) → log Z of the entries seen so far."""
        found = zip(self.keys, self.values.detach().tolist(), strict=True)
        return {key: value for key, value in found if value == value}
