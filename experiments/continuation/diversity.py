"""How much n sentences differ: distinct n-grams, and the angles between their embeddings."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori.errors import UserError
from posteriori.lm import LanguageModel

FloatArray = NDArray[np.float64]


def distinct(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of the sequences (Li et al. 2016); 0 if there are none."""
    grams = [tuple(z[i : i + n]) for z in sequences for i in range(len(z) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def diversity(embeddings: FloatArray) -> float:
    """1 − mean cosine over the pairs of n ≥ 2 embeddings [n, H], as in the paper (section 4.1)."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    total = unit.sum(axis=0)
    n = len(unit)
    return float(1 - (total @ total - n) / (n * (n - 1)))


class Embedder:
    """Mean of the last hidden states over a sentence, less the mean over reference sentences.

    The encoder is the one that POSTERIORI_ENCODER names, a directory; else the base LM itself. Its
    embeddings all point the same way, so that without the mean every cosine is near 1.

    Raises:
        UserError: nothing loadable is there.
    """

    def __init__(self, lm: LanguageModel, references: Sequence[str]) -> None:
        directory = os.environ.get("POSTERIORI_ENCODER")
        self._model: Any = lm.model.base_model
        self._tokenizer: Any = lm.tokenizer
        if directory:
            from transformers import AutoModel, AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(directory)
                self._model = AutoModel.from_pretrained(directory).eval()
            except (OSError, ValueError) as cause:
                raise UserError(
                    f"Cannot load an encoder from POSTERIORI_ENCODER, {directory}: {cause}",
                    "Give a directory with config.json and weights, or unset it.",
                ) from cause
        self._known: dict[str, FloatArray] = {}
        self._centre: FloatArray | float = 0.0
        self._centre = self(references).mean(axis=0)

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings, [n, H]."""
        for text in set(texts) - set(self._known):
            self._known[text] = self._embed(text)
        found: FloatArray = np.stack([self._known[text] for text in texts]) - self._centre
        return found

    @torch.no_grad()
    def _embed(self, text: str) -> FloatArray:
        inputs = self._tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        inputs = inputs.to(self._model.device)
        embedding: FloatArray = (
            self._model(**inputs).last_hidden_state[0].mean(dim=0).double().cpu().numpy()
        )
        return embedding
