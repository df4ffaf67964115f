"""Who says whether a middle fits: the generator's own rules, an LLM behind a URL, a local encoder.

The last two are used where the environment names them:

    POSTERIORI_JUDGE_URL      base URL of an OpenAI-compatible service, such as http://127.0.0.1:8000/v1
    POSTERIORI_JUDGE_MODEL    its model
    POSTERIORI_JUDGE_KEY      bearer token, if it wants one
    POSTERIORI_ENCODER        directory of a Hugging Face encoder, for BERTScore
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from posteriori.errors import UserError
from posteriori.pocket.judge import judge

INSTRUCTION = (
    "Here is a story of five sentences. The fourth one was filled in by a machine. Does it follow from "
    "the first three and lead to the last? Answer with one digit, from 1 (not at all) to 5 (perfectly).\n\n"
)
RATING = re.compile(r"[1-5]")


def consistent(x: str, middle: str, y: str) -> bool:
    """Could the generator have written this story? (``posteriori.pocket.judge``)"""
    return bool(judge(f"{x}{middle}.{y}"))


@dataclass(frozen=True)
class LLMJudge:
    """Ratings from 1 to 5 by an OpenAI-compatible chat service."""

    url: str
    model: str
    key: str = ""
    timeout_seconds: float = 60.0

    def rate(self, story: str) -> float | None:
        """The first digit from 1 to 5 of the answer; None where it holds none.

        Raises:
            UserError: the service does not answer, or not as such a service does.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        question = [{"role": "user", "content": INSTRUCTION + story}]
        try:
            response = httpx.post(
                f"{self.url.rstrip('/')}/chat/completions",
                json={"model": self.model, "messages": question, "temperature": 0, "max_tokens": 8},
                headers=headers,
                timeout=self.timeout_seconds,
            )
            response.raise_for_status()
            answer = str(response.json()["choices"][0]["message"]["content"])
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as cause:
            raise UserError(
                f"The judge at {self.url} gave no answer: {cause!r}.",
                "Check POSTERIORI_JUDGE_URL and POSTERIORI_JUDGE_MODEL, or unset them.",
            ) from cause
        found = RATING.search(answer)
        return float(found[0]) if found else None


class Encoder:
    """BERTScore F1 (Zhang et al. 2020) with a local encoder: greedy matching of token vectors.

    Neither idf weights nor baseline rescaling, which need a corpus of their own.
    """

    def __init__(self, directory: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
            self._model: Any = AutoModel.from_pretrained(directory).eval()
        except (OSError, ValueError) as cause:
            raise UserError(
                f"Cannot load an encoder from POSTERIORI_ENCODER, {directory}: {cause}",
                "Give a directory with config.json and weights, or unset it.",
            ) from cause

    @torch.no_grad()
    def _vectors(self, text: str) -> torch.Tensor:
        inputs = self._tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        hidden = self._model(**inputs).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    def f1(self, candidate: str, reference: str) -> float:
        """Harmonic mean of precision and recall of the best cosine of each token."""
        similarity = self._vectors(candidate) @ self._vectors(reference).T
        precision, recall = similarity.amax(dim=1).mean(), similarity.amax(dim=0).mean()
        return float(2 * precision * recall / (precision + recall))


def llm_judge() -> LLMJudge | None:
    """The judge that the environment names, if it names one.

    Raises:
        UserError: it names a URL and no model.
    """
    url, model = os.environ.get("POSTERIORI_JUDGE_URL"), os.environ.get("POSTERIORI_JUDGE_MODEL")
    if not url:
        return None
    if not model:
        raise UserError(
            "POSTERIORI_JUDGE_URL is set, POSTERIORI_JUDGE_MODEL is not.", "Name the judge's model."
        )
    return LLMJudge(url, model, os.environ.get("POSTERIORI_JUDGE_KEY", ""))


def encoder() -> Encoder | None:
    """The encoder that the environment names, if it names one."""
    directory = os.environ.get("POSTERIORI_ENCODER")
    return Encoder(directory) if directory else None
