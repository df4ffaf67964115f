"""Engines as replicas of a Ray Serve deployment, behind the same seam as the one of this process.

A request's draws travel in calls of a few, so that Ray Serve spreads them over replicas. A call whose replica
dies is made again elsewhere with the draws that had not arrived: they carry their seeds, so nobody sees a
difference. A run's newest adapter is first loaded by every replica; until then the one before is drawn by.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from api.draws import Adapter, Draw, Finished, unavailable
from api.errors import ApiError
from api.replica import EngineReplica, Lacking, Refusal, Shelf
from api.settings import ServeSettings
from posteriori.commands.cluster import connected
from posteriori.errors import UserError
from posteriori.freed_memory import computing
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS

log = logging.getLogger(__name__)

DEPLOYMENT = "engine"
DRAWS_PER_CALL = 4
"""Few enough that replicas share one large request, enough that a call's own cost does not show."""
CALLS_PER_REPLICA = 64
"""Beyond this many calls wait for a replica that has room."""
BUSY_CALLS = 8
"""Per replica, on average: with more, another one is started."""
ATTEMPTS = 4
"""A call may meet several dying replicas; what kills each that draws it is given up."""
POLL_SECONDS = 0.5
HEALTH_SECONDS = 2.0
LOAD_SECONDS = 120.0


class RayHost:
    """See the module.

    Args:
        settings: with ``ray``, and how many replicas.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._name = f"posteriori-{socket.gethostname()}-{settings.port}"
        self._handle: Any = None
        self._shelf: Any = None
        self._shelved: dict[str, Adapter] = {}
        self._newest: dict[Path, Adapter] = {}
        self._everywhere: dict[Path, str] = {}
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="replicas", daemon=True)
        self.not_ready: str | None = "The engine's replicas are starting."
        self.missing: tuple[str, ...] = ()
        self.jobs = self.samples_in_flight = 0
        self.samples = self.tokens = self.restarts = self.adapter_loads = 0

    @property
    def adapters_loaded(self) -> int:
        """Adapter versions that every replica has."""
        return len(self._everywhere)

    def start(self) -> None:
        """Start the replicas; returns at once, ``not_ready`` says when one answers."""
        self._thread.start()

    def close(self) -> None:
        """End the replicas, and Ray if it was started here."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def spread(self, run: Path, adapter: Adapter) -> bool:
        """Has every replica loaded the run's newest adapter? If not, that begins."""
        if self._everywhere.get(run) == adapter.key:
            return True
        self._newest[run] = adapter
        self._wake.set()
        return False

    async def samples_of(
        self, draws: Sequence[Draw], adapter: Adapter | None
    ) -> AsyncGenerator[Finished, None]:
        """Samples of each draw, as they finish; leaving the iteration cancels the rest.

        Raises:
            ApiError: no replica is there, or several failed under these draws.
            UserError: a draw cannot be served.
        """
        if self.not_ready is not None:
            raise unavailable(self.not_ready)
        found: asyncio.Queue[Finished | UserError] = asyncio.Queue()
        parts = [
            dict(list(enumerate(draws))[start : start + DRAWS_PER_CALL])
            for start in range(0, len(draws), DRAWS_PER_CALL)
        ]
        self.jobs += 1
        calls = [asyncio.create_task(self._call(part, adapter, found)) for part in parts]
        try:
            for _ in draws:
                item = await found.get()
                if isinstance(item, UserError):
                    raise item
                self.samples += len(item[1])
                self.tokens += sum(len(sample.tokens) for sample in item[1])
                yield item
        finally:
            self.jobs -= 1
            for call in calls:
                call.cancel()

    async def _call(
        self,
        left: dict[int, Draw],
        adapter: Adapter | None,
        found: asyncio.Queue[Finished | UserError],
    ) -> None:
        """Draw on one replica after another until all have arrived, or say why not."""
        size = sum(draw.n for draw in left.values())
        self.samples_in_flight += size
        why = unavailable("No replica of the engine answers.")
        try:
            for _ in range(ATTEMPTS):
                try:
                    refused = await self._once(left, adapter, found)
                # Its replica died, or left; the draws are none the worse for it.
                except (RayError, RayServeException) as cause:
                    log.warning("a replica failed: %s", cause)
                    why = unavailable(f"The engine's replica failed: {type(cause).__name__}.")
                    self.restarts += 1
                    continue
                if refused is None:
                    return
                why = refused
                if refused.status != 503:
                    break
            found.put_nowait(why)
        finally:
            self.samples_in_flight -= size

    async def _once(
        self,
        left: dict[int, Draw],
        adapter: Adapter | None,
        found: asyncio.Queue[Finished | UserError],
    ) -> ApiError | None:
        """One call: takes from ``left`` what arrives; returns a refusal, None when nothing is left.

        Raises:
            RayError, RayServeException: the replica is gone.
        """
        if adapter is not None and adapter.key not in self._shelved:
            await asyncio.to_thread(self._put, adapter)
        key = None if adapter is None else adapter.key
        answers = self._handle.draw.remote(key, list(left.items()))
        try:
            async for answer in answers:
                if isinstance(answer, Lacking):
                    # The shelf was restarted, or has had too many since.
                    self._shelved.pop(answer.key, None)
                    return unavailable(f"Adapter {answer.key} was not on the shelf.")
                if isinstance(answer, Refusal):
                    return ApiError(
                        answer.status, answer.code, answer.problem, answer.fix, answer.field
                    )
                index, samples = answer
                del left[index]
                found.put_nowait((index, samples))
        except asyncio.CancelledError:
            answers.cancel()
            raise
        return None

    def _put(self, adapter: Adapter) -> None:
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        files = {name: (adapter.directory / name).read_bytes() for name in names}
        ray.get(self._shelf.put.remote(adapter.key, files), timeout=LOAD_SECONDS)
        self._shelved[adapter.key] = adapter

    # ------------------------------------------------------------------------ the host's thread

    def _live(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(connected())
                self._deploy()
                stack.callback(serve.delete, self._name)
            # Whatever Ray raises is why nothing can be drawn: /ready says it.
            except Exception as cause:
                log.exception("the replicas did not start")
                self.not_ready = f"Ray Serve did not start: {type(cause).__name__}: {cause}"
                return
            while not self._closing.is_set():
                try:
                    self._look()
                    self._load_newest()
                except (RayError, RayServeException, TimeoutError) as cause:
                    log.warning("Ray does not answer: %s", cause)
                    self.missing = (f"Ray does not answer: {type(cause).__name__}: {cause}",)
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
            self.not_ready = "The service is shutting down."

    def _deploy(self) -> None:
        settings = self._settings
        most = settings.max_replicas
        replicas: dict[str, Any] = {"num_replicas": settings.replicas}
        if most is not None:
            replicas = {
                "autoscaling_config": AutoscalingConfig(
                    min_replicas=settings.replicas,
                    max_replicas=most,
                    target_ongoing_requests=BUSY_CALLS,
                )
            }
        serve.start(http_options=HTTPOptions(location="NoServer"))
        self._shelf = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(Shelf).remote()
        deployment = serve.deployment(
            EngineReplica,
            name=DEPLOYMENT,
            max_ongoing_requests=CALLS_PER_REPLICA,
            health_check_period_s=HEALTH_SECONDS,
            graceful_shutdown_timeout_s=settings.timeout_seconds,
            ray_actor_options={
                "num_cpus": settings.threads,
                "num_gpus": settings.replica_gpus,
                "runtime_env": computing(settings.threads),
            },
            **replicas,
        )
        app = deployment.bind(settings.model_dump(mode="json"), self._shelf)
        target = serve.RunTarget(app, name=self._name, route_prefix=None)
        # Returns before they run; ``_look`` sees them come.
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        self._handle = handle.options(stream=True)

    def _look(self) -> None:
        """Which replicas answer, and what the others are at."""
        application = serve.status().applications.get(self._name)
        if application is None or DEPLOYMENT not in application.deployments:
            self.not_ready = "The engine's replicas are starting."
            return
        state = application.deployments[DEPLOYMENT]
        running = state.replica_states.get("RUNNING", 0)
        wanted = self._settings.replicas
        others = ", ".join(
            f"{count} {name}" for name, count in state.replica_states.items() if name != "RUNNING"
        )
        what = f"{running} of {wanted} replicas of the engine answer ({others or 'none starting'})"
        if application.status == ApplicationStatus.DEPLOY_FAILED or state.message:
            what = f"{what}: {state.message or application.message}"
        self.not_ready = None if running else f"{what}."
        self.missing = (f"{what}.",) if 0 < running < wanted else ()

    def _load_newest(self) -> None:
        """Every replica loads the newest adapters that have been asked for, and keeps drawing meanwhile."""
        for run, adapter in list(self._newest.items()):
            if self._everywhere.get(run) == adapter.key or self.not_ready is not None:
                continue
            if adapter.key not in self._shelved:
                self._put(adapter)
            loading = self._handle.broadcast("load", adapter.key)
            loading.results(timeout_s=LOAD_SECONDS)
            self._everywhere[run] = adapter.key
            self.adapter_loads += 1
