"""Health, readiness, metrics with units, logs without prompts, a complete OpenAPI document."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from api import telemetry
from posteriori.errors import UserError
from posteriori.seams import Engine
from tests.api.conftest import Running, served, settings_for


def test_health_and_readiness(service: Running) -> None:
    assert httpx.get(service.url + "/health").json()["status"] == "ok"
    ready = httpx.get(service.url + "/ready")
    assert ready.status_code == 200 and ready.json()["reasons"] == []


def test_not_ready_until_the_engine_answers(tiny_lm_path: Path, tmp_path: Path) -> None:
    def start() -> Engine:
        raise UserError("There is no such device.", "Plug it in.")

    with served(settings_for(tiny_lm_path, tmp_path), start, wait=False) as running:
        ready = httpx.get(running.url + "/ready")
        assert ready.status_code == 503 and int(ready.headers["Retry-After"]) > 0
        assert (
            "starting" in ready.json()["reasons"][0]
            or "no such device" in ready.json()["reasons"][0]
        )
        assert httpx.get(running.url + "/health").status_code == 200
        problem = {"name": "p", "kind": "tempered", "prompts": [{"x": "a"}], "max_tokens": 1}
        asked = {"problem": problem, "n": 1}
        refused = httpx.post(running.url + "/v1/posterior/samples", json=asked)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"


def test_metrics(service: Running) -> None:
    with service.client() as client:
        client.samples(run="r", n=8)
    text = httpx.get(service.url + "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {name: f for name, f in families.items() if name.startswith("posteriori_")}
    values = {name: family.samples[0].value for name, family in ours.items() if family.samples}
    assert values["posteriori_engine_up"] == 1
    assert values["posteriori_engine_samples"] >= 8
    routes = {
        sample.labels["route"]
        for sample in ours["posteriori_request_duration_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert "/v1/posterior/samples" in routes
    assert {"posteriori_learner_staleness_versions", "posteriori_buffer_bytes"} <= set(ours)
    assert all(family.documentation for family in ours.values())


@pytest.mark.parametrize("log_prompts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_logs_hold_no_prompts_unless_asked(
    log_prompts: bool, tiny_lm_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    telemetry.configure_logs()
    try:
        settings = settings_for(tiny_lm_path, run_folder, log_prompts=log_prompts)
        with served(settings) as running, running.client() as client:
            client.samples(run="r", x=" happy fish", n=1)
            httpx.get(running.url + "/v1/runs/ fish")
        lines = [json.loads(line) for line in stream.getvalue().splitlines() if line[:1] == "{"]
        drawn = next(line for line in lines if line["route"] == "/v1/posterior/samples")
        assert drawn["status"] == 200 and drawn["duration_seconds"] > 0
        assert ("fish" in stream.getvalue()) == log_prompts
    finally:
        structlog.reset_defaults()


def test_openapi_is_complete(service: Running) -> None:
    """Every operation is described, and says what it refuses in one shape."""
    document = httpx.get(service.url + "/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("description"), where
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and path != "/ready":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (where, status)
            body = operation.get("requestBody")
            if body is not None:
                content = body["content"]["application/json"]
                name = content["schema"]["$ref"].rpartition("/")[2]
                assert document["components"]["schemas"][name].get("examples"), where
