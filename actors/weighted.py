"""Samples of Z with the numbers that say how right they are: log q, log R, importance weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori import metrics
from posteriori.problems import Problem
from posteriori.rewards import checked_log_reward
from posteriori.seams import Engine, Prompt, SampledGroup, SampleRequest
from posteriori.tools import ToolSpan

FloatArray = NDArray[np.float64]

SAMPLES_PER_REQUEST = 256
"""Samples that share one prompt in the engine; a seed belongs to one request."""
REQUESTS_IN_FLIGHT = 4
"""More would only queue inside the engine, or grow its key-value cache."""


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """N independent draws from q for one X.

    Attributes:
        tokens: z without ⊤, N of them.
        log_q: log q(z⊤) under the sampler itself, nats, [N].
        log_reward: log R(z⊤), nats, [N].
        spans: tool outputs of each z; empty where the problem has no tool.
    """

    tokens: list[list[int]]
    log_q: FloatArray
    log_reward: FloatArray
    spans: Sequence[tuple[ToolSpan, ...]] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def log_weights(self) -> FloatArray:
        """log w = log R − log q, [N]; its mean weight estimates Z(X)."""
        return self.log_reward - self.log_q

    @property
    def weights(self) -> FloatArray:
        """Self-normalised weights, [N], sum 1."""
        return metrics.normalised_weights(self.log_weights)


def draw(
    engine: Engine, problem: Problem, prompt: Prompt, n: int, *, adapter_version: int, seed: int
) -> WeightedSamples:
    """Draw from q at temperature 1 and score every draw.

    Args:
        engine: with ``adapter_version`` loaded and nothing else in flight.
        problem: what is sampled.
        prompt: X.
        n: draws.
        adapter_version: 0 for the base LM.
        seed: same seed, engine and version → same draws.
    """
    left = n
    requests: list[SampleRequest] = []
    while left > 0:
        size = min(left, SAMPLES_PER_REQUEST)
        requests.append(
            SampleRequest(
                id=f"draw-{seed}-{len(requests)}",
                prompt_ids=problem.policy_ids(prompt),
                moves=problem.moves(prompt),
                n=size,
                adapter_version=adapter_version,
                seed=seed * 1_000_003 + len(requests),
            )
        )
        left -= size
    finished: dict[str, SampledGroup] = {}
    waiting = deque(requests)
    while waiting or engine.unfinished:
        while waiting and engine.unfinished < REQUESTS_IN_FLIGHT:
            engine.submit(waiting.popleft())
        for group in engine.step():
            finished[group.request.id] = group
    samples = [sample for request in requests for sample in finished[request.id].samples]
    tokens = [[int(token) for token in sample.tokens] for sample in samples]
    distinct = [list(z) for z in dict.fromkeys(map(tuple, tokens))]
    scores = checked_log_reward(
        problem.reward, problem.name, prompt, problem.moves(prompt), distinct
    )
    by_tokens = {tuple(z): float(score[-1]) for z, score in zip(distinct, scores, strict=True)}
    return WeightedSamples(
        tokens=tokens,
        log_q=np.array([sample.total_log_q for sample in samples]),
        log_reward=np.array([by_tokens[tuple(z)] for z in tokens]),
        spans=[sample.spans for sample in samples] if problem.moves(prompt).tool else (),
    )
