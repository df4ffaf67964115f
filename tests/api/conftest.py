"""A run of two adapter versions, and the service over real HTTP on a free port of this machine."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi import FastAPI

from actors.self_test import random_adapter
from api.access import Key
from api.app import create_app
from api.service import Service
from api.settings import ServeSettings
from learner.checkpoint import Checkpoint, save
from posteriori.client import Client
from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from posteriori.seams import Engine
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from replay.server import EmbeddedServer

PROBLEM: dict[str, Any] = {
    "name": "sharp",
    "kind": "tempered",
    "prompts": [{"x": " the cat"}, {"id": "dog", "x": " a dog"}],
    "alphabet": [" sat", " ran", " slept"],
    "stop": ".",
    "max_tokens": 3,
    "temperature": 0.8,
}
REASONING: dict[str, Any] = {
    "name": "why",
    "kind": "reasoning",
    "prompts": [{"x": " the cat", "y": " sat"}],
    "alphabet": [" big", " small", " happy"],
    "stop": ".",
    "max_tokens": 2,
}
LONG: dict[str, Any] = {
    "name": "long",
    "kind": "tempered",
    "prompts": [{"x": " the cat"}],
    "stop": ".",
    "min_tokens": 20,
    "max_tokens": 40,
}
VERSIONS = (1, 2, 3)


def run_config(model: Path, folder: Path, name: str = "r") -> RunConfig:
    """A run of three problems."""
    return parse(
        {
            "run": name,
            "model": str(model),
            "output_directory": str(folder),
            "problems": [PROBLEM, REASONING, LONG],
            "sampling": {"engine": "transformers"},
            "learner": {"lora_rank": 8, "publish_every_steps": 5},
        }
    )


@pytest.fixture(scope="session")
def run_folder(
    tiny_lm_path: Path, tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with run ``r``: versions 1 to 3 in checkpoints, the last one exported."""
    folder = tmp_path_factory.mktemp("runs")
    config = run_config(tiny_lm_path, folder)
    directory = RunDirectory(config.directory)
    directory.create(config, tiny_lm)
    for version in VERSIONS:
        target = folder.parent / f"adapter-{version}"
        model = LanguageModel.load(str(tiny_lm_path)).model
        random_adapter(model, target, rank=8, scale=0.3, seed=version)
        files = {name: (target / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
        state = {"log_z_keys": [["sharp", "0"], ["sharp", "dog"]]}
        table = {"log_z": torch.tensor([-float(version), torch.nan], dtype=torch.float64)}
        checkpoint = Checkpoint(5 * version, version, files, table, state)
        save(config.directory / "checkpoints", checkpoint)
    shutil.copytree(target, directory.adapter)
    return folder


@pytest.fixture(scope="session")
def adapters(run_folder: Path) -> dict[int, Path]:
    """Directory of each version's adapter, the base LM's left out."""
    return {version: run_folder.parent / f"adapter-{version}" for version in VERSIONS}


@contextmanager
def live_run(
    lm: LanguageModel, model: Path, folder: Path, adapters: dict[int, Path]
) -> Iterator[RunRegistry]:
    """A run ``live`` as its driver leaves it: registry, store and lock, without the training."""
    config = run_config(model, folder, "live")
    directory = RunDirectory(config.directory)
    directory.create(config, lm)
    with (
        EmbeddedServer(directory.redis, 2**20) as server,
        connect(server.url) as client,
        directory.locked(),
    ):
        registry = RunRegistry(client, "live")
        registry.begin()
        registry.set_desired_actors(1)
        store = RedisAdapters(client, "live")
        for version in (1, 2):
            names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
            store.publish(version, {n: (adapters[version] / n).read_bytes() for n in names})
        yield registry
    shutil.rmtree(directory.path)


@dataclass(frozen=True)
class Running:
    """A service on this machine."""

    url: str
    app: FastAPI

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def client(self, **options: Any) -> Client:
        return Client(self.url, **{"retry_seconds": 0.0, **options})


@contextmanager
def served(
    settings: ServeSettings,
    engine: Callable[[], Engine] | None = None,
    keys: tuple[Key, ...] = (),
    *,
    wait: bool = True,
) -> Iterator[Running]:
    """Serve on a free port; with ``wait``, until the engine answers."""
    app = create_app(settings, engine, keys)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        if wait:
            until(lambda: app.state.service.host.not_ready is None)
        yield Running(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join(30)


def until(true: Callable[[], bool], seconds: float = 60, poll_seconds: float = 0.01) -> None:
    """Wait for something that happens soon; fails if it does not."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(poll_seconds)


def settings_for(model: Path, folder: Path, **changes: Any) -> ServeSettings:
    """Settings of a small service."""
    return ServeSettings(
        **{
            "model": str(model),
            "runs_directory": folder,
            "engine": "transformers",
            "lora_rank": 8,
            "adapter_slots": 2,
            "max_request_tokens": 2**17,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def service(tiny_lm_path: Path, run_folder: Path) -> Iterator[Running]:
    """One service for all tests that leave it as it is; two adapter slots for three versions."""
    with served(settings_for(tiny_lm_path, run_folder)) as running:
        yield running


@pytest.fixture
def client(service: Running) -> Iterator[Client]:
    with service.client() as client:
        yield client
