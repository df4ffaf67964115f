"""Everything that answers requests: engine, base LM, catalogue, and the threads that score.

Scoring and particle filters run in threads of their own, so that neither the engine nor the event loop
ever waits for them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from api.adapters import Adapters
from api.catalogue import Catalogue
from api.draws import Adapter, Host
from api.errors import ApiError
from api.host import EngineHost
from api.launcher import Launcher
from api.limits import InFlight
from api.settings import ServeSettings
from posteriori.lm import LanguageModel, model_path
from posteriori.moves import LegalMoves
from posteriori.seams import Engine

T = TypeVar("T")

FILTER_QUEUE = 64
"""Particle filters and scores that may wait; a filter takes seconds."""
POLICIES_KEPT = 4
SELF_TEST_TOKENS = 4
SCORING_QUEUE = 512
"""Pieces of scoring that may wait; each takes milliseconds to a second."""


@dataclass(eq=False)
class Worker:
    """One thread with torch's thread count set, and a bounded queue with a way past it.

    Several tasks make up one request. Behind the scoring of all others that were drawn with it, its last one would
    have all of them answered, and asked anew, at once: engine and scorer would then work by turns.
    """

    executor: ThreadPoolExecutor
    most: int
    waiting: int = 0
    _short: deque[tuple[Future[Any], Callable[[], Any]]] = field(default_factory=deque)
    _long: deque[tuple[Future[Any], Callable[[], Any]]] = field(default_factory=deque)

    @classmethod
    def start(cls, name: str, threads: int, most: int) -> Worker:
        def begin() -> None:
            import torch

            torch.set_num_threads(threads)

        return cls(ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin), most)

    async def run(self, work: Callable[[], T], *, long: bool = False) -> T:
        """Do it in the thread, after all that came before but, unless it is ``long``, before what is.

        Raises:
            ApiError: too much is waiting.
        """
        if self.waiting >= self.most:
            raise ApiError(
                429, "busy", f"{self.waiting} tasks wait for scoring.", "Try again soon."
            )
        found: Future[T] = Future()
        self.waiting += 1
        try:
            (self._long if long else self._short).append((found, work))
            self.executor.submit(self._next)
            return await asyncio.wrap_future(found)
        finally:
            self.waiting -= 1

    def _next(self) -> None:
        """In the thread, once for each task."""
        found, work = (self._short or self._long).popleft()
        if not found.set_running_or_notify_cancel():
            return
        try:
            found.set_result(work())
        # Whatever it is, whoever asked is told.
        except BaseException as cause:  # noqa: BLE001
            found.set_exception(cause)

    def close(self) -> None:
        """End after the task at work; those that wait are cancelled."""
        self.executor.shutdown(wait=True, cancel_futures=True)
        for found, _ in (*self._short, *self._long):
            found.cancel()


class Service:
    """See the module.

    Args:
        settings: of the operator.
        engine: starts the engine; None: the one of the settings.
    """

    def __init__(self, settings: ServeSettings, engine: Callable[[], Engine] | None = None) -> None:
        self.settings = settings
        self.began_seconds = time.monotonic()
        self.base = LanguageModel.load(settings.model, dtype=settings.dtype)
        self.host = _host(settings, engine)
        self._cache = Path(tempfile.mkdtemp(prefix="posteriori-adapters-"))
        self.adapters = Adapters(self._cache, self.host.spread)
        self.catalogue = Catalogue(settings, self.base, self.adapters)
        self.launcher = Launcher(settings, self.base)
        self.in_flight = InFlight(settings.max_requests_in_flight)
        self.scoring = Worker.start("scoring", settings.threads, SCORING_QUEUE)
        self.filters = Worker.start("filters", settings.threads, FILTER_QUEUE)
        self._policies: OrderedDict[str, LanguageModel] = OrderedDict()

    def start(self) -> None:
        """Start the engine, in its own thread."""
        self.host.start()

    def close(self) -> None:
        """Stop everything that this process started but the runs."""
        self.host.close()
        self.scoring.close()
        self.filters.close()
        self.adapters.close()

    def policy(self, adapter: Adapter | None) -> LanguageModel:
        """The sampler as a language model; to be called in the ``filters`` thread alone."""
        if adapter is None:
            return self.base
        if adapter.key not in self._policies:
            self._policies[adapter.key] = self.base.with_adapter(adapter.directory)
            if len(self._policies) > POLICIES_KEPT:
                self._policies.popitem(last=False)
        self._policies.move_to_end(adapter.key)
        return self._policies[adapter.key]


def _host(settings: ServeSettings, engine: Callable[[], Engine] | None) -> Host:
    if not settings.ray:
        return engine_host(settings, engine)
    from api.ray_host import RayHost

    return RayHost(settings)


def engine_host(settings: ServeSettings, engine: Callable[[], Engine] | None = None) -> EngineHost:
    """The engine of the settings, or another, in this process; not yet started."""
    return EngineHost(
        engine or (lambda: start_engine(settings)),
        adapter_slots=settings.adapter_slots,
        samples_in_flight=settings.max_sequences,
        threads=settings.threads,
    )


def start_engine(settings: ServeSettings) -> Engine:
    """The engine of the settings, checked to apply adapters.

    Raises:
        UserError: it cannot serve the model.
    """
    engine = _engine(settings)
    try:
        _self_test(engine, settings)
    except BaseException:
        engine.close()
        raise
    return engine


def _self_test(engine: Engine, settings: ServeSettings) -> None:
    """Does it apply adapters as transformers does? On a copy of the base LM: others are scoring with theirs."""
    from actors.self_test import self_test

    lm = LanguageModel.load(settings.model, dtype=settings.dtype)
    stop = lm.tokenizer.eos_token_id
    stop = lm.vocabulary_size - 1 if stop is None else int(stop)
    alphabet = [token for token in range(lm.vocabulary_size) if token != stop]
    moves = LegalMoves.free(alphabet, stop, 1, SELF_TEST_TOKENS)
    start = [lm.bos if lm.bos is not None else alphabet[0]]
    self_test(engine, lm.model, start, moves, rank=settings.lora_rank, dtype=settings.dtype)


def _engine(settings: ServeSettings) -> Engine:
    path = model_path(settings.model)
    if settings.engine == "transformers":
        from actors.transformers_engine import TransformersEngine

        return TransformersEngine(
            path,
            lora_rank=settings.lora_rank,
            max_adapters=settings.adapter_slots,
            dtype=settings.dtype,
        )
    from actors.vllm_engine import VllmEngine

    return VllmEngine(
        path,
        lora_rank=settings.lora_rank,
        max_adapters=settings.adapter_slots,
        dtype=settings.dtype,
        max_sequences=settings.max_sequences,
    )
