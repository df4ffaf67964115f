"""Samples, predictions and scores from a posterior."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from api import errors, sampling
from api.access import needs
from api.catalogue import Resolved
from api.draws import unavailable
from api.limits import answered, timed_out
from api.prediction import predict
from api.routers.common import TheService
from api.scoring import score_given
from api.service import Service
from posteriori.errors import UserError
from posteriori.messages import (
    PredictiveRequest,
    PredictiveResponse,
    SamplesEnd,
    SamplesHead,
    SamplesRequest,
    SamplesResponse,
    ScoreRequest,
    ScoreResponse,
)

router = APIRouter(
    prefix="/v1/posterior",
    tags=["posterior"],
    responses=errors.ERRORS,
    dependencies=[needs("sample")],
)

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Samples; with `stream`, server-sent events: `sample` (a PosteriorSample each), then "
        "`summary` (a SamplesEnd) or `error` (an ErrorBody).",
        "content": {"text/event-stream": errors.events_schema("sample", "summary", "error")},
    }
}


@router.post("/samples", response_model=SamplesResponse, responses=STREAM)
async def samples(
    asked: SamplesRequest, request: Request, service: TheService
) -> SamplesResponse | Response:
    """Draw from a posterior, with log q, log R, weights, ESS and log Z."""
    service.in_flight.check()
    resolved = await service.scoring.run(lambda: service.catalogue.resolve(asked))
    _check(service, resolved, asked)
    head = SamplesHead(
        id=f"samples-{secrets.token_hex(8)}",
        run=resolved.run,
        problem=resolved.problem.name,
        prompt=resolved.prompt.id,
        fields=dict(resolved.prompt.fields),
        version=resolved.version,
        seed=sampling.chosen_seed(asked.seed),
        correction=asked.correction,
    )
    if asked.stream:
        return EventSourceResponse(_events(service, asked, resolved, head))
    with service.in_flight.one():
        return await answered(
            request, _respond(service, asked, resolved, head), service.settings.timeout_seconds
        )


def _check(service: Service, resolved: Resolved, asked: SamplesRequest) -> None:
    """Refuse what cannot be drawn, before anything is."""
    sampling.check_size(service, resolved, asked.n)
    if asked.correction == "smc":
        if not resolved.reward_known:
            fix = "Give every field that log R reads, or use the correction `none`."
            raise errors.wrong("reward_unknown", "SMC needs log R.", fix, "correction")
    elif service.host.not_ready is not None:
        raise unavailable(service.host.not_ready)


async def _respond(
    service: Service, asked: SamplesRequest, resolved: Resolved, head: SamplesHead
) -> SamplesResponse:
    drawn = await _all(service, asked, resolved, head.seed)
    # Hundreds of texts are decoded and weights computed: not in the event loop.
    return await service.scoring.run(lambda: _response(asked, resolved, head, drawn))


def _response(
    asked: SamplesRequest, resolved: Resolved, head: SamplesHead, drawn: sampling.Drawn
) -> SamplesResponse:
    weights = sampling.weights_of(asked, drawn)
    found, warnings = sampling.summary(resolved, drawn)
    rows = [
        sampling.row(resolved, drawn, index, None if weights is None else float(weights[index]))
        for index in range(asked.n)
    ]
    return SamplesResponse(**dict(head), samples=rows, summary=found, warnings=warnings)


async def _all(
    service: Service, asked: SamplesRequest, resolved: Resolved, seed: int
) -> sampling.Drawn:
    if asked.correction == "smc":
        return await sampling.filtered(service, resolved, asked.n, seed)
    drawn = sampling.Drawn()
    async with aclosing(sampling.draw(service, resolved, asked.n, seed, drawn)) as drawing:
        async for _ in drawing:
            pass
    await sampling.score(service, resolved, drawn, range(asked.n))
    return drawn


async def _events(
    service: Service, asked: SamplesRequest, resolved: Resolved, head: SamplesHead
) -> AsyncGenerator[ServerSentEvent, None]:
    """Events of a stream; its client's leaving closes it, which cancels the draws."""
    deadline = asyncio.get_running_loop().time() + service.settings.timeout_seconds
    try:
        with service.in_flight.one():
            async with aclosing(_parts(service, asked, resolved, head)) as parts:
                while True:
                    left = deadline - asyncio.get_running_loop().time()
                    yield await asyncio.wait_for(anext(parts), max(left, 0.0))
    except StopAsyncIteration:
        return
    except TimeoutError:
        late = errors.body(timed_out(service.settings.timeout_seconds))
        yield ServerSentEvent(event="error", data=late.model_dump_json())
    except UserError as error:
        failed = errors.body(errors.as_api_error(error))
        yield ServerSentEvent(event="error", data=failed.model_dump_json())


async def _parts(
    service: Service, asked: SamplesRequest, resolved: Resolved, head: SamplesHead
) -> AsyncGenerator[ServerSentEvent, None]:
    if asked.correction == "smc":
        drawn = await _all(service, asked, resolved, head.seed)
        for index in range(asked.n):
            yield _event(resolved, drawn, index)
    else:
        drawn = sampling.Drawn()
        async with aclosing(sampling.draw(service, resolved, asked.n, head.seed, drawn)) as drawing:
            async for indices in drawing:
                await sampling.score(service, resolved, drawn, indices)
                for index in indices:
                    yield _event(resolved, drawn, index)
    weights = sampling.weights_of(asked, drawn)
    found, warnings = sampling.summary(resolved, drawn)
    end = SamplesEnd(
        **dict(head),
        weights=None if weights is None else weights.tolist(),
        summary=found,
        warnings=warnings,
    )
    yield ServerSentEvent(event="summary", data=end.model_dump_json())


def _event(resolved: Resolved, drawn: sampling.Drawn, index: int) -> ServerSentEvent:
    row = sampling.row(resolved, drawn, index, None)
    return ServerSentEvent(event="sample", data=row.model_dump_json())


@router.post("/score")
async def score(asked: ScoreRequest, request: Request, service: TheService) -> ScoreResponse:
    """log q, log R and log weight of given Z's: a check of what `/samples` says."""
    with service.in_flight.one():
        resolved = await service.scoring.run(lambda: service.catalogue.resolve(asked))
        work = service.filters.run(lambda: score_given(service, resolved, asked.z))
        return await answered(request, work, service.settings.timeout_seconds)


@router.post("/predictive")
async def predictive(
    asked: PredictiveRequest, request: Request, service: TheService
) -> PredictiveResponse:
    """Which of the listed answers, averaged over chains, with errors and the entropy's two parts."""
    with service.in_flight.one():
        resolved = await service.scoring.run(lambda: service.catalogue.resolve(asked))
        work = predict(service, resolved, asked)
        return await answered(request, work, service.settings.timeout_seconds)
