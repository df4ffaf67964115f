"""The embedded server: its life, its data, its end; and the errors of connections."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from posteriori.errors import StorageUnreachable, UserError
from replay.server import EmbeddedServer, connect, running_address


def test_it_serves_and_cleans_up(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**20) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert running_address(server.directory) == server.url
        client = connect(server.url)
        client.set("key", b"\x00\xff")
        assert client.get("key") == b"\x00\xff"
        settings = client.config_get("*")
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["appendonly"] == "yes"
        assert settings["port"] == "0"
        assert settings["maxmemory"] == str(server.maxmemory_bytes)
        process = psutil.Process(server.pid)
    assert not process.is_running()
    assert not socket.parent.exists()
    with pytest.raises(UserError, match="No Redis server runs in"):
        running_address(server.directory)
    assert not server.alive
    server.stop()


def test_its_data_outlive_it(tmp_path: Path) -> None:
    for count in range(1, 4):
        with EmbeddedServer(tmp_path, capacity_bytes=2**20) as server:
            assert connect(server.url).incr("count") == count


def test_starting_twice_is_starting_once(own_server: EmbeddedServer) -> None:
    pid = own_server.pid
    own_server.start()
    assert own_server.pid == pid


def test_it_starts_again_after_an_orderly_end(own_server: EmbeddedServer) -> None:
    client = connect(own_server.url)
    client.set("key", "value")
    client.shutdown()
    own_server._supervisor.wait()  # type: ignore[union-attr]
    own_server.start()
    assert client.get("key") == b"value"


def test_a_second_owner_is_refused(own_server: EmbeddedServer) -> None:
    with pytest.raises(UserError, match="Another process runs the Redis server"):
        EmbeddedServer(own_server.directory, capacity_bytes=2**20).start()
    assert connect(own_server.url).ping()


# A shell that starts the tests in the background has its children ignore Ctrl-C.
OWNER = """
import signal, sys, time
from pathlib import Path
from replay.server import EmbeddedServer, connect
signal.signal(signal.SIGINT, signal.default_int_handler)
server = EmbeddedServer(Path(sys.argv[1]), capacity_bytes=2**20)
connect(server.start()).set("key", "saved")
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "redis")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def test_it_does_not_outlive_a_killed_owner(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    assert owner.stdout is not None
    server_process = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    # Resuming at once meets the dying server, a pointer and a pid file: none may be in the way.
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**20) as server:
        assert connect(server.url).get("key") == b"saved"
        assert server.pid != server_process.pid
    server_process.wait(30)


def test_ctrl_c_reaches_the_owner_and_not_the_server(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert owner.stdout is not None
    server_process = psutil.Process(int(owner.stdout.readline()))
    supervisor = server_process.parent()
    assert supervisor is not None
    socket = Path((tmp_path / "redis" / "address").read_text().removeprefix("unix://"))
    assert socket.exists()
    assert os.getpgid(server_process.pid) != os.getpgid(owner.pid)
    assert os.getsid(server_process.pid) != os.getsid(owner.pid)
    os.killpg(os.getpgid(owner.pid), signal.SIGINT)
    owner.wait(30)
    server_process.wait(30)  # it ends because its owner did
    assert psutil.wait_procs([supervisor], timeout=30)[1] == []
    assert not socket.parent.exists()


def test_a_stale_pid_of_another_process_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "redis.pid").write_text(str(os.getpid()))
    (tmp_path / "address").write_text("unix:///nowhere/posteriori-gone/redis.sock")
    with EmbeddedServer(tmp_path, capacity_bytes=2**20) as server:
        assert connect(server.url).ping()


def test_a_torn_end_of_the_file_is_dropped(tmp_path: Path) -> None:
    """A host that dies in mid-write leaves half a command."""
    with EmbeddedServer(tmp_path, capacity_bytes=2**20) as server:
        connect(server.url).set("key", "value")
    with (tmp_path / "appendonly.aof").open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$3\r\nke")
    with EmbeddedServer(tmp_path, capacity_bytes=2**20) as server:
        assert connect(server.url).get("key") == b"value"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"this is no append-only file\r\n" * 3)
    with pytest.raises(UserError, match=r"append-only file in .* is damaged"):
        EmbeddedServer(tmp_path, capacity_bytes=2**20).start()


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, capacity_bytes=2**20)
    (tmp_path / "appendonly.aof").mkdir()  # it cannot be opened for writing
    with pytest.raises(StorageUnreachable, match=r"did not start .* append") as caught:
        server.start()
    assert str(tmp_path) in caught.value.problem
    (tmp_path / "appendonly.aof").rmdir()
    server.start()
    server.stop()


def test_too_long_a_temporary_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_path = tmp_path / ("x" * 100)
    long_path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long_path))
    with pytest.raises(UserError, match="too long a path"):
        EmbeddedServer(tmp_path / "redis", capacity_bytes=2**20).start()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachable, match="does not answer"):
        connect(f"unix://{tmp_path}/nothing.sock", retries=0)


def test_passwords_are_not_shown() -> None:
    with pytest.raises(StorageUnreachable) as caught:
        connect("redis://user:secret@127.0.0.1:1/0", retries=0)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match="is not an address"):
        connect("http://localhost")


def test_wrong_credentials_are_named(own_server: EmbeddedServer) -> None:
    connect(own_server.url).config_set("requirepass", "right")
    with pytest.raises(StorageUnreachable, match="refuses the credentials") as caught:
        connect(own_server.url.replace("unix://", "unix://:wrong@"), retries=0)
    assert "wrong@" not in str(caught.value)


def test_a_server_that_evicts_at_will_is_refused(own_server: EmbeddedServer) -> None:
    connect(own_server.url).config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(UserError, match="maxmemory-policy allkeys-lru"):
        connect(own_server.url)
