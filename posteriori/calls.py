"""What a client of the service sends, how it reads the answers, and what it tries again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar

import httpx
import tenacity
from pydantic import BaseModel, ValidationError

from posteriori.config import ProblemConfig
from posteriori.errors import UserError
from posteriori.messages import (
    ErrorBody,
    PosteriorSample,
    PredictiveRequest,
    PredictiveResponse,
    ProblemList,
    SamplesEnd,
    SamplesRequest,
    SamplesResponse,
    ScoreRequest,
    ScoreResponse,
    Version,
)
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

M = TypeVar("M", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 330.0
"""Longer than the server's own, so that the server says what happened."""
RETRY_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 8.0
RETRIED = frozenset({429, 502, 503})


class ServiceError(UserError):
    """The service refused.

    Attributes:
        status: HTTP status.
        code: for programs.
        field: the part of the request that is wrong.
        retry_after_seconds: when to try again, where the server says so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        problem: str,
        fix: str,
        field: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(problem, fix)
        self.status, self.code, self.field = status, code, field
        self.retry_after_seconds = retry_after_seconds


class TargetOptions(TypedDict, total=False):
    """See :class:`posteriori.messages.Target`."""

    run: str
    problem: str | ProblemConfig
    prompt: str
    fields: dict[str, str]
    x: str
    y: str
    version: Version


class SamplesOptions(TargetOptions, total=False):
    """See :class:`posteriori.messages.SamplesRequest`."""

    n: int
    seed: int
    correction: Literal["none", "snis", "smc"]


class PredictiveOptions(TargetOptions, total=False):
    """See :class:`posteriori.messages.PredictiveRequest`."""

    rule: Literal["mean", "bayes", "vote"]
    n: int
    seed: int


@dataclass(frozen=True)
class Call(Generic[M]):
    """One request and what its answer is read as. ``repeatable``: doing it twice does no harm."""

    method: str
    path: str
    answer: type[M]
    body: BaseModel | None = None
    params: dict[str, str | int | bool] = field(default_factory=dict)
    repeatable: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """For httpx's ``build_request``."""
        given = None if self.body is None else self.body.model_dump(mode="json", exclude_unset=True)
        return {"method": self.method, "url": self.path, "json": given, "params": self.params}

    def read(self, response: httpx.Response) -> M:
        """The answer; raises ServiceError."""
        check(response)
        return self.answer.model_validate_json(response.content)


def samples(asked: SamplesOptions, stream: bool) -> Call[SamplesResponse]:
    """POST /v1/posterior/samples."""
    body = SamplesRequest(**asked, stream=stream)
    return Call("POST", "/v1/posterior/samples", SamplesResponse, body)


def predictive(answers: list[str], asked: PredictiveOptions) -> Call[PredictiveResponse]:
    """POST /v1/posterior/predictive."""
    body = PredictiveRequest(answers=answers, **asked)
    return Call("POST", "/v1/posterior/predictive", PredictiveResponse, body)


def score(z: list[str | list[int]], asked: TargetOptions) -> Call[ScoreResponse]:
    """POST /v1/posterior/score."""
    return Call("POST", "/v1/posterior/score", ScoreResponse, ScoreRequest(z=z, **asked))


def launch(run_file: dict[str, Any] | str) -> Call[RunInfo]:
    """POST /v1/runs."""
    body = LaunchRequest(run_file=run_file)
    return Call("POST", "/v1/runs", RunInfo, body, repeatable=False)


def run(run: str, action: str = "") -> Call[RunInfo]:
    """One run, or an action on it: `stop`, `resume`."""
    if not action:
        return Call("GET", f"/v1/runs/{run}", RunInfo)
    return Call("POST", f"/v1/runs/{run}/{action}", RunInfo, repeatable=False)


def actors(run: str, desired: int | None = None) -> Call[ActorsInfo]:
    """Rollout actors of a run, or their number set."""
    path = f"/v1/runs/{run}/actors"
    if desired is None:
        return Call("GET", path, ActorsInfo)
    return Call("PUT", path, ActorsInfo, ScaleRequest(desired=desired))


def history(run: str, after: str) -> Call[History]:
    """GET /v1/runs/{run}/metrics-history."""
    return Call("GET", f"/v1/runs/{run}/metrics-history", History, params={"after": after})


def events(run: str, after: str, follow: bool) -> Call[RunEvent]:
    """GET /v1/runs/{run}/events."""
    params: dict[str, str | int | bool] = {"after": after, "follow": follow}
    return Call("GET", f"/v1/runs/{run}/events", RunEvent, params=params)


def adapters(run: str) -> Call[AdapterList]:
    """GET /v1/runs/{run}/adapters."""
    return Call("GET", f"/v1/runs/{run}/adapters", AdapterList)


def adapter(run: str, version: int) -> Call[BaseModel]:
    """One version, as a tar."""
    return Call("GET", f"/v1/runs/{run}/adapters/{version}", BaseModel)


def log(run: str, lines: int) -> Call[BaseModel]:
    """The driver's log, as text."""
    return Call("GET", f"/v1/runs/{run}/log", BaseModel, params={"lines": lines})


PROBLEMS = Call("GET", "/v1/problems", ProblemList)
RUNS = Call("GET", "/v1/runs", RunList)


# ------------------------------------------------------------------------------------- answers


def headers(api_key: str | None) -> dict[str, str]:
    """Of every request."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def check(response: httpx.Response) -> None:
    """Raises ServiceError for a status of 400 or above; the body must have been read."""
    if not response.is_error:
        return
    after = response.headers.get("retry-after", "")
    wait_seconds = float(after) if after.isdigit() else None
    try:
        raise _refusal(
            response.status_code, ErrorBody.model_validate_json(response.content), wait_seconds
        )
    except ValidationError:
        what = f"The service at {response.url} answered {response.status_code} {response.reason_phrase}."
        fix = "Check the URL, and the proxy between here and there."
        raise ServiceError(
            response.status_code, "http_error", what, fix, None, wait_seconds
        ) from None


def _refusal(status: int, body: ErrorBody, wait_seconds: float | None = None) -> ServiceError:
    error = body.error
    return ServiceError(status, error.code, error.problem, error.fix, error.field, wait_seconds)


def unreachable(url: httpx.URL, cause: httpx.TransportError) -> UserError:
    """Nobody answers."""
    return UserError(
        f"The service at {url} does not answer: {cause or type(cause).__name__}.",
        "Start it with `posteriori serve`, or give its URL.",
    )


def unpack(content: bytes, parent: Path) -> Path:
    """Write a tar's one directory below ``parent``; return it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(parent, filter="data")
        return parent / tar.getnames()[0]


class EventParser:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self._event = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Iterator[tuple[str, str]]:
        """The event that this line completes, if it does: its name and data."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif not line and self._data:
            yield self._event, "\n".join(self._data)
            self._event, self._data = "message", []


def read_events(lines: Iterable[str], read: Callable[[str, str], M | None]) -> Iterator[M]:
    """Events read by ``read``, which returns None for those that say nothing."""
    parser = EventParser()
    for line in lines:
        for event, data in parser.feed(line):
            found = read(event, data)
            if found is not None:
                yield found


def sample_event(event: str, data: str) -> PosteriorSample | SamplesEnd:
    """An event of a stream of samples; raises ServiceError for ``error``."""
    if event == "error":
        raise _refusal(503, ErrorBody.model_validate_json(data))
    if event == "sample":
        return PosteriorSample.model_validate_json(data)
    return SamplesEnd.model_validate_json(data)


def run_event(event: str, data: str) -> RunEvent | None:
    """An event of a run; None at its end."""
    return None if event == "end" else RunEvent.model_validate_json(data)


# ------------------------------------------------------------------------------------- retries


def retries(call: Call[Any], seconds: float) -> dict[str, Any]:
    """Arguments of a tenacity retrier."""

    def again(error: BaseException) -> bool:
        if isinstance(error, ServiceError):
            return error.status in RETRIED
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return True
        # Else the request may have arrived; a timeout of ours is longer than the server's.
        lost = isinstance(error, httpx.TransportError) and not isinstance(
            error, httpx.TimeoutException
        )
        return lost and call.repeatable

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        told = error.retry_after_seconds if isinstance(error, ServiceError) else None
        return (told or 0.0) + _JITTER(state)

    return {
        "retry": tenacity.retry_if_exception(again),
        "wait": wait,
        "stop": tenacity.stop_after_delay(seconds),
        "reraise": True,
    }


_JITTER = tenacity.wait_random_exponential(multiplier=0.25, max=LONGEST_WAIT_SECONDS)
