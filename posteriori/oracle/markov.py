"""The next-token table of an exactly order-w Markov language model.

A transformer with one layer and sliding-window attention over w tokens sees the last w tokens and
nothing else, whatever its weights: its next-token distribution is a table over V^w contexts, and
posteriors under it are sums that dynamic programming does exactly (``posteriori.oracle.dynamic``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_CONTEXTS = 2**20
"""Largest table: beyond it (w = 4 at V = 33, say) tabulating takes minutes and gigabytes."""

CONTEXTS_PER_FORWARD = 4096

TOLERANCE_NATS = 1e-3
"""How much a log-probability may depend on position or on tokens outside the window.

Rotary embeddings round differently at every position: 1e-5 in float32.
"""


@dataclass(frozen=True, eq=False)
class MarkovTable:
    """log p(next token | last w tokens).

    A context (c₁ … c_w), c_w the newest, has index Σ c_k V^(w−k).

    Attributes:
        window: w.
        log_p: nats, float64 [V^w, V].
    """

    window: int
    log_p: FloatArray

    @classmethod
    def from_model(cls, model: Any, window: int | None = None) -> MarkovTable:
        """Tabulate a Hugging Face causal LM, in its own dtype, and check that it is order-w Markov.

        Args:
            model: the causal LM.
            window: w; None: the model's ``sliding_window``.

        Raises:
            UserError: the table would be too large, or the model looks further back than w tokens.
        """
        config = model.config.get_text_config()
        if window is None:
            window = getattr(config, "sliding_window", None)
        if window is None:
            raise UserError(
                "The model has no sliding window, so it is not a Markov language model.",
                "Use a one-layer model with sliding_window, such as posteriori.markov_model makes.",
            )
        vocabulary = int(config.vocab_size)
        if vocabulary**window > MAX_CONTEXTS:
            raise UserError(
                f"{vocabulary} tokens and a window of {window} make {vocabulary**window:,} contexts, "
                f"more than {MAX_CONTEXTS:,}.",
                "Use a smaller vocabulary or window.",
            )
        contexts = np.stack(
            np.unravel_index(np.arange(vocabulary**window), (vocabulary,) * window), 1
        )
        table = cls(window, _next_log_probs(model, contexts))
        table._check(model)
        return table

    def _check(self, model: Any) -> None:
        histories = np.random.default_rng(0).integers(
            0, self.vocabulary, (256, 4 * self.window + 8)
        )
        found = _next_log_probs(model, histories)
        gap = float(np.abs(found - self.log_p[self.contexts_of(histories)]).max())
        if not gap <= TOLERANCE_NATS:
            raise UserError(
                f"The model's next-token log-probabilities depend on more than the last {self.window} "
                f"tokens (by up to {gap:.2g} nats): it is not Markov of that order.",
                "Use one layer whose sliding_window is the order.",
            )

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.log_p.shape[1])

    def contexts_of(self, histories: NDArray[np.integer[Any]]) -> IntArray:
        """Index of the context made of the last w tokens of each row; [n]."""
        weights = self.vocabulary ** np.arange(self.window - 1, -1, -1)
        index: IntArray = histories[:, -self.window :].astype(np.int64) @ weights
        return index

    def context_of(self, history: Sequence[int]) -> int:
        """Index of the context after ``history``.

        Raises:
            UserError: the history is shorter than the window, so the model sees less than a context.
        """
        if len(history) < self.window:
            raise UserError(
                f"The prompt has {len(history)} tokens, fewer than the {self.window} of the window.",
                f"Give the Markov oracle a prompt of at least {self.window} tokens.",
            )
        return int(self.contexts_of(np.asarray(history, dtype=np.int64)[None])[0])

    def following(self, contexts: IntArray, tokens: IntArray) -> IntArray:
        """Context after a token; broadcasts."""
        index: IntArray = (contexts * self.vocabulary + tokens) % len(self.log_p)
        return index

    def suffix_log_prob(self, tokens: Sequence[int]) -> FloatArray:
        """log p(tokens | context) for every context; [V^w]."""
        contexts = np.arange(len(self.log_p))
        total = np.zeros(len(self.log_p))
        for token in tokens:
            total += self.log_p[contexts, token]
            contexts = self.following(contexts, np.asarray(token))
        return total

    def sample(self, prompts: IntArray, length: int, seed: int) -> IntArray:
        """Continue each prompt by ``length`` tokens over the whole vocabulary; [n, length]."""
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(np.exp(self.log_p), axis=1)
        contexts = self.contexts_of(prompts)
        drawn = np.empty((len(prompts), length), dtype=np.int64)
        for position in range(length):
            rows = cumulative[contexts]
            uniform = rng.random(len(rows)) * rows[:, -1]
            drawn[:, position] = (rows <= uniform[:, None]).sum(axis=1)
            contexts = self.following(contexts, drawn[:, position])
        return drawn


def _next_log_probs(model: Any, histories: NDArray[np.integer[Any]]) -> FloatArray:
    """log p of the token after each row, [n, V] float64."""
    rows = torch.from_numpy(np.asarray(histories, dtype=np.int64)).to(model.device)
    with torch.no_grad():
        logits = [
            model(chunk, use_cache=False).logits[:, -1].double().cpu()
            for chunk in rows.split(CONTEXTS_PER_FORWARD)
        ]
    found: FloatArray = torch.log_softmax(torch.cat(logits), dim=-1).numpy()
    return found
