"""What docs/threat-model.md says: no pickle, no secret in a word that is shown, no code from data."""

from __future__ import annotations

import ast
import json
import pickle
from io import StringIO
from pathlib import Path
from typing import Any

import msgpack
import pytest
from rich.console import Console
from typer.testing import CliRunner

from posteriori.commands.submit import refuse_password
from posteriori.errors import CorruptPayload, UserError
from posteriori.trajectory import decode
from replay.address import without_password
from replay.connection import connect
from replay.redis_adapters import RedisAdapters
from replay.registry import RunRegistry
from replay.server import EmbeddedServer

ROOT = Path(__file__).parents[1]
ROOMS = (
    "posteriori",
    "replay",
    "actors",
    "learner",
    "api",
    "baselines",
    "experiments",
    "benchmarks",
)
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
UNPICKLING = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "_pickle"}
SECRET = "s3cr#t/pa?ss@word"


class Bomb:
    """Runs a program where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Bomb())
    pickle.loads(data)  # noqa: S301 - it does work
    (tmp_path / "exploded").unlink()
    return data


def test_a_pickled_trajectory_is_refused(bomb: bytes) -> None:
    for payload in (bomb, msgpack.packb({"tokens": bomb}), msgpack.packb([bomb] * 14)):
        with pytest.raises(CorruptPayload):
            decode(payload)
    assert not Path("exploded").exists()


def test_pickles_planted_in_redis_are_never_run(bomb: bytes, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis", 2**20) as server:
        client = connect(server.url)
        client.hset("posteriori:{r}:registry:beats", "actor-1", "1.0")
        client.hset("posteriori:{r}:registry:components", "actor-1", bomb)
        with pytest.raises((ValueError, msgpack.UnpackException)):
            RunRegistry(client, "r").components()
        RedisAdapters(client, "r").publish(1, {"adapter_model.safetensors": bomb})
        client.hset("posteriori:{r}:adapters:files:1", "adapter_model.safetensors", bomb + b"x")
        with pytest.raises(CorruptPayload):
            RedisAdapters(client, "r").fetch(1, tmp_path)
    assert not Path("exploded").exists()


def test_a_pickled_adapter_is_refused(bomb: bytes, tmp_path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    with pytest.raises(SafetensorError):
        load(bomb)
    assert not Path("exploded").exists()


def calls(tree: ast.AST) -> list[tuple[str, set[str], int, str]]:
    """Name, keywords, line and text of every call."""
    return [
        (
            ast.unparse(node.func),
            {k.arg or "" for k in node.keywords},
            node.lineno,
            ast.unparse(node) if node.keywords else "",
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_reads_pickles_or_runs_text(room: str) -> None:
    found = []
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != room:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                modules = [getattr(node, "module", None) or "", *names]
                found += [f"{path}:{node.lineno}" for m in modules if m.split(".")[0] in UNPICKLING]
        for name, keywords, line, text in calls(tree):
            if (
                name in ("eval", "exec", "os.system")
                or (name == "torch.load" and "weights_only" not in keywords)
                or "allow_pickle=True" in text
                or name in ("yaml.load", "yaml.unsafe_load")
                or "shell" in keywords
            ):
                found.append(f"{path}:{line}: {name}")
    assert found == []


ADDRESSES = [
    "redis://:{}@127.0.0.1:1/0",
    "rediss://ann:{}@127.0.0.1:1/0?ssl_cert_reqs=none",
    "redis+sentinel://:{}@127.0.0.1:1/main",
    "redis+cluster://ann:{}@127.0.0.1:1",
    "unix://:{}@/nowhere/redis.sock",
    "redis://127.0.0.1:1/0?password={}",
    "redis+sentinel://127.0.0.1:1/main?sentinel_password={}",
]


@pytest.mark.parametrize("secret", ["quoted", SECRET, "[brackets", "12345"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_is_in_no_message(
    address: str, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    url = address.format(secret)
    pieces = [piece for piece in (secret, "s3cr", "@word", "brackets") if piece in url]
    assert pieces
    with pytest.raises(UserError) as caught:
        connect(url, retries=0)
    said = "".join(
        [without_password(url), str(caught.value), caplog.text]
        # What a log of the whole traceback would show of the causes.
        + [str(e) for e in (caught.value.__cause__,) if e is not None]
    )
    for piece in pieces:
        assert piece not in said


def test_a_patient_client_does_not_log_it(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    with pytest.raises(UserError):
        connect(f"redis://:{'x' * 9}@127.0.0.1:1/0", patience_seconds=4.0, on_wait=said.append)
    assert said and all("xxx" not in line for line in said)


def test_a_dry_run_masks_credentials(tiny_lm_path: Path, tmp_path: Path) -> None:
    from posteriori.cli import app

    content = {
        "run": "r",
        "model": str(tiny_lm_path),
        "problems": [
            {"name": "p", "kind": "tempered", "prompts": [{"x": " the big"}], "max_tokens": 2,
             "alphabet": [" cat"], "stop": "."}
        ],
        "replay": {"redis_url": "redis://ann:hush-hush@redis.example:6379/0"},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(content))
    shown = CliRunner().invoke(app, ["train", str(file), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "redis.example:6379" in shown.output and "hush" not in shown.output


def test_a_run_file_with_a_password_does_not_travel() -> None:
    from posteriori.config import ReplayConfig, RunConfig

    problem = {"name": "p", "kind": "tempered", "prompts": [{"x": "a"}], "max_tokens": 2}
    config = RunConfig.model_validate({"run": "r", "problems": [problem]})
    refuse_password(config)
    for url in ("redis://:pw@h:1/0", "redis://h:1/0?password=pw"):
        replay = ReplayConfig(redis_url=url)
        with pytest.raises(UserError, match="redis_url: environment"):
            refuse_password(config.model_copy(update={"replay": replay}))


def test_gc_does_not_show_it() -> None:
    from posteriori.commands.gc import gc

    with pytest.raises(UserError) as caught:
        gc("redis://:hush-hush@127.0.0.1:1/0", [], False, Console(file=StringIO()))
    assert "hush" not in str(caught.value)


def test_a_servers_own_settings_ask_for_protection() -> None:
    """What the embedded server is told: no port, a socket that only this user may open."""
    server = EmbeddedServer(Path("/nowhere"), 2**20)
    command = server._command(Path("/nowhere/s"))
    assert command[command.index("--port") + 1] == "0"
    assert command[command.index("--unixsocketperm") + 1] == "700"
    assert "--bind" not in command
