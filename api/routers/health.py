"""Is it alive, is it ready, how does it do?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api import errors
from api.access import needs
from api.routers.common import TheService
from posteriori import __version__
from posteriori.messages import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> Health:
    """The process answers."""
    return Health(status="ok", version=__version__)


@router.get("/ready", responses={503: {"model": Readiness, "description": "Not yet; says why."}})
async def ready(service: TheService) -> Response:
    """Can samples be drawn now?"""
    reasons = [] if service.host.not_ready is None else [service.host.not_ready]
    found = Readiness(
        ready=not reasons,
        reasons=reasons,
        missing=list(service.host.missing),
        model=service.settings.model,
        engine=service.settings.engine,
    )
    headers = {"Retry-After": str(errors.RETRY_AFTER_SECONDS)} if reasons else {}
    return JSONResponse(found.model_dump(), 503 if reasons else 200, headers=headers)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**errors.ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    dependencies=[needs("metrics")],
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics of requests, engine, buffers, learners and actors."""
    registry = request.app.state.metrics
    content = await run_in_threadpool(generate_latest, registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)
