"""Every refusal says what is wrong, where, and what to do; by status and machine-readable code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.access import ENVIRONMENT, read_keys
from api.settings import ServeSettings
from api.trust import checked_problem
from posteriori.client import AsyncClient, Client, ServiceError
from posteriori.config import ProblemConfig, RunConfig
from posteriori.errors import UserError
from tests.api.conftest import LONG, PROBLEM, Running, served, settings_for

SAMPLES = "/v1/posterior/samples"
X = {"x": " the cat"}


def declared(**changes: Any) -> dict[str, Any]:
    return {"problem": {**PROBLEM, **changes}}


@pytest.mark.parametrize(
    "path, asked, status, code, field",
    [
        (SAMPLES, {"run": "nope"}, 404, "unknown_run", "run"),
        (SAMPLES, {"run": "r/../r"}, 404, "unknown_run", "run"),
        (SAMPLES, {"run": "r", "version": 9}, 404, "unknown_version", "version"),
        (SAMPLES, {"run": "r", "problem": "nope"}, 404, "unknown_problem", "problem"),
        (SAMPLES, {"run": "r", "prompt": "nope"}, 404, "unknown_prompt", "prompt"),
        (SAMPLES, {}, 422, "missing_run", "run"),
        (SAMPLES, {**declared(), "version": 3}, 422, "missing_run", "run"),
        (SAMPLES, {"run": "r", "y": " sat"}, 422, "missing_field", "fields.x"),
        (SAMPLES, {"run": "r", **X, "fields": {"w": "?"}}, 422, "unknown_field", "fields.w"),
        (SAMPLES, {"run": "r", "prompt": "dog", **X}, 422, "two_prompts", "prompt"),
        (SAMPLES, {"run": "r", "x": " the cat" * 70}, 422, "too_long", "fields"),
        (SAMPLES, {"run": "r", "nn": 4}, 422, "unknown_key", "nn"),
        (SAMPLES, declared(max_tokens=0), 422, "invalid_field", "problem.max_tokens"),
        (SAMPLES, declared(max_toekns=1), 422, "unknown_key", "problem.max_toekns"),
        (SAMPLES, {"run": "r", "version": "first"}, 422, "invalid_field", "version"),
        ("/v1/posterior/score", {"run": "r", "z": [1]}, 422, "invalid_field", "z.0"),
        (SAMPLES, {"run": "r", "n": 0}, 422, "invalid_field", "n"),
        (SAMPLES, {"run": "r", "n": 4097}, 422, "invalid_field", "n"),
        (SAMPLES, {"run": "r", "problem": "long", "n": 4000}, 422, "too_many_tokens", "n"),
        (SAMPLES, {"run": "r", "correction": "magic"}, 422, "invalid_field", "correction"),
        (SAMPLES, declared(alphabet=["sat ran"]), 422, "invalid", "problem"),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"regex": " big"}),
            422,
            "infeasible",
            "problem",
        ),
        (SAMPLES, declared(prompts="/etc/passwd"), 403, "not_allowed", "problem.prompts"),
        (
            SAMPLES,
            declared(kind="python", factory="os:system"),
            403,
            "not_allowed",
            "problem.factory",
        ),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"predicate": "os:system"}),
            403,
            "not_allowed",
            "problem.constraint.predicate",
        ),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"automaton": "os:system"}),
            403,
            "not_allowed",
            "problem.constraint.automaton",
        ),
        (SAMPLES, declared(tool={"use": "os:system"}), 403, "not_allowed", "problem.tool.use"),
        (SAMPLES, declared(gold={"file": "/etc/passwd"}), 403, "not_allowed", "problem.gold.file"),
        (SAMPLES, declared(max_tokens=10**9), 422, "too_complex", "problem.max_tokens"),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"words": [1, 10**9]}),
            422,
            "too_complex",
            "problem.constraint.words",
        ),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"regex": "("}),
            422,
            "invalid",
            "problem",
        ),
        (SAMPLES, {"run": "r", "x": "a \ud800"}, 400, "invalid_json", None),
        ("/v1/runs", {"run_file": {"\udfff": 1}}, 400, "invalid_json", None),
        ("/v1/runs", {"run_file": "[" * 1000}, 422, "invalid_run_file", "run_file"),
        (
            SAMPLES,
            declared(kind="constrained", constraint={"regex": "a" * 300}),
            422,
            "too_complex",
            "problem.constraint.regex",
        ),
        ("/v1/posterior/score", {"run": "r", "z": [" sat", " tree"]}, 422, "illegal_z", "z.1"),
        ("/v1/posterior/score", {"run": "r", "z": [[9, 9, 9, 9]]}, 422, "illegal_z", "z.0"),
        ("/v1/posterior/score", {"run": "r", "z": [""]}, 422, "illegal_z", "z.0"),
        ("/v1/posterior/score", {"run": "r", "z": []}, 422, "invalid_field", "z"),
        (
            "/v1/posterior/predictive",
            {"run": "r", "answers": [" a", " b"]},
            422,
            "no_answers",
            "problem",
        ),
        (
            "/v1/posterior/predictive",
            {"run": "r", "problem": "why", "answers": [" sat", " sat"], **X},
            422,
            "same_answers",
            "answers",
        ),
        ("/v1/completions", {"model": "nope", "prompt": "a"}, 404, "unknown_model", "model"),
        ("/v1/runs", {"run_file": "run: ["}, 422, "invalid_run_file", "run_file"),
        (
            "/v1/runs",
            {"run_file": {"run": "n", "problms": []}},
            422,
            "invalid_run_file",
            "run_file",
        ),
    ],
)
def test_refused(
    service: Running, path: str, asked: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    content = json.dumps(asked)  # httpx would refuse half a surrogate pair
    headers = {"Content-Type": "application/json"}
    response = httpx.post(service.url + path, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (status, code, field), error
    assert error["problem"] and error["fix"]
    assert "NaN" not in response.text


def test_a_whole_surrogate_pair_is_text(service: Running) -> None:
    content = json.dumps({"run": "r", "x": " the \U0001f408", "n": 1})
    headers = {"Content-Type": "application/json"}
    response = httpx.post(service.url + SAMPLES, content=content, headers=headers)
    assert response.status_code == 200
    assert response.json()["fields"]["x"] == " the \U0001f408"


def test_suggestions(service: Running) -> None:
    error = httpx.post(service.url + SAMPLES, json={"run": "r", "sed": 1}).json()["error"]
    assert error["fix"] == "Did you mean `seed`?"


@pytest.mark.parametrize(
    "method, path, content, status, code",
    [
        ("POST", SAMPLES, b"{", 400, "invalid_json"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("GET", SAMPLES, b"", 405, "method_not_allowed"),
        ("POST", SAMPLES, b'{"x": "' + b"a" * 2**20 + b'"}', 413, "too_large"),
    ],
)
def test_refused_by_form(
    service: Running, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.request(method, service.url + path, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_large_body_of_unknown_length(service: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"a" * 2**15

    headers = {"Content-Type": "application/json"}
    with httpx.Client() as http:
        try:
            response = http.post(service.url + SAMPLES, content=chunks(), headers=headers)
            assert response.status_code == 413
        except httpx.WriteError:  # the server stopped reading, which is as good
            pass


def test_another_name_for_this_machine(service: Running) -> None:
    """A page that calls itself 127.0.0.1 by DNS is not this machine's."""
    response = httpx.get(service.url + "/v1/models", headers={"Host": "evil.example"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "wrong_host"


def test_a_page_elsewhere_cannot_stop_a_run(service: Running) -> None:
    """Browsers post forms across sites without asking."""
    stop = service.url + "/v1/runs/r/stop"
    for origin, code in (("https://evil.example", "cross_origin"), (service.url, "not_live")):
        refused = httpx.post(stop, headers={"Origin": origin})
        assert refused.json()["error"]["code"] == code


@pytest.fixture(scope="module")
def narrow(tiny_lm_path: Path, run_folder: Path) -> Iterator[Running]:
    """A service that takes two requests at a time and answers within half a second."""
    settings = settings_for(tiny_lm_path, run_folder, max_requests_in_flight=2, timeout_seconds=0.5)
    with served(settings) as running:
        yield running


def test_slow_answers_are_given_up(narrow: Running) -> None:
    with narrow.client() as client:
        with pytest.raises(ServiceError, match="no answer within") as refused:
            client.samples(run="r", problem="long", n=2000, version=0)
        assert (refused.value.status, refused.value.code) == (504, "timeout")
        with pytest.raises(ServiceError, match="no answer within"):
            list(client.stream(run="r", problem="long", n=2000, version=0))
        assert client.samples(run="r", n=1, version=0).summary.n == 1


def test_too_many_at_once(narrow: Running) -> None:
    async def flood() -> list[int]:
        long = {"run": "r", "problem": "long", "n": 2000, "version": 0}
        async with httpx.AsyncClient(base_url=narrow.url, timeout=60) as http:
            responses = await asyncio.gather(*(http.post(SAMPLES, json=long) for _ in range(6)))
        busy = [response for response in responses if response.status_code == 429]
        assert all(int(response.headers["Retry-After"]) > 0 for response in busy)
        return sorted(response.status_code for response in responses)

    assert asyncio.run(flood()) == [429] * 4 + [504] * 2


@pytest.mark.slow
def test_the_client_tries_again(narrow: Running) -> None:
    async def flood() -> list[int]:
        async with AsyncClient(narrow.url, retry_seconds=60) as client:
            found = await asyncio.gather(
                *(client.samples(run="r", n=4, version=0) for _ in range(8))
            )
        return [len(response.samples) for response in found]

    refused = narrow.service.in_flight.refused
    assert asyncio.run(flood()) == [4] * 8
    assert narrow.service.in_flight.refused > refused


def test_nobody_answers() -> None:
    with (
        Client("http://127.0.0.1:9", retry_seconds=0) as client,
        pytest.raises(UserError, match="posteriori serve"),
    ):
        client.runs()


KEYS = "ann:0123456789abcdef:sample,bob:fedcba9876543210:run,eve:aaaaaaaaaaaaaaaa:admin"


@pytest.fixture(scope="module")
def locked(tiny_lm_path: Path, run_folder: Path) -> Iterator[Running]:
    settings = settings_for(tiny_lm_path, run_folder)
    with served(settings, keys=read_keys(settings, {ENVIRONMENT: KEYS})) as running:
        yield running


@pytest.mark.parametrize(
    "key, method, path, status",
    [
        (None, "GET", "/v1/models", 401),
        ("wrong-0123456789", "GET", "/v1/models", 401),
        ("0123456789abcdef", "GET", "/v1/models", 200),
        ("0123456789abcdef", "POST", "/v1/runs/r/resume", 403),
        ("0123456789abcdef", "GET", "/metrics", 403),
        ("fedcba9876543210", "POST", "/v1/runs/nope/stop", 404),
        ("fedcba9876543210", "GET", "/v1/models", 403),
        ("aaaaaaaaaaaaaaaa", "GET", "/v1/models", 200),
        ("aaaaaaaaaaaaaaaa", "GET", "/metrics", 200),
        (None, "GET", "/health", 200),
        (None, "GET", "/ready", 200),
    ],
)
def test_keys_and_scopes(
    locked: Running, key: str | None, method: str, path: str, status: int
) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    assert httpx.request(method, locked.url + path, headers=headers).status_code == status


def test_every_route_but_health_needs_a_key(locked: Running) -> None:
    """A new router cannot be forgotten."""
    paths = httpx.get(locked.url + "/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            url = locked.url + path.replace("{run}", "r").replace("{version}", "1")
            status = httpx.request(method.upper(), url.replace("{model}", "m"), json={}).status_code
            assert (status == 401) == (path not in ("/health", "/ready")), (method, path, status)


def test_the_client_sends_its_key(locked: Running) -> None:
    with locked.client(api_key="0123456789abcdef") as client:
        assert client.samples(run="r", n=1).version == 3
        with pytest.raises(ServiceError, match="scope run"):
            client.stop("r")


def test_keys_as_openai_clients_send_them(locked: Running) -> None:
    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0)

    assert len(list(client("0123456789abcdef").models.list())) > 1
    with pytest.raises(openai.AuthenticationError):
        client("0123456789abcdee").models.list()


def test_an_open_address_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no API keys"):
        read_keys(ServeSettings(host="0.0.0.0"), {})
    assert len(read_keys(ServeSettings(host="0.0.0.0"), {ENVIRONMENT: KEYS})) == 3
    file = tmp_path / "keys.yaml"
    file.write_text("ann: {key: 0123456789abcdef, scopes: [sample]}")
    assert read_keys(ServeSettings(host="0.0.0.0", keys_file=file), {})[0].name == "ann"


@pytest.mark.parametrize("item", ["ann", "ann:short:sample", "ann:0123456789abcdef:everything"])
def test_malformed_keys(item: str) -> None:
    with pytest.raises(UserError):
        read_keys(ServeSettings(), {ENVIRONMENT: item})


def test_every_key_of_a_declaration_was_looked_at() -> None:
    """A new key may name code or files: decide in api/trust.py, then add it here."""
    assert set(ProblemConfig.model_fields) == {
        *("name", "kind", "prompts", "test_prompts", "prompts_format", "gold", "policy_prompt"),
        *("alphabet", "stop", "min_tokens", "max_tokens", "temperature", "constraint", "terms"),
        "lookahead",
        *(
            "contrast",
            "labels",
            "wrong_label_penalty_nats",
            "preference",
            "factory",
            "model",
            "tool",
        ),
    }
    assert set(RunConfig.model_fields) == {
        *("run", "model", "dtype", "seed", "output_directory", "oracle_max_strings", "wandb"),
        *("problems", "sampling", "replay", "learner", "em", "placement", "autoscale"),
    }


def test_files_of_the_allowed_folder(tmp_path: Path) -> None:
    settings = ServeSettings(files_folder=tmp_path)
    found = checked_problem(ProblemConfig(**{**LONG, "prompts": "data/x.jsonl"}), settings)
    assert found.prompts == tmp_path / "data" / "x.jsonl"
    for outside in ("../x.jsonl", "/etc/passwd"):
        with pytest.raises(UserError, match="may not name"):
            checked_problem(ProblemConfig(**{**LONG, "prompts": outside}), settings)
        with pytest.raises(UserError, match="may not name"):
            checked_problem(ProblemConfig(**{**LONG, "lookahead": outside}), settings)
    ahead = checked_problem(ProblemConfig(**{**LONG, "lookahead": "ahead.npz"}), settings)
    assert ahead.lookahead == tmp_path / "ahead.npz"
    trusting = ServeSettings(allow_imports=True)
    anything = ProblemConfig(**{**LONG, "prompts": "/etc/passwd"})
    assert checked_problem(anything, trusting) == anything
