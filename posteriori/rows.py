"""Continuations of one prompt, read token by token over one key-value cache.

What ancestral sampling, particle filters, Markov chains and beam search have in common: the prompt is
read once, rows are dropped or copied, and each row reads its next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.tree import causal_model

FloatArray = NDArray[np.float64]


class Rows:
    """R continuations of equal length; one row, the prompt itself, at first.

    Attributes:
        logits: of the alphabet's columns and ⊤ behind each row, float64 [R, V + 1].
        log_normaliser: log Σ exp of the logits of the whole vocabulary, [R]; logits − log_normaliser
            is log p over the vocabulary, legal or not.
        token_forwards: tokens read so far, the prompt's included.
    """

    logits: FloatArray
    log_normaliser: FloatArray

    def __init__(self, lm: LanguageModel, prompt_ids: Sequence[int], moves: LegalMoves) -> None:
        from transformers import DynamicCache

        self._model: Any = causal_model(lm.model)
        self._columns = torch.from_numpy(moves.column_tokens).to(self._model.device)
        # Without the model's configuration the cache keeps every position, sliding windows included.
        self._cache = DynamicCache()
        self.token_forwards = 0
        self._read([[int(token) for token in prompt_ids]])

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Keep these rows, in this order; a row named twice is copied. At least one."""
        index = np.asarray(rows, dtype=np.int64)
        if np.array_equal(index, np.arange(len(self))):
            return
        self._cache.batch_select_indices(torch.from_numpy(index).to(self._model.device))
        self.logits = self.logits[index]
        self.log_normaliser = self.log_normaliser[index]

    def advance(self, tokens: Sequence[int] | NDArray[np.int64]) -> None:
        """Every row reads its own next token."""
        self._read([[int(token)] for token in tokens])

    @torch.no_grad()
    def _read(self, tokens: list[list[int]]) -> None:
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last = output.logits[:, -1].double()
        self.logits = last[:, self._columns].cpu().numpy()
        self.log_normaliser = torch.logsumexp(last, dim=-1).cpu().numpy()
        self.token_forwards += sum(map(len, tokens))
