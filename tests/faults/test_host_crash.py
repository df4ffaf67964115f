"""What a host that dies takes with it: all that Redis had acknowledged and not yet synced to the disk.

The host's death is played from the worst side: the server is killed, and its append-only file is cut to
what it held when its last finished sync began, as if the kernel had written back nothing by itself.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from posteriori.commands.progress import ProgressView
from posteriori.commands.run_directory import RunDirectory
from posteriori.commands.watch import Watch
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from replay.server import EmbeddedServer
from tests.faults.accounts import check_whole
from tests.replay.build import config, tokens_of, trajectory

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def kill_host(server: EmbeddedServer, notes: Path) -> None:
    """SIGKILL, then lose what was not synced."""
    os.kill(server.pid, signal.SIGKILL)
    server._supervisor.wait()  # type: ignore[union-attr]
    (synced,) = struct.unpack("<q", notes.read_bytes())
    os.truncate(server.directory / "appendonly.aof", synced)


def fill(buffer: RedisBuffer, first: int, count: int) -> list[float]:
    """Insert trajectories one by one; when each was acknowledged."""
    times = []
    for number in range(first, first + count):
        assert buffer.insert([trajectory([number])]).inserted == 1
        times.append(time.monotonic())
    return times


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_what_a_host_crash_costs(
    fsync: Literal["everysec", "always"],
    sync_notes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: pytest.FixtureRequest,
) -> None:
    """May be lost: under ``everysec`` what was acknowledged since the last sync, that is the newest and
    nothing before; under ``always`` nothing. The loss is counted and reported."""
    notes = tmp_path / "synced"
    monkeypatch.setenv("LD_PRELOAD", str(sync_notes))
    monkeypatch.setenv("SYNC_NOTES", str(notes))
    server = EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26, fsync=fsync)
    with server:
        client = connect(server.url)
        # A quick machine acknowledges thousands in that time, and none may be evicted.
        roomy = config(capacity_per_prompt=10**6, capacity_bytes=2**25)
        buffer, registry = RedisBuffer(client, "r", roomy), RunRegistry(client, "r")
        acknowledged: list[float] = []
        begin = time.monotonic()
        # Long enough for syncs to happen; under `everysec` until one is due.
        while time.monotonic() < begin + 2.5 or (
            fsync == "everysec" and _all_synced(server, notes)
        ):
            acknowledged += fill(buffer, len(acknowledged), 20)
        watch = Watch(
            registry,
            RedisAdapters(client, "r"),
            buffer,
            None,
            RunDirectory(tmp_path),
            None,  # type: ignore[arg-type]
        )
        watch._notice_loss(buffer.stats())
        died = time.monotonic()
        kill_host(server, notes)
        server.start()

        versions = check_whole(client, "r")
        lost = len(acknowledged) - len(versions)
        if fsync == "always":
            assert lost == 0
        else:
            assert lost > 0
            print(
                f"{lost} of {len(acknowledged)} lost, the oldest {died - acknowledged[-lost]:.2f} s old"
            )
        kept = buffer.draw(1, len(versions)).groups[0]
        assert sorted(tokens_of(kept)) == [(n,) for n in range(len(versions))]  # only the newest

        watch._notice_loss(buffer.stats())
        told = [event for event in registry.events() if event.kind == "storage_lost"]
        assert [event.fields["trajectories"] for event in told] == ([lost] if lost else [])
        assert all(f"WITHOUT {lost} TRAJECTORIES" in event.message for event in told)
        assert buffer.insert([trajectory([10**6])]).inserted == 1


def _all_synced(server: EmbeddedServer, notes: Path) -> bool:
    (synced,) = struct.unpack("<q", notes.read_bytes())
    return bool((server.directory / "appendonly.aof").stat().st_size == synced)


def test_a_file_cut_anywhere_holds_whole_trajectories(tmp_path: Path) -> None:
    """May be lost: what comes after the cut. Never half of an insert: a script is all there or not."""
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26) as server:
        buffer = RedisBuffer(connect(server.url), "r", config(capacity_per_prompt=6))
        for number in range(12):
            buffer.insert([trajectory([number, k], float(k)) for k in range(3)])
    whole = (tmp_path / "redis" / "appendonly.aof").read_bytes()
    counts = set()
    for cut in np.random.default_rng(0).integers(len(whole) // 2, len(whole), 8):
        (tmp_path / "redis" / "appendonly.aof").write_bytes(whole[:cut])
        with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26) as server:
            client = connect(server.url)
            check_whole(client, "r")
            stats = RedisBuffer(client, "r", config()).stats()
            assert stats.inserted % 3 == 0
            assert stats.trajectories == min(stats.inserted, 6)
            counts.add(stats.inserted)
    assert len(counts) > 3


def test_the_view_shows_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """The kinds of events that must be loud are; the sentence is printed as it is."""
    from rich.console import Console

    from posteriori.commands.watch import LOUD

    view = ProgressView(Console(width=200), 10, [])
    view.say("REDIS CAME BACK WITHOUT 3 TRAJECTORIES [really]")
    assert "WITHOUT 3 TRAJECTORIES [really]" in capsys.readouterr().out
    assert {"storage_lost", "checkpoint_damaged", "adapter_refused", "quarantined"} <= LOUD
