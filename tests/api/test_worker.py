"""The thread that scores: order, errors, a bound."""

from __future__ import annotations

import asyncio
import threading

import pytest

from api.errors import ApiError
from api.service import Worker


def test_short_tasks_go_before_long_ones_and_equals_in_order() -> None:
    worker = Worker.start("test", 1, 8)
    free = threading.Event()
    done: list[str] = []

    async def ask() -> None:
        first = asyncio.ensure_future(worker.run(free.wait, long=True))
        names = ["long 1", "short 1", "long 2", "short 2"]
        asked = [
            asyncio.ensure_future(
                worker.run(lambda name=name: done.append(name), long=name.startswith("long"))
            )
            for name in names
        ]
        await asyncio.sleep(0)  # all of them have been queued
        free.set()
        await asyncio.gather(first, *asked)

    asyncio.run(ask())
    worker.close()
    assert done == ["short 1", "short 2", "long 1", "long 2"]


def test_errors_reach_who_asked_and_what_is_left_is_not_done() -> None:
    worker = Worker.start("test", 1, 2)
    free = threading.Event()
    done: list[str] = []

    def fail() -> None:
        free.wait()
        raise ValueError("no such model")

    async def ask() -> None:
        failing = asyncio.ensure_future(worker.run(fail))
        leaving = asyncio.ensure_future(worker.run(lambda: done.append("left")))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="2 tasks wait"):
            await worker.run(lambda: None)
        leaving.cancel()
        await asyncio.sleep(0)
        free.set()
        with pytest.raises(ValueError, match="no such model"):
            await failing
        await worker.run(lambda: done.append("after"))

    asyncio.run(ask())
    worker.close()
    assert done == ["after"] and worker.waiting == 0


def test_who_waits_when_it_is_closed_waits_no_longer() -> None:
    worker = Worker.start("test", 1, 10**6)
    free, begun = threading.Event(), threading.Event()

    async def ask() -> None:
        first = asyncio.ensure_future(worker.run(lambda: begun.set() or free.wait()))
        waiting = [asyncio.ensure_future(worker.run(lambda: None, long=long)) for long in (0, 1)]
        await asyncio.to_thread(begun.wait)
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
        # Refused as soon as what waits has been taken back.
        while not waiting[-1].done():
            waiting.append(asyncio.ensure_future(worker.run(lambda: None)))
            await asyncio.sleep(0)
        free.set()
        *cancelled, refused = await asyncio.gather(*waiting, return_exceptions=True)
        await closing
        assert await first is True
        assert all(isinstance(one, asyncio.CancelledError) for one in cancelled)
        assert isinstance(refused, RuntimeError)

    asyncio.run(asyncio.wait_for(ask(), 60))
