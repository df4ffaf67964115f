"""σ(reward model) as a factor: by function and by a real HTTP server on this machine."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from posteriori.config import PreferenceConfig
from posteriori.errors import RewardError
from posteriori.lm import LanguageModel
from posteriori.problems.preference import HttpScorer, log_sigmoid
from posteriori.seams import Prompt
from tests.problems.naive import Naive, build, exact

BAD: dict[str, Any] = {}


def likes_cats(fields: dict[str, str], texts: list[str]) -> list[float]:
    """r = 2 · cats − letters / 10, whatever X."""
    return [2.0 * text.count("cat") - len(text) / 10 for text in texts]


def broken(fields: dict[str, str], texts: list[str]) -> Any:
    """Whatever the test put into BAD."""
    if "raises" in BAD:
        raise BAD["raises"]
    return BAD["returns"](texts)


class Server:
    """A reward model service that counts its requests and misbehaves on demand."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: list[tuple[int, bytes]] = []
        self.pause: threading.Event | None = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append(body)
                if service.pause is not None:
                    service.pause.wait(30)
                scores = likes_cats(body["fields"], body["texts"])
                status, answer = 200, json.dumps({"scores": scores}).encode()
                if service.script:
                    status, answer = service.script.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                with suppress(ConnectionError):  # a client that gave up waiting
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        if self.pause is not None:
            self.pause.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    service = Server()
    yield service
    service.close()


def score(url: str, texts: list[str], **settings: Any) -> list[float]:
    return HttpScorer(PreferenceConfig(model=url, **settings))({"x": " the"}, texts)


@pytest.mark.parametrize("by_http", [False, True])
@pytest.mark.parametrize("reference", [None, "{y}"])
def test_the_posterior_is_likelihood_times_sigmoid(
    tiny_lm: LanguageModel, server: Server, by_http: bool, reference: str | None
) -> None:
    problem = build(
        tiny_lm,
        kind="preference",
        temperature=0.5,
        prompts=[{"x": " the big", "y": " cat cat"}],
        preference={
            "model": server.url if by_http else f"{__name__}:likes_cats",
            "reference": reference,
            "texts_per_request": 16,
        },
    )
    naive, x = Naive(tiny_lm), tiny_lm.context(" the big")
    stop = problem.moves(problem.prompts[0]).stop
    found = exact(problem)
    rival = likes_cats({}, [" cat cat"])[0] if reference else 0.0
    for k in range(found.count):
        z = list(found.tree.tokens(k))
        margin = likes_cats({}, [problem.text(z)])[0] - rival
        expected = 2 * (naive(x, [*z, stop]) + math.log(1 / (1 + math.exp(-margin))))
        assert found.log_reward[k] == pytest.approx(expected, rel=1e-5)
    if by_http:
        sizes = [len(request["texts"]) for request in server.requests]
        assert sizes == [1, 16, 16, 7 + bool(reference)]  # asked at the start, then 39 strings
        assert server.requests[0]["fields"] == {"x": " the big", "y": " cat cat"}


def test_log_sigmoid_does_not_overflow() -> None:
    assert log_sigmoid(-1000.0) == -1000.0
    assert log_sigmoid(1000.0) == 0.0
    assert log_sigmoid(0.3) == pytest.approx(math.log(1 / (1 + math.exp(-0.3))), rel=1e-12)


def test_busy_answers_are_tried_again(server: Server) -> None:
    server.script = [(503, b"starting"), (429, b"slowly")]
    assert score(server.url, [" cat"]) == [1.6]
    assert len(server.requests) == 3


def test_a_service_that_stays_busy(server: Server) -> None:
    server.script = [(500, b"out of memory")] * 2
    with pytest.raises(RewardError, match=r"2 attempts.*status 500: out of memory.*is up"):
        score(server.url, [" cat"], attempts=2)


@pytest.mark.parametrize(
    "status, answer, message",
    [
        (404, b"no such path", "status 404 and 'no such path'"),
        (200, b"<html>", "status 200 and '<html>'"),
        (200, b'{"scores": null}', "answered with status 200"),
        (200, b'{"scores": ["high"]}', "answered with status 200"),
        (400, b'{"scores": [1.0]}', "answered with status 400"),
    ],
)
def test_other_answers_fail_at_once(
    server: Server, status: int, answer: bytes, message: str
) -> None:
    server.script = [(status, answer)]
    with pytest.raises(RewardError, match=message):
        score(server.url, [" cat"])
    assert len(server.requests) == 1


def test_a_hanging_service_times_out(server: Server) -> None:
    server.pause = threading.Event()
    with pytest.raises(RewardError, match=r"2 attempts: ReadTimeout.*timeout_seconds"):
        score(server.url, [" cat"], timeout_seconds=0.1, attempts=2)
    assert len(server.requests) == 2


def test_nobody_listens(server: Server) -> None:
    url = server.url
    server.http.server_close()
    with pytest.raises(RewardError, match=r"127\.0\.0\.1.*1 attempts: Connect"):
        score(url, [" cat"], attempts=1)


def test_a_wrong_address_shows_when_the_problem_is_built(
    tiny_lm: LanguageModel, server: Server
) -> None:
    server.script = [(404, b"no such path")]
    with pytest.raises(RewardError, match="status 404"):
        build(tiny_lm, kind="preference", preference={"model": server.url})


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ({"raises": KeyError("x")}, "raised KeyError for prompt '0', Z = ' cat'"),
        ({"returns": lambda texts: [0.0]}, r"shape \(1,\) for 2 texts of prompt '0'"),
        ({"returns": lambda texts: [0.0, math.nan]}, r"prompt '0', Z = ' cat ran' with nan"),
        ({"returns": lambda texts: None}, r"shape \(\)"),
    ],
)
def test_a_reward_model_that_fails_is_named(
    tiny_lm: LanguageModel, behaviour: dict[str, Any], message: str
) -> None:
    BAD.clear()
    BAD.update(behaviour)
    problem = build(tiny_lm, kind="preference", preference={"model": f"{__name__}:broken"})
    cat, ran = (tiny_lm.one_token(text, "") for text in (" cat", " ran"))
    with pytest.raises(RewardError, match=f"Problem 'p': reward model .*:broken.*{message}"):
        problem.reward.log_reward(Prompt("0", {"x": " the big"}), [[cat, ran]])
