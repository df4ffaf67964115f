"""Structured logs and Prometheus metrics of the service. Neither ever holds a prompt or a sample."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posteriori.commands.run_control import LEARNER, RECENT_ROWS, ROLLOUT, RunControl
from posteriori.errors import UserError
from replay.registry import RunRegistry

if TYPE_CHECKING:
    from api.service import Service

LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

log = structlog.get_logger("posteriori.api")


def configure_logs() -> None:
    """One JSON object a line on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Requests:
    """Counts and times every request and logs one line for each; an ASGI middleware.

    Args:
        app: what is watched.
        registry: gets the metrics.
        log_prompts: also log the bodies of requests.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, log_prompts: bool) -> None:
        self.app = app
        self.log_prompts = log_prompts
        labels = ("method", "route", "status")
        self.latency = Histogram(
            "posteriori_request_duration_seconds",
            "From the request's head to the last byte of its answer.",
            labels,
            buckets=LATENCY_SECONDS,
            registry=registry,
        )
        self.received = Counter(
            "posteriori_request_body_bytes_total",
            "Bytes of request bodies.",
            ("method", "route"),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, size = time.monotonic(), 500, 0
        identity = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        body = bytearray()

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            content = message.get("body", b"")
            size += len(content)
            if self.log_prompts:
                body.extend(content)
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", identity.encode()))
            await send(message)

        try:
            await self.app(scope, counted, noted)
        finally:
            # The route's template and not the path: paths hold names that anyone may make up.
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.monotonic() - began
            method = scope["method"] if route != "unknown" else "any"
            self.latency.labels(method, route, str(status)).observe(seconds)
            self.received.labels(method, route).inc(size)
            prompts = {"body": body.decode(errors="replace")} if self.log_prompts else {}
            log.info(
                "request",
                request_id=identity,
                method=scope["method"],
                route=route,
                status=status,
                duration_seconds=round(seconds, 4),
                body_bytes=size,
                key=scope["state"].get("key"),
                **prompts,
            )


class ServiceCollector(Collector):
    """Engine and runs, read when they are scraped.

    Args:
        service: what is read.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before a scrape; else registering would read Redis."""
        return ()

    def collect(self) -> Iterable[Metric]:
        host, in_flight = self._service.host, self._service.in_flight
        gauges = {
            "engine_up": ("Does the engine answer?", float(host.not_ready is None)),
            "engine_samples_in_flight": ("Samples in the engine.", host.samples_in_flight),
            "engine_clients": ("Requests with draws in the engine or waiting.", host.jobs),
            "engine_adapters_loaded": ("Adapter versions in the engine.", host.adapters_loaded),
            "requests_in_flight": ("Requests that draw or score.", in_flight.count),
            "uptime_seconds": ("Since the start.", time.monotonic() - self._service.began_seconds),
        }
        counters = {
            "engine_samples": ("Samples drawn.", host.samples),
            "engine_tokens": ("Tokens drawn.", host.tokens),
            "engine_restarts": ("Times the engine failed.", host.restarts),
            "engine_adapter_loads": ("Adapter versions loaded.", host.adapter_loads),
            "requests_refused": ("Requests refused for too many in flight.", in_flight.refused),
        }
        for name, (what, value) in gauges.items():
            yield GaugeMetricFamily(f"posteriori_{name}", what, value)
        for name, (what, value) in counters.items():
            yield CounterMetricFamily(f"posteriori_{name}", what, value)
        yield from self._runs()

    def _runs(self) -> Iterable[Metric]:
        families = {
            name: GaugeMetricFamily(f"posteriori_{name}", what, labels=["run"])
            for name, (what, _) in RUN_GAUGES.items()
        }
        for name in self._service.catalogue.names():
            with suppress(
                UserError
            ):  # not live, out of reach, or not yet a run: the others are told of
                values = _run_values(self._service.catalogue.control(name))
                for metric, value in values.items():
                    families[metric].add_metric([name], value)
        yield from families.values()


RUN_GAUGES: dict[str, tuple[str, str | None]] = {
    "run_live": ("1 for every run whose registry answers.", None),
    "learner_step": ("Optimiser steps done.", "step"),
    "learner_loss": ("Loss of the newest step.", "loss"),
    "learner_gradient_norm": ("Before clipping.", "gradient_norm"),
    "learner_idle_ratio": ("Share of its time that the learner waits.", "idle_ratio"),
    "learner_staleness_versions": ("Learner version less trajectory version, mean.", "staleness"),
    "learner_ess_ratio": ("Effective share of drawn trajectories.", "ess"),
    "learner_log_q_mismatch_max_nats": (
        "Largest |log q of the actor − log q of the learner|.",
        "log_q_mismatch_max",
    ),
    "adapter_version": ("Newest adapter version.", "version"),
    "actors_desired": ("Rollout actors wanted.", None),
    "actors_alive": ("Rollout actors that beat.", None),
    "actors_samples_per_second": ("Of all rollout actors.", None),
    "buffer_trajectories": ("Trajectories in the replay buffer.", None),
    "buffer_bytes": ("Payload of the replay buffer.", None),
    "buffer_capacity_bytes": ("Bound of the payload.", None),
    "buffer_evicted_trajectories": ("Evicted since the run began.", None),
}
"""Name → help, and the learner's metric it shows, where it is one."""


def _run_values(run: RunControl) -> dict[str, float]:
    """Every gauge of one run; raises UserError where there is none to read."""
    from replay.buffers import open_buffer

    config = run.directory.load()
    with run.redis(config) as client:
        registry = RunRegistry(client, config.run)
        components = registry.components()
        metrics = registry.recent(RECENT_ROWS)
        desired = registry.desired_actors()
        stats = open_buffer(client, config).stats()
    learner = components[LEARNER].fields if LEARNER in components else {}
    actors = [c.fields for name, c in components.items() if name.startswith(ROLLOUT)]
    rates = [float(fields.get("samples_per_second") or 0.0) for fields in actors]
    found = {"run_live": 1.0}
    for name, (_, metric) in RUN_GAUGES.items():
        if metric is not None:
            value = metrics.get(metric, learner.get(metric))
            if isinstance(value, int | float):
                found[name] = float(value)
    if desired is not None:
        found["actors_desired"] = float(desired)
    return found | {
        "actors_alive": float(len(actors)),
        "actors_samples_per_second": sum(rates),
        "buffer_trajectories": float(stats.trajectories),
        "buffer_bytes": float(stats.payload_bytes),
        "buffer_capacity_bytes": float(stats.capacity_bytes),
        "buffer_evicted_trajectories": float(stats.evicted),
    }
