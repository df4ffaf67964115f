"""A client of the service, synchronous and asynchronous.

    with Client("http://127.0.0.1:8000") as client:
        found = client.samples(run="demo", x="Mia found a", n=64, seed=1)
        print(found.summary.log_z, found.samples[0].text)

What may succeed later is tried again, after the time the server names or with jittered backoff: a server
that is not there yet, that starts its engine (503), or that is busy (429). Draws repeat safely; a launch is
repeated only when it cannot have arrived.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, Unpack

import httpx
import tenacity
from pydantic import BaseModel

from posteriori import calls
from posteriori.calls import Call, PredictiveOptions, SamplesOptions, TargetOptions
from posteriori.messages import (
    PosteriorSample,
    PredictiveResponse,
    ProblemList,
    SamplesEnd,
    SamplesResponse,
    ScoreResponse,
)
from posteriori.run_messages import ActorsInfo, AdapterList, History, RunEvent, RunInfo, RunList

__all__ = ["AsyncClient", "Client", "ServiceError"]

M = TypeVar("M", bound=BaseModel)
ServiceError = calls.ServiceError


class Client:
    """The synchronous client; a context manager.

    Every method raises ServiceError for what the service refuses, and UserError if nobody answers.

    Args:
        url: of the service.
        api_key: None where the service needs none.
        retry_seconds: how long to try again; 0: once.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str = calls.DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_seconds: float = calls.TIMEOUT_SECONDS,
        retry_seconds: float = calls.RETRY_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers=calls.headers(api_key),
            timeout=timeout_seconds,
            transport=transport,
        )
        self._retry_seconds = retry_seconds

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def samples(self, **asked: Unpack[SamplesOptions]) -> SamplesResponse:
        """Draw from a posterior."""
        return self._call(calls.samples(asked, stream=False))

    def stream(self, **asked: Unpack[SamplesOptions]) -> Iterator[PosteriorSample | SamplesEnd]:
        """Samples as they finish, at the end their weights and summary."""
        return calls.read_events(self._lines(calls.samples(asked, stream=True)), calls.sample_event)

    def predictive(
        self, answers: list[str], **asked: Unpack[PredictiveOptions]
    ) -> PredictiveResponse:
        """Which of the answers, averaged over chains."""
        return self._call(calls.predictive(answers, asked))

    def score(self, z: list[str | list[int]], **asked: Unpack[TargetOptions]) -> ScoreResponse:
        """log q, log R and log weight of given Z's."""
        return self._call(calls.score(z, asked))

    def problems(self) -> ProblemList:
        """Problems of all runs."""
        return self._call(calls.PROBLEMS)

    def runs(self) -> RunList:
        """All runs."""
        return self._call(calls.RUNS)

    def run(self, run: str) -> RunInfo:
        """One run."""
        return self._call(calls.run(run))

    def launch(self, run_file: dict[str, Any] | str) -> RunInfo:
        """Start a run from a run file: a mapping, or YAML text."""
        return self._call(calls.launch(run_file))

    def stop(self, run: str) -> RunInfo:
        """Ask a run to save and stop."""
        return self._call(calls.run(run, "stop"))

    def resume(self, run: str) -> RunInfo:
        """Continue a run."""
        return self._call(calls.run(run, "resume"))

    def actors(self, run: str) -> ActorsInfo:
        """Rollout actors of a run."""
        return self._call(calls.actors(run))

    def scale(self, run: str, actors: int) -> ActorsInfo:
        """Set the number of rollout actors wanted."""
        return self._call(calls.actors(run, actors))

    def history(self, run: str, after: str = "0-0") -> History:
        """Metrics of learner steps, oldest first."""
        return self._call(calls.history(run, after))

    def events(self, run: str, after: str = "0-0", follow: bool = False) -> Iterator[RunEvent]:
        """What happened in a run, and with ``follow`` what happens until it ends."""
        return calls.read_events(self._lines(calls.events(run, after, follow)), calls.run_event)

    def adapters(self, run: str) -> AdapterList:
        """Adapter versions of a run."""
        return self._call(calls.adapters(run))

    def download_adapter(self, run: str, version: int, parent: Path) -> Path:
        """Write a version as a PEFT directory below ``parent``; return it."""
        return calls.unpack(self._send(calls.adapter(run, version)).content, parent)

    def log(self, run: str, lines: int = 200) -> str:
        """The end of what the driver of a run launched by the service has printed."""
        return self._send(calls.log(run, lines)).text

    def _call(self, call: Call[M]) -> M:
        return call.read(self._send(call))

    def _send(self, call: Call[Any], stream: bool = False) -> httpx.Response:
        def attempt() -> httpx.Response:
            request = self._http.build_request(**call.arguments)
            response = self._http.send(request, stream=stream)
            if response.is_error:
                response.read()
            calls.check(response)
            return response

        try:
            return tenacity.Retrying(**calls.retries(call, self._retry_seconds))(attempt)
        except httpx.TransportError as cause:
            raise calls.unreachable(self._http.base_url, cause) from cause

    def _lines(self, call: Call[Any]) -> Iterator[str]:
        response = self._send(call, stream=True)
        try:
            yield from response.iter_lines()
        finally:
            response.close()


class AsyncClient:
    """The asynchronous client, an asynchronous context manager; see :class:`Client`."""

    def __init__(
        self,
        url: str = calls.DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_seconds: float = calls.TIMEOUT_SECONDS,
        retry_seconds: float = calls.RETRY_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=calls.headers(api_key),
            timeout=timeout_seconds,
            transport=transport,
        )
        self._retry_seconds = retry_seconds

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def samples(self, **asked: Unpack[SamplesOptions]) -> SamplesResponse:
        """Draw from a posterior."""
        return await self._call(calls.samples(asked, stream=False))

    async def stream(
        self, **asked: Unpack[SamplesOptions]
    ) -> AsyncIterator[PosteriorSample | SamplesEnd]:
        """Samples as they finish, at the end their weights and summary."""
        found: AsyncIterator[PosteriorSample | SamplesEnd] = self._events(
            calls.samples(asked, stream=True), calls.sample_event
        )
        async for event in found:
            yield event

    async def predictive(
        self, answers: list[str], **asked: Unpack[PredictiveOptions]
    ) -> PredictiveResponse:
        """Which of the answers, averaged over chains."""
        return await self._call(calls.predictive(answers, asked))

    async def score(
        self, z: list[str | list[int]], **asked: Unpack[TargetOptions]
    ) -> ScoreResponse:
        """log q, log R and log weight of given Z's."""
        return await self._call(calls.score(z, asked))

    async def problems(self) -> ProblemList:
        """Problems of all runs."""
        return await self._call(calls.PROBLEMS)

    async def runs(self) -> RunList:
        """All runs."""
        return await self._call(calls.RUNS)

    async def run(self, run: str) -> RunInfo:
        """One run."""
        return await self._call(calls.run(run))

    async def launch(self, run_file: dict[str, Any] | str) -> RunInfo:
        """Start a run from a run file: a mapping, or YAML text."""
        return await self._call(calls.launch(run_file))

    async def stop(self, run: str) -> RunInfo:
        """Ask a run to save and stop."""
        return await self._call(calls.run(run, "stop"))

    async def resume(self, run: str) -> RunInfo:
        """Continue a run."""
        return await self._call(calls.run(run, "resume"))

    async def actors(self, run: str) -> ActorsInfo:
        """Rollout actors of a run."""
        return await self._call(calls.actors(run))

    async def scale(self, run: str, actors: int) -> ActorsInfo:
        """Set the number of rollout actors wanted."""
        return await self._call(calls.actors(run, actors))

    async def history(self, run: str, after: str = "0-0") -> History:
        """Metrics of learner steps, oldest first."""
        return await self._call(calls.history(run, after))

    async def events(
        self, run: str, after: str = "0-0", follow: bool = False
    ) -> AsyncIterator[RunEvent]:
        """What happened in a run, and with ``follow`` what happens until it ends."""
        async for event in self._events(calls.events(run, after, follow), calls.run_event):
            yield event

    async def adapters(self, run: str) -> AdapterList:
        """Adapter versions of a run."""
        return await self._call(calls.adapters(run))

    async def download_adapter(self, run: str, version: int, parent: Path) -> Path:
        """Write a version as a PEFT directory below ``parent``; return it."""
        return calls.unpack((await self._send(calls.adapter(run, version))).content, parent)

    async def _call(self, call: Call[M]) -> M:
        return call.read(await self._send(call))

    async def _send(self, call: Call[Any], stream: bool = False) -> httpx.Response:
        async def attempt() -> httpx.Response:
            request = self._http.build_request(**call.arguments)
            response = await self._http.send(request, stream=stream)
            if response.is_error:
                await response.aread()
            calls.check(response)
            return response

        try:
            return await tenacity.AsyncRetrying(**calls.retries(call, self._retry_seconds))(attempt)
        except httpx.TransportError as cause:
            raise calls.unreachable(self._http.base_url, cause) from cause

    async def _events(
        self, call: Call[Any], read: Callable[[str, str], M | None]
    ) -> AsyncIterator[M]:
        response = await self._send(call, stream=True)
        parser = calls.EventParser()
        try:
            async for line in response.aiter_lines():
                for event, data in parser.feed(line):
                    found = read(event, data)
                    if found is not None:
                        yield found
        finally:
            await response.aclose()
