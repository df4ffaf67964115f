"""The application: routers, limits, keys, metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.middleware.cors import CORSMiddleware

from api import errors
from api.access import Key, read_keys
from api.limits import BodyLimit, SameMachine
from api.routers import health, openai, page, posterior, problems, runs
from api.service import Service
from api.settings import ServeSettings
from api.telemetry import Requests, ServiceCollector
from posteriori import __version__
from posteriori.seams import Engine

DESCRIPTION = """Samples from posteriors of language models, with the numbers that say how right they are.

Errors have one shape: `error.code` for programs, `error.field`, `error.problem` and `error.fix` for people.
Everything is in nats; what is unknown, or no number, is null."""


def create_app(
    settings: ServeSettings,
    engine: Callable[[], Engine] | None = None,
    keys: tuple[Key, ...] | None = None,
) -> FastAPI:
    """The app; its engine starts with it and stops with it.

    Args:
        settings: of the operator.
        engine: starts the engine; None: the one of the settings.
        keys: API keys; None: those of the settings and the environment.

    Raises:
        UserError: model or keys cannot be used.
    """
    found_keys = read_keys(settings) if keys is None else keys
    service = Service(settings, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="posteriori", version=__version__, description=DESCRIPTION, lifespan=lifespan
    )
    app.state.service = service
    app.state.keys = found_keys
    app.state.metrics = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=app.state.metrics)
    app.state.metrics.register(ServiceCollector(service))
    for room in (health, posterior, problems, openai, runs):
        app.include_router(room.router)
    page.install(app)
    errors.install(app)
    document = app.openapi
    app.openapi = lambda: errors.documented(document())  # type: ignore[method-assign]
    app.add_middleware(BodyLimit, most_bytes=settings.max_request_bytes)
    if not found_keys:
        hosts = {"127.0.0.1", "localhost", "::1", settings.host}
        app.add_middleware(SameMachine, hosts=hosts, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Requests, registry=app.state.metrics, log_prompts=settings.log_prompts)
    return app
