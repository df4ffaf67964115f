"""Engines as Ray Serve replicas: the same samples, no request lost with a replica, adapters that roll, disconnects."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import ray_host
from api.draws import Draw, Finished
from api.ray_host import RayHost
from api.replica import EngineReplica, Lacking, Refusal
from api.settings import ServeSettings
from posteriori.client import Client
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.messages import PosteriorSample, SamplesResponse
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from tests.api.conftest import Running, live_run, served, settings_for, until

START_SECONDS = 240.0
"""Two processes that import torch, on a machine that may be busy."""


class Observed(EngineReplica):
    """A replica that says where it is and what it has to do."""

    _holds = False
    _held = 0

    async def pid(self) -> int:
        return os.getpid()

    async def jobs(self) -> int:
        return self._host.jobs

    async def hold(self, pid: int) -> None:
        """The replica of that process answers no draw from now on: it has some when it is killed."""
        self._holds = os.getpid() == pid

    async def holding(self) -> int:
        """Draws it does not answer."""
        return self._held

    async def draw(
        self, key: str | None, draws: Sequence[tuple[int, Draw]]
    ) -> AsyncGenerator[Finished | Refusal | Lacking, None]:
        """As the replica does, unless it holds."""
        async with aclosing(super().draw(key, draws)) as answers:
            async for answer in answers:
                if self._holds:
                    self._held += 1
                    await asyncio.Event().wait()
                yield answer


def ask_all(host: RayHost, what: str, *told: int) -> list[int]:
    """The answer of every replica."""
    answers: list[int] = host._handle.broadcast(what, *told).results(timeout_s=60)
    return answers


@pytest.fixture(scope="module")
def live(
    tiny_lm: LanguageModel, tiny_lm_path: Path, run_folder: Path, adapters: dict[int, Path]
) -> Iterator[RunRegistry]:
    with live_run(tiny_lm, tiny_lm_path, run_folder, adapters) as registry:
        yield registry


@pytest.fixture(scope="module")
def replicated(tiny_lm_path: Path, run_folder: Path, live: RunRegistry) -> Iterator[Running]:
    """A service of two replicas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_host, "EngineReplica", Observed)
        settings = settings_for(tiny_lm_path, run_folder, ray=True, replicas=2, port=1)
        with served(settings, wait=False) as running:
            until(lambda: ready(running) == (True, []), START_SECONDS, 0.5)
            yield running


def ready(running: Running) -> tuple[bool, list[str]]:
    """Is it, and what is missing all the same?"""
    found = httpx.get(running.url + "/ready").json()
    return found["ready"], found["missing"]


def host_of(running: Running) -> RayHost:
    host: Any = running.service.host
    assert isinstance(host, RayHost)
    return host


def drawn(found: SamplesResponse) -> list[tuple[list[int], float]]:
    return [(sample.tokens, sample.log_q) for sample in found.samples]


def same(ours: list[tuple[list[int], float]], theirs: list[tuple[list[int], float]]) -> bool:
    """The same tokens; the sums of another batch may round log q otherwise."""
    close = pytest.approx([log_q for _, log_q in theirs], abs=1e-3)
    return [z for z, _ in ours] == [z for z, _ in theirs] and [q for _, q in ours] == close


def draw(client: Client, k: int) -> list[tuple[list[int], float]]:
    """The k-th request of a load."""
    return drawn(client.samples(run="r", problem="long", n=40, seed=k, version=1 + k % 3))


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_dies_and_no_request_fails(replicated: Running, service: Running) -> None:
    with service.client() as client:
        expected = [draw(client, k) for k in range(12)]
    pids = ask_all(host_of(replicated), "pid")
    assert len(set(pids)) == 2 and os.getpid() not in pids

    def ask(k: int) -> list[tuple[list[int], float]]:
        with replicated.client(retry_seconds=0.0) as client:
            return draw(client, k)

    ask_all(host_of(replicated), "hold", pids[0])
    before = host_of(replicated).samples
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(ask, k) for k in range(12)]
        until(lambda: host_of(replicated).samples > before)
        until(lambda: sum(ask_all(host_of(replicated), "holding")) > 0, poll_seconds=0.2)
        os.kill(pids[0], signal.SIGKILL)
        found = [answer.result() for answer in asked]
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert host_of(replicated).restarts > 0
    until(
        lambda: ready(replicated)[1] != [], poll_seconds=0.2
    )  # it says that one is missing, and is ready
    (missing,) = ready(replicated)[1] or [""]
    assert ready(replicated)[0] and "1 of 2 replicas" in missing


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_adapter_rolls(replicated: Running, adapters: dict[int, Path]) -> None:
    """The version before answers until every replica has the new one."""
    host = host_of(replicated)
    with replicated.client() as client:
        assert client.samples(run="live", n=4).version == 2
        until(lambda: client.samples(run="live", n=4).version == 2 and host.adapter_loads == 1)
        files = {n: (adapters[3] / n).read_bytes() for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
        control = replicated.service.catalogue.control("live")
        with control.redis(control.config()) as redis:
            RedisAdapters(redis, "live").publish(3, files)
        versions = []

        def newest() -> bool:
            found = client.samples(run="live", n=4)
            checked = client.score(
                [s.tokens for s in found.samples], run="live", version=found.version
            )
            for sample, score in zip(found.samples, checked.scores, strict=True):
                assert sample.log_q == pytest.approx(score.log_q, abs=2e-3)
            versions.append(found.version)
            return found.version == 3

        until(newest, START_SECONDS)
    assert versions == sorted(versions) and versions[0] == 2
    assert host.adapter_loads == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_client_that_leaves_frees_the_replicas(replicated: Running) -> None:
    host = host_of(replicated)
    with replicated.client() as client:
        stream = client.stream(run="r", problem="long", n=2000, version=0, correction="none")
        assert isinstance(next(stream), PosteriorSample)
        assert sum(ask_all(host, "jobs")) > 0
        stream.close()
    until(lambda: host.jobs == 0 and host.samples_in_flight == 0)
    until(lambda: sum(ask_all(host, "jobs")) == 0, poll_seconds=0.2)
    assert host.samples < 2000 * 10


def test_replicas_need_ray() -> None:
    with pytest.raises(UserError, match="without --ray"):
        ServeSettings(replicas=2)
    with pytest.raises(UserError, match="below --replicas"):
        ServeSettings(ray=True, replicas=3, max_replicas=2)
