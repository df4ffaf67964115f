"""Draws from a posterior with the numbers that say how right they are."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from api.catalogue import Resolved
from api.draws import Draw
from api.errors import wrong
from api.service import Service
from posteriori import metrics, smc
from posteriori.messages import (
    MAX_SEED,
    PosteriorSample,
    SamplesRequest,
    Span,
    Summary,
    Warned,
)
from posteriori.rewards import checked_log_reward
from posteriori.seams import Sample
from posteriori.tools import ToolSpan

FloatArray = NDArray[np.float64]

SAMPLES_PER_DRAW = 16
"""Samples that share a request of the engine, and are streamed together."""
SEQUENCES_PER_SCORING = 256
LEAST_PARTICLES = 32
MOST_FILTERS = 8
"""A filter of fewer particles says little; independent ones give log Ẑ its standard error."""
LOW_ESS = 20.0
HEAVY_TAIL = 0.7


@dataclass
class Drawn:
    """Finished samples of one request, by index.

    Attributes:
        log_weights: replace log R − log q where the samples are particles of filters.
        log_z_se: of ``log_weights``' mean, where they are not independent.
    """

    samples: dict[int, Sample] = field(default_factory=dict)
    log_reward: dict[int, float] = field(default_factory=dict)
    log_weights: FloatArray | None = None
    log_z_se: float | None = None


def chosen_seed(seed: int | None) -> int:
    """The client's seed, or one that it can repeat."""
    return secrets.randbelow(MAX_SEED) if seed is None else seed


def check_size(service: Service, resolved: Resolved, n: int) -> None:
    """Refuse more tokens than one request may ask for.

    Raises:
        ApiError: with the greatest n that is served.
    """
    longest = max(resolved.problem.moves(resolved.prompt).longest, 1)
    most = service.settings.max_request_tokens
    if n * longest > most:
        raise wrong(
            "too_many_tokens",
            f"{n} samples of up to {longest} tokens are {n * longest}; {most} are served a request.",
            f"Ask for at most {most // longest} at a time.",
            "n",
        )


async def draw(
    service: Service, resolved: Resolved, n: int, seed: int, drawn: Drawn
) -> AsyncGenerator[list[int], None]:
    """Fill ``drawn``; yield the indices of samples as they are finished and scored."""
    prompt_ids = resolved.problem.policy_ids(resolved.prompt)
    moves = resolved.problem.moves(resolved.prompt)
    draws = [
        Draw(prompt_ids, moves, min(SAMPLES_PER_DRAW, n - start), seed * 1_000_003 + k)
        for k, start in enumerate(range(0, n, SAMPLES_PER_DRAW))
    ]
    async with aclosing(service.host.samples_of(draws, resolved.adapter)) as finished:
        async for k, samples in finished:
            indices = [k * SAMPLES_PER_DRAW + place for place in range(len(samples))]
            drawn.samples.update(zip(indices, samples, strict=True))
            yield indices


async def score(service: Service, resolved: Resolved, drawn: Drawn, indices: Sequence[int]) -> None:
    """log R of these samples; nothing where it is not known."""
    if not resolved.reward_known:
        return
    wanted = list(dict.fromkeys(tuple(drawn.samples[i].tokens) for i in indices))
    found: dict[tuple[int, ...], float] = {}
    for start in range(0, len(wanted), SEQUENCES_PER_SCORING):
        part = wanted[start : start + SEQUENCES_PER_SCORING]
        values = await service.scoring.run(partial(log_rewards, resolved, part), long=True)
        found.update(zip(part, values, strict=True))
    drawn.log_reward.update((i, found[tuple(drawn.samples[i].tokens)]) for i in indices)


def log_rewards(resolved: Resolved, sequences: Sequence[Sequence[int]]) -> list[float]:
    """log R of complete Z's; raises RewardError."""
    problem, prompt = resolved.problem, resolved.prompt
    scores = checked_log_reward(
        problem.reward, problem.name, prompt, problem.moves(prompt), [list(z) for z in sequences]
    )
    return [float(score[-1]) for score in scores]


async def filtered(service: Service, resolved: Resolved, n: int, seed: int) -> Drawn:
    """n particles of independent filters; they stop when nobody waits for them any more."""
    left = threading.Event()
    try:
        return await service.filters.run(lambda: _particles(service, resolved, n, seed, left))
    finally:
        left.set()


def _particles(
    service: Service, resolved: Resolved, n: int, seed: int, left: threading.Event
) -> Drawn:
    """Filters twisted by the policy's flows; in the ``filters`` thread."""
    runs = 1
    while runs < MOST_FILTERS and n % (2 * runs) == 0 and n // (2 * runs) >= LEAST_PARTICLES:
        runs *= 2
    found = smc.sample(
        resolved.problem,
        resolved.prompt,
        service.policy(resolved.adapter),
        particles=n // runs,
        runs=runs,
        seed=seed,
        cancelled=left.is_set,
    )
    drawn, moves = Drawn(), resolved.problem.moves(resolved.prompt)
    for population in found.populations:
        rows = zip(population.tokens, population.log_q, population.log_reward, strict=True)
        for tokens, log_q, log_reward in rows:
            index = len(drawn.samples)
            drawn.samples[index] = _particle(tokens, float(log_q), moves.spans(tokens))
            drawn.log_reward[index] = float(log_reward)
    drawn.log_weights = np.concatenate([p.log_weights for p in found.populations])
    if runs > 1:
        estimates = metrics.log_z_estimate([p.log_z for p in found.populations])
        drawn.log_z_se = estimates.standard_error
    return drawn


def _particle(tokens: list[int], log_q: float, spans: tuple[ToolSpan, ...]) -> Sample:
    """A particle as a sample: of its moves only the sum of log q is known, kept in the last."""
    stops = np.full(len(tokens) + 1, -np.inf)
    stops[-1] = log_q
    return Sample(tokens, np.zeros(len(tokens), np.float32), stops.astype(np.float32), spans)


def log_weights(drawn: Drawn) -> FloatArray | None:
    """log w of all samples in order, None without log R."""
    if drawn.log_weights is not None:
        return drawn.log_weights
    if len(drawn.log_reward) < len(drawn.samples):
        return None
    order = range(len(drawn.samples))
    return np.array([drawn.log_reward[i] - drawn.samples[i].total_log_q for i in order])


def weights_of(request: SamplesRequest, drawn: Drawn) -> FloatArray | None:
    """Normalised weights in order; None where a correction would need log R, all zero if R is 0 throughout."""
    size = len(drawn.samples)
    if request.correction == "none":
        return np.full(size, 1 / size)
    found = log_weights(drawn)
    return None if found is None else metrics.normalised_weights(found)


def row(resolved: Resolved, drawn: Drawn, index: int, weight: float | None) -> PosteriorSample:
    """One sample as it is sent."""
    sample = drawn.samples[index]
    log_q, log_reward = sample.total_log_q, drawn.log_reward.get(index)
    log_weight = None if log_reward is None else log_reward - log_q
    if drawn.log_weights is not None:
        log_weight = float(drawn.log_weights[index])
    return PosteriorSample(
        index=index,
        text=resolved.problem.text(sample.tokens),
        tokens=[int(token) for token in sample.tokens],
        log_q=log_q,
        log_reward=json_number(log_reward),
        log_weight=json_number(log_weight),
        weight=weight,
        spans=[_span(resolved, sample.tokens, span) for span in sample.spans],
    )


def _span(resolved: Resolved, tokens: Sequence[int], span: ToolSpan) -> Span:
    start, stop = (len(resolved.problem.text(tokens[:place])) for place in (span.start, span.stop))
    return Span(
        start=span.start, stop=span.stop, text_start=start, text_stop=stop, failed=span.failed
    )


def summary(resolved: Resolved, drawn: Drawn) -> tuple[Summary, list[Warned]]:
    """What the samples say of themselves, and what to beware of."""
    size = len(drawn.samples)
    unique = metrics.unique_fraction([drawn.samples[i].tokens for i in range(size)])
    learned = resolved.log_z_learned
    found = log_weights(drawn)
    if found is None:
        nothing = Summary(
            n=size,
            ess=None,
            ess_fraction=None,
            log_z=None,
            log_z_se=None,
            log_z_learned=learned,
            pareto_k=None,
            unique_fraction=unique,
        )
        why = "log R needs a field that was not given, so there are no weights, ESS or log Z."
        return nothing, [Warned(code="reward_unknown", message=why)]
    estimate = metrics.log_z_estimate(found)
    is_filter = drawn.log_weights is not None
    tail = math.nan if is_filter else metrics.pareto_k(found)
    ess = metrics.effective_sample_size(found)
    answer = Summary(
        n=size,
        ess=ess,
        ess_fraction=ess / size,
        log_z=json_number(estimate.value),
        log_z_se=json_number(drawn.log_z_se if is_filter else estimate.standard_error),
        log_z_learned=learned,
        pareto_k=json_number(tail),
        unique_fraction=unique,
    )
    return answer, _warnings(ess, size, tail)


def _warnings(ess: float, size: int, tail: float) -> list[Warned]:
    found = []
    if ess == 0:
        why = "R = 0 for every sample: the estimate of log Z is -inf and there are no weights."
        return [Warned(code="zero_reward", message=why)]
    if ess < LOW_ESS:
        why = f"The weights are worth {ess:.1f} of {size} samples: too few to aggregate."
        found.append(Warned(code="low_ess", message=why))
    if tail > HEAVY_TAIL:
        why = f"Pareto k is {tail:.2f}: above {HEAVY_TAIL} weighted answers are not to be trusted."
        found.append(Warned(code="heavy_tail", message=why))
    return found


def json_number(value: float | None) -> float | None:
    """The number, None where JSON has none for it."""
    return value if value is not None and math.isfinite(value) else None
