"""A policy as a potential of genlm-control: the proposal of its samplers, or a factor of its products.

    from genlm.control import direct_token_sampler
    from posteriori.genlm import policy_potential

    proposal = policy_potential(problem, prompt, policy, like=target)
    sequences = await direct_token_sampler(target, proposal=proposal).smc(64, 0.5, max_tokens=20)

genlm-control (0.4) is not among the pins: install it beside them. Its weights are then those of importance
sampling and SMC with q as proposal, for any target it can state; q must cover what the target allows, so the
problem's alphabet has to hold every token that the target does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posteriori.decoding import move_log_q
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems.problem import Problem
from posteriori.rows import Rows
from posteriori.seams import Prompt

FloatArray = NDArray[np.float64]


def policy_potential(
    problem: Problem, prompt: Prompt, policy: LanguageModel, like: Any = None
) -> Any:
    """log q(· | X) as a ``genlm.control.Potential``.

    ``prefix`` is log q of a prefix of Z, ``complete`` that of z⊤ with ⊤ as genlm's EOS, ``logw_next`` log q of
    every token and of ⊤, normalised over the legal ones; all in nats.

    Args:
        problem: legal moves and what the policy sees before Z.
        prompt: X.
        policy: base LM, or with an adapter.
        like: a potential over the same tokens (its tokens carry ``token_id``, or are ids) whose vocabulary is
            to be shared, as ``proposal=`` demands; None: the ids of the alphabet.

    Raises:
        UserError: genlm-control is not installed, or a tool answers inside Z.
    """
    try:
        from genlm.control import Potential
    except ImportError as cause:
        raise UserError(
            f"genlm-control cannot be imported: {cause}.", "Install it: pip install genlm-control."
        ) from cause
    moves = problem.moves(prompt)
    if moves.tool is not None:
        raise UserError(
            f"A tool answers inside the Z of problem {problem.name!r}.",
            "Sample it with posteriori: genlm-control has no tokens that nobody draws.",
        )
    prompt_ids = problem.policy_ids(prompt)
    tokens = [int(token) for token in moves.alphabet] if like is None else list(like.vocab)
    ids = [int(getattr(token, "token_id", token)) for token in tokens]
    # Tokens beyond the alphabet have q = 0: they read a column of -inf behind ⊤'s.
    columns = [moves.columns.get(token, len(moves.alphabet) + 1) for token in ids]
    columns.append(len(moves.alphabet))
    tables = None if like is None else like.tables

    class PolicyPotential(Potential):  # type: ignore[misc, unused-ignore]
        """See :func:`policy_potential`."""

        def __init__(self) -> None:
            super().__init__(tokens, tables=tables)
            self._known: dict[tuple[int, ...], FloatArray] = {}

        def _log_moves(self, context: Sequence[Any]) -> FloatArray:
            """log q of each token of the vocabulary and EOS behind a legal prefix."""
            z = tuple(int(getattr(token, "token_id", token)) for token in context)
            if z not in self._known:
                actions = moves.actions(z)
                place = (len(actions), moves.states(actions)[-1])
                if not moves.masks(z)[-1].any():
                    found = np.full(len(moves.alphabet) + 1, -np.inf)
                else:
                    scores = moves.scores(Rows(policy, [*prompt_ids, *z], moves).logits, [place])
                    found = move_log_q(scores)[0]
                self._known[z] = np.append(found, -np.inf)[columns]
            return self._known[z]

        async def prefix(self, context: Sequence[Any]) -> float:
            total = 0.0
            for place, token in enumerate(context):
                total += float(self._log_moves(context[:place])[self.lookup[token]])
                if total == -np.inf:
                    break
            return total

        async def complete(self, context: Sequence[Any]) -> float:
            before = await self.prefix(context)
            return before if before == -np.inf else before + float(self._log_moves(context)[-1])

        async def logw_next(self, context: Sequence[Any]) -> Any:
            return self.make_lazy_weights(self._log_moves(context))

    return PolicyPotential()
