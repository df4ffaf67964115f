"""What the processes of a disturbed run note down, and how they are killed in the middle of a write.

A run file names :func:`build` as the factory of its problem, so it is called in every process of the
run. There it wraps three operations of that process: inserting into the replay buffer, publishing an
adapter, writing a checkpoint. Each wrapper

- notes the operation's begin and end, and what was acknowledged, in files of its own process;
- looks for an order to kill a process while the operation is under way.

Requests given to the transformers engine are noted too, with their adapter version.

Files lie in the directory named by the environment variable ``FAULTS_DIRECTORY``:

    notes-PID.jsonl   {"what": insert | publish | checkpoint, "state": begin | end, "order": …, …}
    order-WHAT        {"id": …, "target": process id, 0 for the one that finds it, "delay_seconds": …}
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learner.checkpoint
from actors.transformers_engine import TransformersEngine
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.seams import SampleRequest
from replay.adapter_files import checksum
from replay.admission import trajectory_id
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer

ENVIRONMENT = "FAULTS_DIRECTORY"
KINDS = ("insert", "publish", "checkpoint")


def build(config: ProblemConfig, lm: LanguageModel) -> Problem:
    """A tempered problem with the section's settings; instruments this process."""
    directory = os.environ.get(ENVIRONMENT)
    if directory:
        instrument(Path(directory))
    tempered = {"kind": "tempered", "factory": None, "temperature": 0.7}
    return build_problem(config.model_copy(update=tempered), lm)


def instrument(directory: Path) -> None:
    """Wrap the three operations of this process, once."""
    if getattr(RedisBuffer.insert, "wrapped", False):
        return
    notes = os.open(
        directory / f"notes-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )

    def note(**fields: Any) -> None:
        os.write(notes, (json.dumps(fields) + "\n").encode())

    def wrap(
        what: str, operation: Callable[..., Any], describe: Callable[..., dict[str, Any]]
    ) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            order = _take_order(directory, what)
            note(what=what, state="begin", order=order and order["id"])
            over = threading.Event()
            if order is not None:
                _kill_soon(order, over, note)
            result = operation(*arguments, **options)
            over.set()
            note(
                what=what,
                state="end",
                order=order and order["id"],
                **describe(result, *arguments),
            )
            return result

        wrapped.wrapped = True  # type: ignore[attr-defined]
        return wrapped

    RedisBuffer.insert = wrap("insert", RedisBuffer.insert, _inserted)  # type: ignore[method-assign]
    RedisAdapters.publish = wrap(  # type: ignore[method-assign]
        "publish",
        RedisAdapters.publish,
        lambda _, store, version, files: {"version": version, "checksum": checksum(files)},
    )
    submit = TransformersEngine.submit

    def submit_noted(engine: TransformersEngine, request: SampleRequest) -> None:
        note(
            what="submit",
            state="begin",
            version=request.adapter_version,
            behaviour=request.behaviour.name,
            seconds=time.monotonic(),
        )
        submit(engine, request)

    TransformersEngine.submit = submit_noted  # type: ignore[method-assign]
    learner.checkpoint.save = wrap(
        "checkpoint",
        learner.checkpoint.save,
        lambda path, *_: {"step": int(path.name.rpartition("-")[2])},
    )


def _inserted(receipt: Any, _buffer: Any, trajectories: Any) -> dict[str, Any]:
    if receipt.wait is not None:
        return {"acknowledged": []}
    rows = [
        [trajectory_id(t), -1 if t.behaviour in ("base", "gold") else t.adapter_version]
        for t in trajectories
    ]
    return {
        "acknowledged": rows,
        "seconds": time.monotonic(),
        "actor": trajectories[0].actor,
        "group": trajectories[0].group,
    }


def _take_order(directory: Path, what: str) -> dict[str, Any] | None:
    path = directory / f"order-{what}"
    claimed = directory / f"claimed-{what}-{os.getpid()}-{threading.get_ident()}"
    try:
        path.rename(claimed)  # one process gets it
    except FileNotFoundError:
        return None
    order: dict[str, Any] = json.loads(claimed.read_text())
    claimed.unlink()
    return order


def _kill_soon(order: dict[str, Any], over: threading.Event, note: Callable[..., None]) -> None:
    def kill() -> None:
        time.sleep(order["delay_seconds"])
        # Whether the operation was still under way is noted before, since after there may be nobody.
        note(what="kill", order=order["id"], inside=not over.is_set())
        os.kill(order["target"] or os.getpid(), signal.SIGKILL)

    if order["delay_seconds"] == 0 and order["target"]:
        kill()  # before the first byte is sent
    else:
        threading.Thread(target=kill, daemon=True).start()
