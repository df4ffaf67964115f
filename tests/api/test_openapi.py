"""Requests made from the OpenAPI document: the service answers what it says it answers, and never with a 5xx.

A short form by default: the document's examples and a few random requests to every operation. `make test-openapi`
(POSTERIORI_OPENAPI_EXAMPLES=50) adds every boundary of every field, and sends so many random ones.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from api.access import ENVIRONMENT, read_keys
from posteriori.lm import LanguageModel
from tests.api.conftest import LONG, Running, live_run, served, settings_for

EXAMPLES = int(os.environ.get("POSTERIORI_OPENAPI_EXAMPLES", "0"))
SECRET = "0123456789abcdef"
CONFIG: dict[str, Any] = {
    "seed": 1,
    "headers": {"Authorization": f"Bearer {SECRET}"},
    "request-timeout": 30,
    "continue-on-failure": True,
    "generation": {"deterministic": True, "no-shrink": True, "database": "none"},
    "phases": {
        "examples": {"fill-missing": True},
        "coverage": {"enabled": EXAMPLES > 0},
        "fuzzing": {"generation": {"max-examples": EXAMPLES or 4}},
        # Operations are tied by names that requests below are given anyway.
        "stateful": {"enabled": False},
    },
    # What is well-formed may still be refused: a field that nothing reads, a constraint no string meets.
    "checks": {"positive_data_acceptance": {"enabled": False}},
}
FEW = 32
RUN_FILE = {"problems": [LONG]}


@pytest.fixture(scope="module")
def running(
    tiny_lm: LanguageModel,
    tiny_lm_path: Path,
    run_folder: Path,
    adapters: dict[int, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """A service with keys, an ended run ``r`` and a live run ``live``."""
    folder = tmp_path_factory.mktemp("openapi") / "runs"
    shutil.copytree(run_folder, folder)
    settings = settings_for(tiny_lm_path, folder)
    keys = read_keys(settings, {ENVIRONMENT: f"all:{SECRET}:admin"})
    with live_run(tiny_lm, tiny_lm_path, folder, adapters), served(settings, keys=keys) as running:
        yield running


def ask_for_what_there_is(_: Any, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Turns well-formed requests to runs that do not exist into ones that get past the first door."""
    mode = case.meta.generation.mode if case.meta is not None else None
    if mode is not schemathesis.GenerationMode.POSITIVE:
        return
    if "run" in case.path_parameters:
        # Not ``r``: resuming it starts a process.
        case.path_parameters["run"] = "live"
    if case.path.endswith("/events"):
        case.query = {**(case.query or {}), "follow": "false"}
    if case.path == "/v1/runs" and isinstance(case.body, dict):
        # A run that exists: nothing is launched.
        case.body = {"run_file": {**RUN_FILE, "run": "live"}}
    if case.path == "/v1/completions" and isinstance(case.body, dict):
        case.body = {**case.body, "model": "r"}
    if isinstance(case.body, dict) and case.path.startswith("/v1/posterior"):
        body = dict(case.body)
        if "z" not in body:
            body["n"] = min(body.get("n", 1), FEW)
        if case.path.endswith("/predictive"):
            body["problem"] = "why"
        elif not isinstance(body.get("problem"), dict):
            body.pop("problem", None)
        for name in ("fields", "x", "y", "prompt"):
            body.pop(name, None)
        if "z" in body:
            body["z"] = [" sat ran"]
        body |= {"run": "r", "version": "latest"}
        case.body = body


@pytest.fixture
def asking_for_what_there_is() -> Iterator[None]:
    schemathesis.hook("before_call")(ask_for_what_there_is)
    yield
    schemathesis.hooks.unregister(ask_for_what_there_is)


@pytest.mark.slow
@pytest.mark.usefixtures("asking_for_what_there_is")
def test_the_service_is_what_its_document_says(running: Running) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(running.url + "/openapi.json", config=config)
    failures: dict[str, str] = {}
    answered: set[str] = set()
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            failures[event.label] = str(event.value)
        if isinstance(event, events.ScenarioFinished):
            for case_id, checks in event.recorder.checks.items():
                response = event.recorder.interactions[case_id].response
                if response is not None and response.status_code < 300:
                    answered.add(event.recorder.label)
                for info in (check.failure_info for check in checks):
                    if info is not None:
                        where = f"{event.recorder.label}: {info.failure.title}"
                        failures.setdefault(where, f"{info.failure.message}\n{info.code_sample}")
    assert not failures, "\n\n".join(f"{where}\n{what}" for where, what in failures.items())
    # Not only refusals were looked at.
    assert {
        "POST /v1/posterior/samples",
        "POST /v1/posterior/score",
        "POST /v1/posterior/predictive",
        "POST /v1/completions",
        "PUT /v1/runs/{run}/actors",
        "GET /v1/runs/{run}/events",
    } <= answered
