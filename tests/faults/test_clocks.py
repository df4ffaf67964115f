"""Hosts whose clocks disagree by minutes: ages, leases and waits do not notice.

The server and another part of the run get false clocks from libfaketime; the test has the right one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.ray_pool import HUNG_SECONDS, RayPool, _Handle
from posteriori.config import parse
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import EmbeddedServer
from tests.replay.build import config

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MINUTE = 60.0


@pytest.mark.parametrize(("server_minutes", "other_minutes"), [(7, -11), (-9, 13)])
def test_minutes_apart_nobody_notices(
    server_minutes: int,
    other_minutes: int,
    faketime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """May be lost: nothing. Only times shown to people are wrong, by as much as the server's clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(faketime))
        patch.setenv("FAKETIME", f"{server_minutes:+d}m")
        server = EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26)
        server.start()
    with server:
        client = connect(server.url)
        registry = RunRegistry(client, "r")
        offset = client.time()[0] - time.time()
        assert abs(offset - server_minutes * MINUTE) < MINUTE  # the server's clock is really false
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.other_clock", server.url],
            env={
                **os.environ, "LD_PRELOAD": str(faketime), "FAKETIME": f"{other_minutes:+d}m",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        assert abs(found["unix_seconds"] - time.time() - other_minutes * MINUTE) < 2 * MINUTE
        assert (found["claim"], found["inserted"], found["waited"]) == ("yours", 5, 0)

        registry.beat("learner", {})
        ages = {name: row.age_seconds for name, row in registry.components().items()}
        assert set(ages) == {"actor-elsewhere", "learner"}
        assert all(0 <= age < 2 * MINUTE for age in ages.values())
        # The lease is the server's: neither over before its time nor held beyond it.
        assert registry.claim("gold", "learner", 60.0) == "taken"
        assert 0 < client.pttl("posteriori:{r}:registry:task:gold") <= 60_000
        # Staleness goes by versions, the race by its own time.
        buffer = RedisBuffer(client, "r", config(prioritised_share=1.0))
        buffer.set_learner_version(5)
        assert len(buffer.draw(1, 5).groups[0]) == 5


def test_a_server_clock_that_jumps_makes_nobody_look_dead(faketime: Path, tmp_path: Path) -> None:
    """May be lost: nothing. The pool goes by its own clock and by whether heartbeats change."""
    server = EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26)
    server.start()
    registry = RunRegistry(connect(server.url), "r")
    run = parse(
        {
            "run": "r",
            "problems": [
                {"name": "p", "kind": "tempered", "prompts": [{"x": "a"}], "max_tokens": 2}
            ],
        }
    )
    pool = RayPool(run, server.url, registry, desired=1)
    killed = []
    handle = _Handle(SimpleNamespace(), None, time.monotonic(), False)
    pool._handles["actor-1"] = handle
    registry.beat("actor-1", {"state": "sampling", "uptime_seconds": 1.0})
    pool._read_beats(time.monotonic())
    server.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(faketime))
        patch.setenv("FAKETIME", "+30m")
        server.start()
        patch.setattr("ray.kill", killed.append)
        pool._registry = RunRegistry(connect(server.url), "r")
        # By the server's clock the heartbeat is half an hour old.
        assert pool._registry.components()["actor-1"].age_seconds > HUNG_SECONDS
        pool._read_beats(time.monotonic())
        pool._kill_hung(time.monotonic())
        assert killed == []
        # One that really says nothing more is noticed all the same.
        for _ in range(int(HUNG_SECONDS / 5) + 2):
            pool._read_beats(pool._looked_seconds + 5.0)
        pool._kill_hung(time.monotonic())
        assert killed == [handle.actor]
    server.stop()
