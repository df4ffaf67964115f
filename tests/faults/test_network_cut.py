"""A host that is cut off: an actor in a network namespace of its own, whose link to Redis goes down.

Two namespaces are joined by a pair of virtual Ethernet devices. Redis lives in one (and on a unix socket,
by which this test plays the learner), the actor in the other. ``FAULTS_CUT_SECONDS=60`` is the long form.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.self_test import random_adapter
from posteriori.config import parse
from posteriori.lm import LanguageModel
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import redis_server_binary
from tests.faults.accounts import acknowledged, settle
from tests.faults.instruments import ENVIRONMENT
from tests.faults.train_run import RUN, run_file

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CUT_SECONDS = float(os.environ.get("FAULTS_CUT_SECONDS", "6"))
DEADLINE_SECONDS = 400.0
PASSWORD = "of-this-test-alone"
PORT = 6390
VERSIONS_MEANWHILE = 11
"""More than the store keeps: the version the actor holds is gone when it comes back."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Net:
    """Two hosts: names of their namespaces, and the address of the first."""

    server: str
    actor: str
    address: str

    def link(self, state: str) -> None:
        """``down`` cuts the actor's host off, ``up`` mends it."""
        ip("-n", self.server, "link", "set", "fault0", state)


@pytest.fixture
def net() -> Iterator[Net]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command (Debian: apt install iproute2)")
    tag = f"{os.getpid() % 10_000}"
    net = Net(f"redis{tag}", f"actor{tag}", "10.231.77.1")
    try:
        ip("netns", "add", net.server)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"may not make network namespaces: {refused.stderr.decode().strip()}")
    try:
        ip("netns", "add", net.actor)
        ip(
            "-n",
            net.server,
            "link",
            "add",
            "fault0",
            "type",
            "veth",
            "peer",
            "fault1",
            "netns",
            net.actor,
        )
        ip("-n", net.server, "addr", "add", f"{net.address}/24", "dev", "fault0")
        ip("-n", net.actor, "addr", "add", "10.231.77.2/24", "dev", "fault1")
        for name, device in ((net.server, "fault0"), (net.actor, "fault1")):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")
        yield net
    finally:
        for name in (net.server, net.actor):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def redis_socket(net: Net, tmp_path: Path) -> Iterator[str]:
    """A server in the first namespace; its address for this test."""
    socket = tmp_path / "s"
    process = subprocess.Popen(
        [
            *("ip", "netns", "exec", net.server, str(redis_server_binary())),
            *("--bind", net.address, "--port", str(PORT), "--requirepass", PASSWORD),
            *("--unixsocket", str(socket), "--dir", str(tmp_path), "--save", ""),
        ],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not socket.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield f"unix://:{PASSWORD}@{socket}"
    process.terminate()
    process.wait(30)


def notes(directory: Path) -> list[dict[str, Any]]:
    found = []
    for path in directory.glob("notes-*.jsonl"):
        lines = path.read_text().split("\n")[:-1]  # the last one may be half written
        found += [json.loads(line) for line in lines]
    return found


def test_an_actor_that_is_cut_off_comes_back_with_the_newest_adapter(
    net: Net, redis_socket: str, tiny_lm: LanguageModel, tiny_lm_path: Path, tmp_path: Path
) -> None:
    """May be lost: nothing but time: groups in flight are finished under their own version and stored
    afterwards. No request that begins after the cut uses a version that was old by then."""
    settings = {"slack_trajectories": 10**9, "capacity_per_prompt": 10**6, "deadline_seconds": 600}
    file = run_file(tmp_path, tiny_lm_path, replay=settings)
    config = parse(yaml.safe_load(file.read_text()))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    notes_directory = tmp_path / "notes"
    notes_directory.mkdir()
    client = connect(redis_socket)
    store, buffer = RedisAdapters(client, RUN), RedisBuffer(client, RUN, config.replay)
    adapter = tmp_path / "adapter"
    random_adapter(
        tiny_lm.model, adapter, rank=config.learner.lora_rank, scale=0.1, seed=1
    ).unload()
    files = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}

    def publish(version: int) -> None:
        store.publish(version, files)
        store.prune(8)
        buffer.set_learner_version(version)

    def until(condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert actor.poll() is None, "the actor has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def submitted(since: float) -> list[int]:
        return [
            note["version"] for note in notes(notes_directory)
            if note["what"] == "submit" and note["seconds"] > since and note["behaviour"] != "base"
        ]  # fmt: skip

    publish(1)
    actor = subprocess.Popen(
        [
            *("ip", "netns", "exec", net.actor, sys.executable, "-m", "tests.faults.actor_process"),
            str(tmp_path / "config.json"),
            f"redis://:{PASSWORD}@{net.address}:{PORT}/0",
            *("actor-far", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, ENVIRONMENT: str(notes_directory), "OMP_NUM_THREADS": "1"},
    )
    try:
        until(lambda: acknowledged(notes(notes_directory)))
        until(lambda: 1 in submitted(0.0))
        net.link("down")
        cut = time.monotonic()
        for version in range(2, 2 + VERSIONS_MEANWHILE):
            publish(version)
            time.sleep(CUT_SECONDS / VERSIONS_MEANWHILE)
        newest = 1 + VERSIONS_MEANWHILE
        silent = [
            note for note in notes(notes_directory)
            if note["what"] == "insert" and note["state"] == "end" and note["seconds"] > cut + 1.0
        ]  # fmt: skip
        assert silent == []  # it has dropped out
        received = buffer.stats().inserted + buffer.stats().merged
        mended = time.monotonic()
        net.link("up")
        until(lambda: buffer.stats().inserted + buffer.stats().merged > received)
        until(lambda: len(submitted(mended)) >= 8)
        # Old versions were in flight; whatever began afterwards is of the newest.
        assert set(submitted(mended)) == {newest}
        registry = RunRegistry(client, RUN)
        until(lambda: registry.components()["actor-far"].fields.get("version") == newest)
        registry.request_stop("enough")
        assert actor.wait(DEADLINE_SECONDS) == 0
    finally:
        if actor.poll() is None:
            actor.kill()
            actor.wait()
    account = settle(client, RUN, acknowledged(notes(notes_directory)))
    assert account.acknowledged > 0 and account.missing == []
