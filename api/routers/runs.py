"""Runs: launch, look, scale, stop, resume; their events, curves and adapters."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from api import errors
from api.access import needs
from api.errors import ApiError
from api.routers.common import TheService
from api.service import Service
from posteriori.commands.run_control import NotLive, RunControl
from posteriori.errors import StorageUnreachable
from posteriori.run_messages import (
    ActorsInfo,
    AdapterList,
    History,
    LaunchRequest,
    RunEvent,
    RunInfo,
    RunList,
    ScaleRequest,
)

router = APIRouter(prefix="/v1/runs", tags=["runs"], responses=errors.ERRORS)

READ = needs("sample")
WRITE = needs("run")
EVENT_POLL_SECONDS = 0.5
EVENTS_AT_ONCE = 1000
MAX_VERSION = 2**31 - 1
ENTRY_ID = r"^\d{1,20}-\d{1,20}$"

After = Annotated[str, Query(pattern=ENTRY_ID, description="Id of the last entry seen.")]


@router.get("", dependencies=[READ])
async def runs(service: TheService) -> RunList:
    """All runs in the folder."""
    return await run_in_threadpool(lambda: _runs(service))


def _runs(service: Service) -> RunList:
    found = []
    for name in service.catalogue.names():
        with suppress(ApiError):  # deleted meanwhile
            found.append(_info(service, service.catalogue.control(name)))
    return RunList(runs=found)


def _info(service: Service, run: RunControl) -> RunInfo:
    return run.info(launching=service.launcher.launching(run.name))


@router.post("", status_code=202, dependencies=[WRITE])
async def launch(asked: LaunchRequest, service: TheService) -> RunInfo:
    """Start a run; its file is checked as by `posteriori train --dry-run` before anything starts."""
    name = await service.scoring.run(lambda: service.launcher.launch(asked.run_file))
    return await run_in_threadpool(lambda: _info(service, service.catalogue.control(name)))


@router.get("/{run}", dependencies=[READ])
async def show(run: str, service: TheService) -> RunInfo:
    """State, step, version and newest metrics."""
    return await run_in_threadpool(lambda: _info(service, service.catalogue.control(run)))


@router.post("/{run}/stop", status_code=202, dependencies=[WRITE])
async def stop(run: str, service: TheService) -> RunInfo:
    """Ask a run to finish its step, save and stop."""
    return await run_in_threadpool(lambda: _stop(service, run))


def _stop(service: Service, name: str) -> RunInfo:
    run = service.catalogue.control(name)
    try:
        run.stop("asked over HTTP")
    except NotLive:
        # Before its Redis runs, and after, a driver of ours takes signals.
        if not service.launcher.interrupt(name):
            raise
    return _info(service, run)


@router.post("/{run}/resume", status_code=202, dependencies=[WRITE])
async def resume(run: str, service: TheService) -> RunInfo:
    """Continue from the last checkpoint, with the buffer as it was."""

    def go_on() -> RunInfo:
        control = service.catalogue.control(run)
        service.launcher.resume(control)
        return _info(service, control)

    return await run_in_threadpool(go_on)


@router.get("/{run}/actors", dependencies=[READ])
async def actors(run: str, service: TheService) -> ActorsInfo:
    """Rollout actors: wanted, and alive."""
    return await run_in_threadpool(lambda: service.catalogue.control(run).actors())


@router.put("/{run}/actors", dependencies=[WRITE])
async def scale(run: str, asked: ScaleRequest, service: TheService) -> ActorsInfo:
    """Set the number of rollout actors wanted."""
    return await run_in_threadpool(lambda: service.catalogue.control(run).scale(asked.desired))


@router.get("/{run}/log", response_class=PlainTextResponse, dependencies=[READ])
async def log(
    run: str, service: TheService, lines: Annotated[int, Query(ge=1, le=10_000)] = 200
) -> str:
    """The end of what the driver of a run launched here has printed."""
    return await run_in_threadpool(lambda: service.catalogue.control(run).log(lines))


@router.get(
    "/{run}/events",
    dependencies=[READ],
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": errors.events_schema()}}},
)
async def events(
    run: str,
    service: TheService,
    after: After = "0-0",
    follow: bool = True,
    last_event_id: Annotated[str | None, Header(pattern=ENTRY_ID)] = None,
) -> EventSourceResponse:
    """Server-sent events, a RunEvent each, from the beginning or after an id; `end` when the run has ended."""
    control = await run_in_threadpool(lambda: service.catalogue.control(run))
    start = last_event_id or after
    first = await run_in_threadpool(lambda: control.events(start, EVENTS_AT_ONCE))
    return EventSourceResponse(_events(control, first, start, follow))


async def _events(
    control: RunControl, found: list[RunEvent], last: str, follow: bool
) -> AsyncIterator[ServerSentEvent]:
    while True:
        for event in found:
            last = event.id
            yield ServerSentEvent(event=event.kind, id=event.id, data=event.model_dump_json())
        if not follow and len(found) < EVENTS_AT_ONCE:
            return
        if not found:
            await asyncio.sleep(EVENT_POLL_SECONDS)
        try:
            found = await run_in_threadpool(control.events, last, EVENTS_AT_ONCE)
        except (NotLive, StorageUnreachable) as cause:
            yield ServerSentEvent(event="end", data=cause.problem)
            return


@router.get("/{run}/metrics-history", dependencies=[READ])
async def metrics_history(
    run: str,
    service: TheService,
    after: After = "0-0",
    limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
) -> History:
    """Metrics of the learner's steps, oldest first."""
    return await run_in_threadpool(lambda: service.catalogue.control(run).history(after, limit))


@router.get("/{run}/adapters", dependencies=[READ])
async def adapters(run: str, service: TheService) -> AdapterList:
    """Adapter versions that can be sampled and downloaded."""

    def listed() -> AdapterList:
        control = service.catalogue.control(run)
        return AdapterList(adapters=service.adapters.versions(control, control.config()))

    return await service.scoring.run(listed)


@router.get(
    "/{run}/adapters/{version}",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"application/x-tar": {}}}},
)
async def adapter(
    run: str, version: Annotated[int, Path(ge=1, le=MAX_VERSION)], service: TheService
) -> Response:
    """An adapter version as a tar of its PEFT directory."""

    def packed() -> bytes:
        control = service.catalogue.control(run)
        _, found = service.adapters.fetch(control, control.config(), version)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            tar.add(found.directory, arcname=f"{run}-v{version}")
        return content.getvalue()

    content = await service.scoring.run(packed)
    headers = {"Content-Disposition": f'attachment; filename="{run}-v{version}.tar"'}
    return Response(content, media_type="application/x-tar", headers=headers)
