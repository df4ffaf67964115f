"""What the service and its clients say to each other about runs; the counterpart of ``messages``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from posteriori.messages import Message, example

RunState = Literal["starting", "running", "stopping", "stopped", "finished", "failed"]


class LaunchRequest(Message):
    """A run file, as a mapping or as YAML text; its ``output_directory`` is the server's."""

    model_config = example(
        run_file={
            "run": "my-first",
            "problems": [
                {
                    "name": "middle",
                    "kind": "infilling",
                    "prompts": [{"x": "Mia found a", "y": ". The wallet was full of money."}],
                    "max_tokens": 5,
                }
            ],
        }
    )

    run_file: dict[str, Any] | str


class ActorInfo(Message):
    """The last heartbeat of a rollout actor."""

    name: str
    age_seconds: float
    fields: dict[str, str | int | float | bool | None]


class ActorsInfo(Message):
    """Rollout actors: how many are wanted (null: nobody asked), and those that beat."""

    desired: int | None
    actors: list[ActorInfo]


class ScaleRequest(Message):
    """The number of rollout actors wanted."""

    model_config = example(desired=3)

    desired: int = Field(ge=0, le=1024, strict=True)


class BufferInfo(Message):
    """The replay buffer now, and what it has taken since the run began, in trajectories."""

    trajectories: int
    payload_bytes: int
    capacity_bytes: int
    inserted: int
    merged: int
    dropped: int
    evicted: int
    drawn: int


class RunInfo(Message):
    """A run at a glance. ``failure`` is the first cause, of a failed run; ``buffer`` is that of a live one."""

    run: str
    state: RunState
    model: str
    problems: list[str]
    steps: int
    step: int | None
    version: int
    desired_actors: int | None
    failure: str | None
    metrics: dict[str, float | None]
    buffer: BufferInfo | None = None


class RunList(Message):
    """All runs, by name."""

    runs: list[RunInfo]


class RunEvent(Message):
    """Something that happened in a run; ``id`` is where to go on reading."""

    id: str
    unix_seconds: float
    kind: str
    message: str
    fields: dict[str, str | int | float | bool | None]


class HistoryRow(Message):
    """The metrics of one learner step; values JSON cannot hold are null."""

    id: str
    unix_seconds: float
    step: int
    metrics: dict[str, float | None]


class History(Message):
    """Rows, oldest first; ``next_after`` asks for those that come later."""

    rows: list[HistoryRow]
    next_after: str


class AdapterInfo(Message):
    """One adapter version: ``live`` in the store of a running run, a ``checkpoint``, or ``exported`` at its end."""

    version: int
    source: Literal["live", "checkpoint", "exported"]


class AdapterList(Message):
    """Versions that can be sampled and downloaded, ascending."""

    adapters: list[AdapterInfo]
