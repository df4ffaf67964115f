"""The files of deploy/ and the compose file, read; and their commands made fit for one machine."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from replay.server import redis_server_binary

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DASHBOARD = DEPLOY / "grafana/dashboards/posteriori.json"
PROMETHEUS = DEPLOY / "prometheus/prometheus.yml"
RULES = DEPLOY / "prometheus/rules.yml"
SLURM = DEPLOY / "slurm/posteriori.sbatch"
METRIC = re.compile(r"\bposteriori_[a-z0-9_]+")


def compose() -> dict[str, Any]:
    """docker-compose.yml, its anchors resolved."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def documents(file: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return list(yaml.safe_load_all(file.read_text()))


def manifest(kind: str) -> dict[str, Any]:
    """The only Kubernetes object of a kind."""
    (found,) = (d for file in KUBERNETES for d in documents(file) if d["kind"] == kind)
    return found


def command_of(service: str, **variables: str) -> list[str]:
    """What a container of the compose file runs, interpolated as Compose does it."""

    def interpolate(text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            return variables.get(name, default)

        text = re.sub(r"(?<!\$)\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)
        return text.replace("$$", "$")

    return [interpolate(part) for part in compose()["services"][service]["command"]]


def fitted(
    command: list[str], changes: Mapping[str, str], extra: tuple[str, ...] = ()
) -> list[str]:
    """The command with ports, paths and hosts of this machine; every change must find its place."""
    for old, new in changes.items():
        assert any(old in part for part in command), f"{old!r} is not in {command}"
        command = [part.replace(old, new) for part in command]
    return [*command, *extra]


def free_ports(count: int) -> list[int]:
    """Free on loopback a moment ago; different ones."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def machine_environment(**more: str) -> dict[str, str]:
    """An environment like an image's: this checkout's commands and a redis-server on PATH."""
    path = f"{Path(sys.executable).parent}:{redis_server_binary().parent}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "POSTERIORI_"))}
    return kept | {
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers yield to all else by default; a test on a busy machine would wait for them for ever.
        "RAY_worker_niceness": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
        **more,
    }


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    """Every pod template inside an object."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from pod_templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_templates(value)
