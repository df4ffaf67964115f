"""Commands of deploy/, run without containers: each starts, does one real thing, and stops."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
import ray
import ray._private.utils as ray_utils
import redis
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from posteriori.commands.cluster import connected
from tests.deploy.conftest import Stack, posteriori, run_file, running, wait_until
from tests.deploy.files import (
    DASHBOARD,
    METRIC,
    RULES,
    SLURM,
    command_of,
    fitted,
    free_ports,
    machine_environment,
    manifest,
)

HISTOGRAM = re.compile(r"_(bucket|count|sum)$")


@pytest.mark.slow
def test_redis_of_the_cluster(tmp_path: Path) -> None:
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    (port,) = free_ports(1)
    places = {
        "--port 6379": f"--port {port} --bind 127.0.0.1",
        "--dir /data": f"--dir {tmp_path}",
    }
    environment = machine_environment(REDIS_PASSWORD="open sesame")
    command = fitted([*container["command"], *container["args"]], places)
    with running(command, environment, tmp_path / "log") as process:
        client = redis.Redis(port=port, password="open sesame")

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "Redis", tmp_path / "log", process)
        client.set("acknowledged", "1")
        settings = client.config_get()
        assert settings["appendonly"] == "yes" and settings["maxmemory-policy"] == "noeviction"
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        line = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert "open sesame" not in line
        for probe in ("readinessProbe", "livenessProbe"):
            test = fitted(container[probe]["exec"]["command"], {"-p 6379": f"-p {port}"})
            subprocess.run(test, env=environment, check=True, timeout=30)
            wrong = machine_environment(REDIS_PASSWORD="wrong")
            assert subprocess.run(test, env=wrong, check=False, timeout=30).returncode != 0
    with running(command, environment, tmp_path / "log") as process:
        wait_until(answers, "Redis once more", tmp_path / "log", process)
        assert client.get("acknowledged") == b"1"


@pytest.mark.ray
@pytest.mark.slow
def test_entrypoint_of_the_ray_job(stack: Stack, tiny_lm_path: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_file("job", tiny_lm_path)))
    (entrypoint,) = fitted(
        [manifest("RayJob")["spec"]["entrypoint"]],
        {"/etc/posteriori": str(tmp_path), "/data/runs": str(stack.runs)},
    )
    headers = {"Authorization": f"Bearer {(stack.secrets / 'ray_token').read_text()}"}
    client = JobSubmissionClient(stack.dashboard, headers=headers)
    job = client.submit_job(entrypoint=entrypoint)
    over = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
    wait_until(lambda: client.get_job_status(job) in over, "the job's end")
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    summary = json.loads((stack.runs / "job/report.json").read_text())["summary"]
    assert summary["steps"] == 4 and summary["counters"]["trajectories inserted"] > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_without_an_address_joins_no_cluster(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the one that `ray start` left as this machine's latest."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    latest = f"127.0.0.1:{stack.gcs_port}"
    ray_utils.write_ray_address(latest)
    try:
        with connected():
            assert ray.get_runtime_context().gcs_address.split(":")[-1] != str(stack.gcs_port)
    finally:
        Path(ray_utils.get_ray_address_file(None)).unlink()


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_and_its_metrics(stack: Stack, tiny_lm_path: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    changes = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8000": f"--port={port}",
        "/data/runs": str(stack.runs),
        "/run/secrets": str(stack.secrets),
    }
    command = command_of(
        "api", POSTERIORI_ENGINE="transformers", POSTERIORI_MODEL=str(tiny_lm_path)
    )
    url = f"http://127.0.0.1:{port}"
    keys = yaml.safe_load((stack.secrets / "api_keys").read_text())
    log = tmp_path / "log"
    with running(fitted(command, changes), stack.environment, log) as process:

        def healthy() -> bool:
            try:
                return httpx.get(url + "/ready", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(healthy, "the service", log, process)
        content = run_file("any", tiny_lm_path)
        asked = {"problem": content["problems"][0], "n": 8, "seed": 1}  # type: ignore[index]
        assert httpx.post(url + "/v1/posterior/samples", json=asked).status_code == 401
        admin = {"Authorization": f"Bearer {keys['admin']['key']}"}
        answer = httpx.post(url + "/v1/posterior/samples", json=asked, headers=admin, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["samples"]) == 8

        scraper = {"Authorization": f"Bearer {(stack.secrets / 'metrics_key').read_text()}"}
        assert (
            httpx.post(url + "/v1/posterior/samples", json=asked, headers=scraper).status_code
            == 403
        )
        text = httpx.get(url + "/metrics", headers=scraper).text
    exposed = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    shown = METRIC.findall(DASHBOARD.read_text()) + METRIC.findall(RULES.read_text())
    named = {HISTOGRAM.sub("", name) for name in shown}
    assert len(named) > 15
    assert named <= exposed, f"not exposed: {sorted(named - exposed)}"
    for secret in (stack.secrets / "metrics_key", stack.secrets / "redis_password"):
        assert secret.read_text() not in log.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_the_ray_service(stack: Stack, tiny_lm_path: Path, tmp_path: Path) -> None:
    """What KubeRay's operator does: the serveConfigV2 of the manifest, given to Serve's own schema."""
    content = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    (application,) = content["applications"]
    (port,) = free_ports(1)
    application["args"] |= {
        "model": str(tiny_lm_path),
        "engine": "transformers",
        "runs_directory": str(stack.runs),
        "keys_file": str(stack.secrets / "api_keys"),
    }
    application["deployments"][0]["ray_actor_options"] = {"num_cpus": 1}
    content |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    environment = {**stack.environment, "RAY_DASHBOARD_ADDRESS": stack.dashboard}
    serve = ("deploy", "--address", stack.dashboard, str(file))
    done = subprocess.run(
        ["serve", *serve], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key = yaml.safe_load((stack.secrets / "api_keys").read_text())["admin"]["key"]
    url, admin = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}

    def ready() -> bool:
        try:
            return httpx.get(url + "/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "the application")
        content = run_file("any", tiny_lm_path)
        asked = {"problem": content["problems"][0], "n": 4, "seed": 1}
        assert httpx.post(url + "/v1/posterior/samples", json=asked).status_code == 401
        answer = httpx.post(url + "/v1/posterior/samples", json=asked, headers=admin, timeout=60)
        assert answer.status_code == 200 and len(answer.json()["samples"]) == 4, answer.text
    finally:
        down = ["serve", "shutdown", "--address", stack.dashboard, "--yes"]
        subprocess.run(down, env=environment, capture_output=True, timeout=120, check=False)


SRUN = """#!/bin/bash
# Stands in for srun: runs the step here, after options that must be those of srun.
name=localhost
while [[ $1 == --* ]]; do
  case $1 in
    --nodes=1|--ntasks=1|--overlap) ;;
    --nodelist=*) name=${1#--nodelist=} ;;
    --export=ALL,*=*) export "${1#--export=ALL,}" ;;
    *) echo "srun: unknown option $1" >&2; exit 64 ;;
  esac
  shift
done
echo "$name $*" >>"$STEPS"
if [[ $1 == ray && $2 == start ]]; then
  # Two nodes share this machine: the second gets ports of its own, the first a folder of its own.
  set -- "$@" --num-gpus=0 --object-store-memory=100000000
  [[ $3 == --head ]] && set -- "$@" --temp-dir="$SESSION"
fi
exec "$@"
"""


@pytest.mark.ray
@pytest.mark.slow
def test_the_slurm_script(tiny_lm_path: Path, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, script in {
        "srun": SRUN,
        "scontrol": '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n',
        "hostname": "#!/bin/sh\necho 127.0.0.1\n",
    }.items():
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    content = run_file("slurm", tiny_lm_path)
    content["replay"] = {"redis_url": "embedded"}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    (port,) = free_ports(1)
    environment = machine_environment()
    with tempfile.TemporaryDirectory(
        prefix="ps-", dir="/tmp", ignore_cleanup_errors=True
    ) as session:
        environment |= {
            "PATH": f"{bin_}:{environment['PATH']}",
            "STEPS": str(tmp_path / "steps"),
            "SESSION": session,
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "3",
            "POSTERIORI_RAY_PORT": str(port),
        }
        with running([str(SLURM), str(file)], environment, tmp_path / "log", tmp_path) as script:
            code = script.wait(300)
        log = (tmp_path / "log").read_text()
        assert code == 0, log[-3000:]
        summary = json.loads((tmp_path / "runs/slurm/report.json").read_text())["summary"]
        assert summary["steps"] == 4 and summary["counters"]["trajectories inserted"] > 0
        steps = (tmp_path / "steps").read_text().splitlines()
        assert any(s.startswith("node1 ray start --head") for s in steps)
        assert any(s.startswith(f"node2 ray start --address=127.0.0.1:{port}") for s in steps)
        assert any(s.startswith(f"node1 posteriori train {file} --runs {tmp_path}") for s in steps)
        assert not any("TOKEN" in s.upper() for s in steps)
        # Its trap has taken the Ray nodes along.
        mine = [
            p for p in Path("/proc").glob("[0-9]*/cmdline")
            if session.encode() in _read(p) and p.parent.name != str(os.getpid())
        ]  # fmt: skip
        wait_until(lambda: not any(session.encode() in _read(p) for p in mine), "the nodes' end")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_the_slurm_script_says_how_to_use_it() -> None:
    result = subprocess.run([SLURM], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "usage: sbatch" in result.stderr


def test_the_images_default_command() -> None:
    result = posteriori("--help", environment=machine_environment(), cwd=Path(sys.prefix))
    assert result.returncode == 0 and "submit" in result.stdout
