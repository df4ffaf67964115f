"""What this machine offers: one `Check` each for Python, memory, disk, ports and GPU.

Limits are parameters, so that a test can provoke every outcome. A check catches only the failures
it knows how to explain.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

GIB = 2**30
PYTHON_NEEDED = (3, 11)
# One actor with an engine holds 1.75 GB, the learner about 1 GB, Ray and Redis the rest.
MEMORY_NEEDED_BYTES = 4 * GIB
# For Ray's object store; with less it falls back to files. Docker's default is 64 MiB.
SHM_WANTED_BYTES = 512 * 2**20
# Checkpoints, adapters and the buffer's append-only file of one run.
DISK_NEEDED_BYTES = 2 * GIB
GPU_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """What one check found; ``fix`` says what to do unless the status is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    shown = ".".join(map(str, version))
    if version < PYTHON_NEEDED:
        fix = "Use Python 3.11 or newer: `rm -rf .venv && make setup`."
        return Check("python", "fail", shown, fix)
    return Check("python", "ok", f"{shown}, {platform.system()} {platform.machine()}")


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may still take of the machine, and of its container if that has a limit."""
    free = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except FileNotFoundError:  # no container, or one with the old layout
        return free
    if limit == "max":
        return free
    # Pages of files nobody uses any more count as used but are given up at once.
    return min(free, max(0, int(limit) - used + int(stat.get("inactive_file", 0))))


def check_memory(
    available_bytes: int | None = None, needed_bytes: int = MEMORY_NEEDED_BYTES
) -> Check:
    available = available_memory_bytes() if available_bytes is None else available_bytes
    detail = f"{available / GIB:.1f} GiB available"
    if available >= needed_bytes:
        return Check("memory", "ok", detail)
    fix = "Stop other programs, raise the container's limit, or use fewer actors."
    return Check("memory", "fail", f"{detail}, {needed_bytes / GIB:.1f} needed", fix)


def check_shared_memory(
    path: Path = Path("/dev/shm"), wanted_bytes: int = SHM_WANTED_BYTES
) -> Check:
    name = "shared memory"
    if not path.is_dir():
        return Check(
            name, "warn", f"{path} is missing", "Mount it: without it Ray uses files, slower."
        )
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free in {path}"
    if free >= wanted_bytes:
        return Check(name, "ok", detail)
    return Check(
        name, "warn", detail, "In Docker: `--shm-size=2g`. With less, Ray uses files, slower."
    )


def check_disk(path: Path, needed_bytes: int = DISK_NEEDED_BYTES) -> Check:
    """Room for runs in ``path``, which need not exist yet."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        fix = "Choose a run directory you may write to."
        return Check("disk", "fail", f"{place} is not a writable directory", fix)
    free = shutil.disk_usage(place).free
    detail = f"{free / GIB:.1f} GiB free for {path}"
    if free >= needed_bytes:
        return Check("disk", "ok", detail)
    fix = "Remove old runs, or choose a run directory on another disk."
    return Check("disk", "fail", f"{detail}, {needed_bytes / GIB:.1f} needed", fix)


def check_port(port: int, user: str, host: str = "127.0.0.1") -> Check:
    """A taken port warns only: the service and the dashboard both take another on request."""
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except OSError as cause:
            fix = (
                f"Give the {user} another port, or stop what uses it: `ss -ltnp 'sport = :{port}'`."
            )
            return Check(name, "warn", f"{cause.strerror} ({user})", fix)
    return Check(name, "ok", f"free ({user})")


def check_gpu(command: str = "nvidia-smi", timeout_seconds: float = GPU_TIMEOUT_SECONDS) -> Check:
    """No GPU is fine; a GPU that torch cannot use is a warning."""
    if shutil.which(command) is None:
        return Check("gpu", "ok", "none: CPU mode")
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, timeout=timeout_seconds, check=True
        )
    except (subprocess.SubprocessError, OSError) as cause:
        return Check("gpu", "warn", str(cause), "Repair the driver, or go on in CPU mode.")
    import torch  # two seconds, on machines with a GPU only

    names = "; ".join(answer.stdout.strip().splitlines())
    if torch.version.cuda is None:
        fix = "To use the GPU, install a CUDA build of torch and `posteriori[gpu]`."
        return Check("gpu", "warn", f"{names}; torch {torch.__version__} is a CPU build", fix)
    return Check("gpu", "ok", f"{names}; CUDA {torch.version.cuda}")
