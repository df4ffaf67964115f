"""A preference posterior: (p(Z⊤ | X) · σ(r(X, Z)))^{1/T}, r a reward model's score.

σ(r(X, Z) − r(X, Z′)) is the probability, in the Bradley-Terry model, that Z is preferred to the
reference Z′. The score comes from a function of the user's or from an HTTP service.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from posteriori import templates
from posteriori.config import PreferenceConfig, ProblemConfig
from posteriori.errors import RewardError
from posteriori.factors import call_named, terminable_prefixes
from posteriori.problems.imports import imported
from posteriori.problems.tempered import terms
from posteriori.rewards import (
    BoolArray,
    FloatArray,
    draw_marks,
)
from posteriori.seams import Prompt, Reward

__all__ = ["HttpScorer", "PreferenceReward", "Scorer", "scorer", "terms"]

Scorer = Callable[[Mapping[str, str], Sequence[str]], Sequence[float]]
"""Scores r of several texts of Z, given the fields of X; nats."""

LONGEST_PAUSE_SECONDS = 5.0


def scorer(config: ProblemConfig, fields: Mapping[str, str]) -> Scorer:
    """The reward model of a problem: a service if it is a URL, else a function.

    A service is asked once for the score of an empty Z, so that a wrong address shows before a run starts.

    Args:
        config: section of the run file, with its ``preference``.
        fields: of any X.

    Raises:
        UserError: the import path leads nowhere.
        RewardError: the service does not answer as it should.
    """
    preference = config.preference
    assert preference is not None  # the run file's validation
    if preference.model.startswith(("http://", "https://")):
        service = HttpScorer(preference)
        service(fields, [""])
        return service
    function: Scorer = imported(preference.model, "reward model", f"Problem {config.name!r}")
    return function


class HttpScorer:
    """Scores from a service: POST {"fields": {…}, "texts": […]} → {"scores": […]}.

    Refused connections, timeouts and status 429 and 5xx are tried again; any other answer that is not
    the scores is an error at once.

    Args:
        config: address, size of a request, timeout and attempts.
    """

    def __init__(self, config: PreferenceConfig) -> None:
        self._config = config
        self._client = httpx.Client(timeout=config.timeout_seconds)

    def __call__(self, fields: Mapping[str, str], texts: Sequence[str]) -> list[float]:
        """Scores of all texts, in order.

        Raises:
            RewardError: the service cannot be reached or does not answer with one number for each text.
        """
        size = self._config.texts_per_request
        scores: list[float] = []
        for start in range(0, len(texts), size):
            scores += self._request(fields, list(texts[start : start + size]))
        return scores

    def _request(self, fields: Mapping[str, str], texts: list[str]) -> list[float]:
        where = f"Reward model {self._config.model}"
        retrying = Retrying(
            stop=stop_after_attempt(self._config.attempts),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception_type((httpx.TransportError, _Busy)),
            reraise=True,
        )
        try:
            answer = retrying(self._post, {"fields": dict(fields), "texts": texts})
        except (httpx.HTTPError, httpx.InvalidURL, _Busy) as cause:
            raise RewardError(
                f"{where} did not answer in {self._config.attempts} attempts: "
                f"{type(cause).__name__} {cause}".rstrip(". ")
                + ".",
                "Check that it is up and reachable from every actor, or raise preference.timeout_seconds "
                "and preference.attempts; then continue with --resume.",
            ) from cause
        try:
            scores = [float(score) for score in answer.json()["scores"]]
            answer.raise_for_status()
        except (ValueError, KeyError, TypeError, httpx.HTTPStatusError) as cause:
            raise RewardError(
                f"{where} answered with status {answer.status_code} and {answer.text[:200]!r}.",
                'It must answer {"scores": [one number for each of "texts"]}.',
            ) from cause
        return scores

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        answer = self._client.post(self._config.model, json=body)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise _Busy(f"status {answer.status_code}: {answer.text[:200]}")
        return answer


class _Busy(Exception):
    """The service says to come back later."""


class PreferenceReward:
    """Another reward times σ(r(X, Z) − r(X, reference))^weight.

    Args:
        base: R₀.
        score: r.
        text: token ids → text.
        reference: template of Z′; None: σ(r(X, Z)).
        weight: 1/T.
        name: what errors call the reward model.
    """

    def __init__(
        self,
        base: Reward,
        score: Scorer,
        text: Callable[[Sequence[int]], str],
        reference: str | None,
        weight: float,
        name: str,
    ) -> None:
        self.base = base
        self._score = score
        self._text = text
        self._reference = reference
        self._weight = weight
        self._name = name

    @property
    def version(self) -> int:
        """That of R₀."""
        return self.base.version

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See ``Reward.log_reward``. All prefixes are scored in one call.

        Raises:
            RewardError: the reward model failed, or a score is missing or not finite; names prompt and Z.
        """
        totals = self.base.log_reward(prompt, sequences)
        places = terminable_prefixes(totals, sequences)
        texts = [self._text(z) for z in places]
        scores = self.scores(prompt, texts)
        for score, found in zip(scores, places.values(), strict=True):
            for row, prefix in found:
                totals[row][prefix] += self._weight * log_sigmoid(score)
        return totals

    def scores(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """r of each text, less r of the reference; raises like :meth:`log_reward`."""
        distinct = list(dict.fromkeys(texts))
        asked = list(distinct)
        if self._reference is not None:
            asked.append(templates.fill(self._reference, prompt.fields).before)
        first = asked[0] if asked else ""
        found = call_named(self._score, (prompt.fields, asked), self._name, prompt, first)
        scores = np.asarray(found, dtype=np.float64)
        if scores.shape != (len(asked),):
            raise RewardError(
                f"{self._name} gave scores of shape {scores.shape} for {len(asked)} texts of prompt {prompt.id!r}.",
                "Return one number for each text, in order.",
            )
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise RewardError(
                f"{self._name} scored prompt {prompt.id!r}, Z = {asked[bad[0]]!r} with {scores[bad[0]]}.",
                "Return finite scores for every legal Z.",
            )
        if self._reference is not None:
            scores = scores[:-1] - scores[-1]
        by_text = dict(zip(distinct, scores.tolist(), strict=True))
        return [by_text[text] for text in texts]

    def marks(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> dict[str, BoolArray]:
        """Those of R₀."""
        return draw_marks(self.base, prompt, sequences)


def log_sigmoid(score: float) -> float:
    """log σ(score) = -log(1 + e^-score), without overflow."""
    return min(score, 0.0) - math.log1p(math.exp(-abs(score)))
