"""One engine for many clients: fair turns, failures and restarts, refusals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.transformers_engine import TransformersEngine
from api.draws import Adapter, Draw, Finished
from api.errors import ApiError
from api.host import EngineHost
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.seams import Engine, SampledGroup
from tests.api.conftest import served, settings_for, until

MOVES = LegalMoves.free(list(range(3, 12)), stop=41, min_tokens=1, max_tokens=4)


class Failing(TransformersEngine):
    """An engine that fails at some of its steps."""

    steps = 0
    fails_at: frozenset[int] = frozenset()
    before: Callable[[], object] = staticmethod(lambda: None)

    def step(self) -> list[SampledGroup]:
        if self.unfinished:
            Failing.steps += 1
            if Failing.steps in Failing.fails_at:
                Failing.before()
                raise RuntimeError("the device fell off the bus")
        return super().step()


@pytest.fixture
def failing(tiny_lm_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], Engine]:
    def start(at: set[int]) -> Engine:
        monkeypatch.setattr(Failing, "fails_at", frozenset(at))
        return Failing(tiny_lm_path, lora_rank=8, max_adapters=2, device="cpu")

    monkeypatch.setattr(Failing, "steps", 0)
    return start


@contextmanager
def hosting(start: Callable[[], Engine], **options: int) -> Iterator[EngineHost]:
    host = EngineHost(start, **{"adapter_slots": 2, **options})
    host.start()
    try:
        until(lambda: host.not_ready is None)
        yield host
    finally:
        host.close()


def draws(n: int, size: int = 8) -> list[Draw]:
    return [Draw([0, 3 + k % 5], MOVES, size, seed=k) for k in range(n)]


async def collect(
    host: EngineHost, wanted: list[Draw], adapter: Adapter | None = None
) -> list[Finished]:
    return [finished async for finished in host.samples_of(wanted, adapter)]


def tokens(found: list[Finished]) -> dict[int, list[list[int]]]:
    return {index: [sample.tokens for sample in samples] for index, samples in found}


def test_a_failure_of_the_engine_loses_nothing(failing: Callable[[set[int]], Engine]) -> None:
    with hosting(lambda: failing(set())) as host:
        expected = tokens(asyncio.run(collect(host, draws(12))))
    Failing.steps = 0
    with hosting(lambda: failing({3}), samples_in_flight=32) as host:
        found = asyncio.run(collect(host, draws(12)))
        assert host.restarts == 1
    assert tokens(found) == expected
    assert sorted(index for index, _ in found) == list(range(12))  # none twice


def test_over_http_nobody_sees_a_restart(
    failing: Callable[[set[int]], Engine], tiny_lm_path: Path, run_folder: Path
) -> None:
    found = []
    for at in (set[int](), {3}):
        Failing.steps = 0
        start = partial(failing, at)
        with (
            served(settings_for(tiny_lm_path, run_folder), start) as running,
            running.client() as client,
        ):
            drawn = client.samples(run="r", problem="long", n=40, seed=1, version=2)
            found.append([(sample.tokens, sample.log_q) for sample in drawn.samples])
            assert running.service.host.restarts == len(at)
    assert found[0] == found[1]


def test_a_client_that_leaves_while_the_engine_fails(
    failing: Callable[[set[int]], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(host: EngineHost) -> list[Finished]:
        loop, left = asyncio.get_running_loop(), threading.Event()

        async def client() -> None:
            try:
                await collect(host, draws(4))
            finally:
                left.set()

        task = asyncio.create_task(client())

        def before() -> None:
            loop.call_soon_threadsafe(task.cancel)
            assert left.wait(30)

        monkeypatch.setattr(Failing, "before", staticmethod(before))
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: host.not_ready is None and host.restarts == 1)
        return await collect(host, draws(2))

    with hosting(lambda: failing({2})) as host:
        assert len(asyncio.run(leave(host))) == 2
        assert host.jobs == 0 and host.samples_in_flight == 0


def test_what_fails_twice_is_told_why(failing: Callable[[set[int]], Engine]) -> None:
    with hosting(lambda: failing({1, 2})) as host:
        with pytest.raises(ApiError, match="the device fell off the bus") as refused:
            asyncio.run(collect(host, draws(2)))
        assert (refused.value.status, refused.value.code) == (503, "engine_unavailable")
        until(lambda: host.not_ready is None)
        assert len(asyncio.run(collect(host, draws(2)))) == 2


def test_an_engine_that_cannot_start() -> None:
    def start() -> Engine:
        raise UserError("No such model.", "Name another.")

    host = EngineHost(start, adapter_slots=2)
    host.start()
    until(lambda: host.not_ready is not None and "No such model" in host.not_ready)
    with pytest.raises(ApiError, match="No such model"):
        asyncio.run(collect(host, draws(1)))
    host.close()


def test_few_samples_do_not_wait_behind_many(tiny_lm_path: Path) -> None:
    async def both(host: EngineHost) -> tuple[int, int]:
        order: list[str] = []

        async def client(name: str, n: int) -> None:
            await collect(host, draws(n))
            order.append(name)

        many = asyncio.create_task(client("many", 64))
        while host.samples < 8:
            await asyncio.sleep(0)
        few = asyncio.create_task(client("few", 1))
        await asyncio.gather(many, few)
        return order.index("few"), order.index("many")

    start = lambda: TransformersEngine(tiny_lm_path, max_adapters=2, device="cpu")  # noqa: E731
    with hosting(start, samples_in_flight=16) as host:
        assert asyncio.run(both(host)) == (0, 1)


def test_a_wrong_adapter_fails_its_client_alone(tiny_lm_path: Path, tmp_path: Path) -> None:
    async def both(host: EngineHost) -> list[Finished]:
        wrong = asyncio.create_task(collect(host, draws(2), Adapter("wrong", tmp_path)))
        right = await collect(host, draws(4))
        with pytest.raises(UserError, match="has no adapter_config"):
            await wrong
        return right

    start = lambda: TransformersEngine(tiny_lm_path, max_adapters=2, device="cpu")  # noqa: E731
    with hosting(start) as host:
        assert len(asyncio.run(both(host))) == 4
        assert host.restarts == 0 and host.jobs == 0


def test_a_refused_prompt_fails_its_client_alone(tiny_lm_path: Path) -> None:
    start = lambda: TransformersEngine(tiny_lm_path, max_adapters=2, device="cpu")  # noqa: E731
    with hosting(start) as host:
        with pytest.raises(UserError, match="Shorten the prompt"):
            asyncio.run(collect(host, [Draw(np.zeros(500, int).tolist(), MOVES, 1, 0)]))
        assert host.jobs == 0 and host.restarts == 0


def test_closing_fails_what_is_in_flight(tiny_lm_path: Path) -> None:
    async def closed(host: EngineHost) -> None:
        task = asyncio.create_task(collect(host, draws(200)))
        while host.samples < 8:
            await asyncio.sleep(0)
        await asyncio.to_thread(host.close)
        with pytest.raises(ApiError, match="shutting down"):
            await task

    start = lambda: TransformersEngine(tiny_lm_path, max_adapters=2, device="cpu")  # noqa: E731
    with hosting(start) as host:
        asyncio.run(closed(host))
