"""One thread that owns an engine and steps it without a pause; many clients hand it draws and take samples.

Draws of all clients share the running batch, a few of each at a time, so that four samples do not wait
behind four thousand. Adapter versions are loaded when a draw needs them; the least recently used one
leaves its slot. A failed engine is started again and its draws are tried once more: they carry their
seeds, so nobody sees a difference.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api.draws import Adapter, Draw, Finished, unavailable
from posteriori.errors import UserError
from posteriori.seams import Engine, Sample, SampleRequest

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""A draw that was in flight when the engine failed twice may be what makes it fail."""
RESTART_SECONDS = 5.0
"""Between attempts to start an engine that does not start."""


@dataclass(eq=False)
class _Job:
    """The draws of one client."""

    number: int
    adapter: Adapter | None
    waiting: deque[tuple[int, Draw]]
    deliver: Callable[[Finished | UserError], None]
    running: dict[str, tuple[int, Draw]] = field(default_factory=dict)
    attempts: int = 0
    version: int = 0


class EngineHost:
    """See the module.

    Args:
        start: makes the engine, in the host's thread.
        adapter_slots: of the engine.
        samples_in_flight: handed to the engine at most; the rest waits here, in turn.
        threads: torch's, in the host's thread.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        *,
        adapter_slots: int,
        samples_in_flight: int = 256,
        threads: int = 1,
    ) -> None:
        self._start_engine = start
        self._slots = adapter_slots
        self._most_in_flight = samples_in_flight
        self._threads = threads
        self._numbers = itertools.count(1)
        self._versions = itertools.count(1)
        self._inbox: queue.SimpleQueue[tuple[str, _Job | None]] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._turns: deque[_Job] = deque()
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self._in_use: Counter[int] = Counter()
        self._owner: dict[str, _Job] = {}
        self._draining: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self.not_ready: str | None = "The engine is starting."
        """Why no draw can be taken; None: it can."""
        self.missing: tuple[str, ...] = ()
        self.samples_in_flight = 0
        self.samples = self.tokens = self.restarts = self.adapter_loads = 0
        """Since the host began."""

    def start(self) -> None:
        """Start the engine; returns at once, ``not_ready`` says when it answers."""
        self._thread.start()

    def close(self) -> None:
        """Fail what is in flight and free the engine."""
        self._closing.set()
        self._inbox.put(("wake", None))
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def jobs(self) -> int:
        """Clients with draws here."""
        return len(self._jobs)

    @property
    def adapters_loaded(self) -> int:
        """Adapter versions in the engine now."""
        return len(self._loaded)

    def spread(self, run: Path, adapter: Adapter) -> bool:
        """Always: an adapter is loaded between two steps, when a draw asks for it."""
        return True

    async def samples_of(
        self, draws: Sequence[Draw], adapter: Adapter | None
    ) -> AsyncGenerator[Finished, None]:
        """Samples of each draw, as they finish; leaving the iteration cancels the rest.

        Raises:
            ApiError: the engine is not there, or failed twice under these draws.
            UserError: a draw cannot be served.
        """
        if self.not_ready is not None:
            raise unavailable(self.not_ready)
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Finished | UserError] = asyncio.Queue()

        def deliver(item: Finished | UserError) -> None:
            try:
                loop.call_soon_threadsafe(found.put_nowait, item)
            except RuntimeError:  # the client's loop is closed
                log.debug("a result came after its client's end")

        job = _Job(next(self._numbers), adapter, deque(enumerate(draws)), deliver)
        self._inbox.put(("submit", job))
        try:
            for _ in draws:
                item = await found.get()
                if isinstance(item, UserError):
                    raise item
                yield item
        finally:
            self._inbox.put(("cancel", job))

    # ------------------------------------------------------------------------ the host's thread

    def _live(self) -> None:
        import torch

        torch.set_num_threads(self._threads)
        while not self._closing.is_set():
            engine: Engine | None = None
            try:
                engine = self._start_engine()
                self.not_ready = None
                self._serve(engine)
            # Whatever an engine raises: its clients get the cause, and the next one starts.
            except Exception as cause:
                log.exception("the engine failed")
                what = f"The engine failed: {type(cause).__name__}: {cause}"
                self.not_ready = f"{what} It is being started again."
                self._after_failure(what, started=engine is not None)
                if engine is None:
                    self._closing.wait(RESTART_SECONDS)
                self.restarts += 1
            finally:
                if engine is not None:
                    self._free(engine)
        self.not_ready = "The service is shutting down."
        self._take(None)
        for job in list(self._jobs.values()):
            self._fail(job, unavailable(self.not_ready))

    def _free(self, engine: Engine) -> None:
        try:
            engine.close()
        # A broken engine may not even close; its failure was reported above.
        except Exception:
            log.exception("the engine did not close")

    def _serve(self, engine: Engine) -> None:
        while True:
            self._take(engine)
            if self._closing.is_set():
                return
            self._fill(engine)
            for group in engine.step():
                self._finish(group.request, group.samples)

    def _take(self, engine: Engine | None) -> None:
        """Read what clients have asked for; sleep while there is nothing to do."""
        while True:
            try:
                idle = engine is not None and not self._jobs and not self._closing.is_set()
                what, job = self._inbox.get(block=idle)
            except queue.Empty:
                return
            if job is not None and what == "submit":
                self._jobs[job.number] = job
                self._turns.append(job)
            elif job is not None:
                for request_id in list(job.running):
                    if engine is not None:
                        engine.cancel(request_id)
                    self._forget(request_id)
                self._drop(job)

    def _fill(self, engine: Engine) -> None:
        """Hand draws to the engine, one a client in turn."""
        self._claim_slot(engine)
        passed = 0
        while self._turns and passed < len(self._turns):
            job = self._turns[0]
            if not self._room(job):
                return
            self._turns.rotate(-1)
            version = self._version(engine, job)
            if version is None:
                passed += 1
                continue
            passed = 0
            self._submit(engine, job, version)

    def _room(self, job: _Job) -> bool:
        """May the job's next draw go to the engine? One always may."""
        size = self.samples_in_flight + job.waiting[0][1].n
        return self.samples_in_flight == 0 or size <= self._most_in_flight

    def _submit(self, engine: Engine, job: _Job, version: int) -> None:
        index, draw = job.waiting.popleft()
        request = SampleRequest(
            id=f"{job.number}-{index}-{job.attempts}",
            prompt_ids=draw.prompt_ids,
            moves=draw.moves,
            n=draw.n,
            behaviour=draw.behaviour,
            adapter_version=version,
            seed=draw.seed,
        )
        try:
            engine.submit(request)
        except UserError as refusal:
            self._fail(job, refusal)
            return
        job.running[request.id] = (index, draw)
        self._owner[request.id] = job
        self._in_use[version] += 1
        job.version = version
        self.samples_in_flight += draw.n
        if not job.waiting:
            self._turns.remove(job)

    def _finish(self, request: SampleRequest, samples: list[Sample]) -> None:
        job = self._owner.get(request.id)
        if job is None:  # of a client that left
            return
        index, _ = job.running[request.id]
        self._forget(request.id)
        self.samples += len(samples)
        self.tokens += sum(len(sample.tokens) for sample in samples)
        if not job.running and not job.waiting:
            self._drop(job)
        job.deliver((index, samples))

    def _forget(self, request_id: str) -> None:
        job = self._owner.pop(request_id)
        _, draw = job.running.pop(request_id)
        self._in_use[job.version] -= 1
        self.samples_in_flight -= draw.n

    def _drop(self, job: _Job) -> None:
        self._jobs.pop(job.number, None)
        if job in self._turns:
            self._turns.remove(job)

    def _fail(self, job: _Job, error: UserError) -> None:
        job.waiting.clear()
        self._drop(job)  # what it has in flight goes when its client leaves, with the error
        job.deliver(error)

    # ----------------------------------------------------------------------------------- slots

    def _claim_slot(self, engine: Engine) -> None:
        """Load the adapter that the longest-waiting client lacks, or keep a slot from filling again."""
        self._draining = None
        lacking = [
            job for job in self._turns if job.adapter and job.adapter.key not in self._loaded
        ]
        job = min(lacking, key=lambda waiting: waiting.number, default=None)
        if job is None or job.adapter is None or not self._room(job):
            return
        if len(self._loaded) == self._slots:
            idle = [key for key, version in self._loaded.items() if not self._in_use[version]]
            if not idle:
                self._draining = next(iter(self._loaded))
                return
            engine.remove_adapter(self._loaded.pop(idle[0]))
        version = next(self._versions)
        try:
            engine.add_adapter(version, job.adapter.directory)
        except UserError as refusal:
            self._fail(job, refusal)
            return
        self._loaded[job.adapter.key] = version
        self.adapter_loads += 1

    def _version(self, engine: Engine, job: _Job) -> int | None:
        """The engine's number of the job's adapter; None: it has to wait for a slot."""
        if job.adapter is None:
            return 0
        key = job.adapter.key
        if key not in self._loaded or key == self._draining:
            return None
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _after_failure(self, what: str, *, started: bool) -> None:
        """Nothing is in flight any more: draws that were are tried once more, if an engine starts."""
        self._take(None)  # who left meanwhile has nothing to be tried again
        self._loaded.clear()
        self._in_use.clear()
        self._owner.clear()
        self.samples_in_flight = 0
        for job in list(self._jobs.values()):
            if job.running:
                job.attempts += 1
                job.waiting.extendleft(reversed(job.running.values()))
                job.running.clear()
                if job not in self._turns:
                    self._turns.append(job)
            if job.attempts >= ATTEMPTS or not started:
                self._fail(job, unavailable(what))
