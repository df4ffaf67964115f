"""Runs over HTTP: what their registry says, what it is asked, their curves and adapters."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posteriori import cli
from posteriori.client import Client, ServiceError
from posteriori.commands.run_control import RunControl
from posteriori.commands.run_directory import RunDirectory
from posteriori.commands.top import watch
from posteriori.lm import LanguageModel
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from replay.registry import RunRegistry
from tests.api.conftest import Running, live_run, run_config, served, settings_for, until


@pytest.fixture
def live(
    tiny_lm: LanguageModel, tiny_lm_path: Path, run_folder: Path, adapters: dict[int, Path]
) -> Iterator[RunRegistry]:
    with live_run(tiny_lm, tiny_lm_path, run_folder, adapters) as registry:
        yield registry


def test_a_live_run(client: Client, live: RunRegistry) -> None:
    assert client.run("live").state == "starting"
    live.beat("learner", {"state": "learning", "step": 7.0, "version": 2.0})
    live.beat("actor-1", {"state": "sampling", "samples_per_second": 10.5})
    live.record(6, {"loss": 2.0, "tv/sharp": 0.25})
    live.record(7, {"loss": 1.5, "ess": float("nan")})
    found = client.run("live")
    assert (found.state, found.step, found.version, found.desired_actors) == ("running", 7, 2, 1)
    assert found.metrics == {"loss": 1.5, "ess": None, "tv/sharp": 0.25}
    (actor,) = client.actors("live").actors
    assert actor.name == "actor-1" and actor.fields["samples_per_second"] == 10.5

    assert client.scale("live", 3).desired == 3
    assert live.desired_actors() == 3
    rows = client.history("live")
    assert [(row.step, row.metrics["loss"]) for row in rows.rows] == [(6, 2.0), (7, 1.5)]
    live.record(8, {"loss": 1.0})
    assert [row.step for row in client.history("live", rows.next_after).rows] == [8]

    assert client.stop("live").state == "stopping"
    assert live.stop_requested() is not None
    live.fail("learner", "no room on the disk")
    assert client.run("live").failure == "learner: no room on the disk"
    assert {run.run for run in client.runs().runs} == {"live", "r"}


def test_events(client: Client, live: RunRegistry) -> None:
    first = live.event("published", "Adapter version 1.", version=1)
    live.event("checkpoint", "Checkpoint of step 5.")
    events = list(client.events("live"))
    assert [event.kind for event in events] == ["published", "checkpoint"]
    assert events[0].fields == {"version": 1}
    assert [event.kind for event in client.events("live", after=first)] == ["checkpoint"]
    following = client.events("live", after=events[-1].id, follow=True)
    live.event("scaled", "3 rollout actors wanted.")
    assert next(following).kind == "scaled"


def test_versions_of_a_live_run(
    client: Client, live: RunRegistry, adapters: dict[int, Path], tmp_path: Path
) -> None:
    listed = client.adapters("live").adapters
    assert [(item.version, item.source) for item in listed] == [(1, "live"), (2, "live")]
    assert client.samples(run="live", n=4, seed=1).version == 2
    # The same weights under another run's name give the same samples.
    assert [s.tokens for s in client.samples(run="live", n=4, seed=1, version=1).samples] == [
        s.tokens for s in client.samples(run="r", n=4, seed=1, version=1).samples
    ]
    found = client.download_adapter("live", 2, tmp_path)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        assert (found / name).read_bytes() == (adapters[2] / name).read_bytes()


def test_versions_on_disk(client: Client) -> None:
    listed = [(item.version, item.source) for item in client.adapters("r").adapters]
    assert listed == [(1, "checkpoint"), (2, "checkpoint"), (3, "exported")]


def test_a_run_that_is_not_live(client: Client) -> None:
    with pytest.raises(ServiceError, match="is not live") as refused:
        client.scale("r", 2)
    assert (refused.value.status, refused.value.code) == (409, "not_live")
    for call in (client.actors, client.stop, lambda run: list(client.events(run))):
        with pytest.raises(ServiceError, match="is not live"):
            call("r")
    assert client.history("r").rows == []


def test_history_of_an_ended_run_comes_from_its_curves(client: Client, run_folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_folder / "r" / "tensorboard"))
    for step in (1, 2, 3):
        writer.add_scalar("loss", 1 / step, step)
    writer.close()
    rows = client.history("r")
    assert [row.step for row in rows.rows] == [1, 2, 3]
    assert rows.rows[1].metrics["loss"] == pytest.approx(0.5)
    assert client.history("r", rows.rows[1].id).rows[0].step == 3
    shutil.rmtree(run_folder / "r" / "tensorboard")


def test_problems(client: Client) -> None:
    found = {item.problem: item for item in client.problems().problems if item.run == "r"}
    assert list(found) == ["sharp", "why", "long"]
    why = found["why"]
    assert (why.policy_fields, why.reward_fields) == (["x"], ["x", "y"])
    assert found["sharp"].prompt_ids == ["0", "dog"] and found["sharp"].alphabet_tokens == 3


def test_the_driver_s_process_id_is_not_taken_for_another_s(run_folder: Path) -> None:
    """A lock file names a process; one born after it was written only has its number."""
    control = RunControl(RunDirectory(run_folder / "r"))
    lock = run_folder / "r" / "lock"
    lock.write_text(str(os.getpid()))
    assert control.driver() == os.getpid()
    os.utime(lock, (1.0, 1.0))
    assert control.driver() is None
    lock.unlink()
    assert control.driver() is None


def test_a_run_file_is_checked_before_anything_starts(client: Client, tiny_lm_path: Path) -> None:
    def refused(**changes: Any) -> tuple[str, str | None]:
        config = run_config(tiny_lm_path, Path("/nowhere"), "n").model_dump(mode="json")
        with pytest.raises(ServiceError) as error:
            client.launch({**config, **changes})
        return error.value.code, error.value.field

    assert refused(model="gpt2") == ("not_allowed", "run_file.model")
    replay = {"redis_url": "redis://10.0.0.1:6379/0"}
    assert refused(replay=replay) == ("not_allowed", "run_file.replay.redis_url")
    assert refused(wandb=True) == ("not_allowed", "run_file.wandb")
    assert refused(run="r") == ("run_exists", "run_file.run")
    python = {"name": "p", "kind": "python", "factory": "os:system", "max_tokens": 1}
    python["prompts"] = [{"x": "a"}]
    assert refused(problems=[python]) == ("not_allowed", "run_file.problems.0.factory")
    assert not Path("/nowhere").exists()


def test_command_line(
    service: Running,
    live: RunRegistry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["posteriori", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    local = str(service.service.settings.runs_directory / "live")
    assert "starting" in run("runs", "--url", service.url)
    assert "2 wanted" in run("scale", "live", "--actors", "2", "--url", service.url)
    assert "4 wanted" in run("scale", local, "--actors", "4")
    assert live.desired_actors() == 4
    live.event("published", "Adapter version 1.")
    for arguments in (["logs", "live", "--url", service.url], ["logs", local]):
        assert "published: Adapter version 1." in run(*arguments)
    table = run("score", "r", " sat", " ran", "--url", service.url)
    assert " sat" in table and " ran" in table
    sampled = run("sample", "r", "-n", "4", "--version", "1", "--url", service.url)
    assert "log Ẑ" in sampled
    assert "stopping" in run("stop", local)
    assert live.stop_requested() is not None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_launch_scale_stop_resume(tiny_lm_path: Path, tmp_path: Path) -> None:
    """A whole run over HTTP: 1 → 2 → 1 actors while it trains, stop, resume, sample what it learned."""
    config = run_config(tiny_lm_path, tmp_path, "run")
    learner = config.learner.model_copy(update={"steps": 100_000, "checkpoint_every_steps": 10})
    problem = config.problems[0].model_copy(update={"prompts": ({"x": " the cat"},)})
    config = config.model_copy(update={"learner": learner, "problems": (problem,)})
    with (
        served(settings_for(tiny_lm_path, tmp_path)) as running,
        running.client() as client,
    ):

        def eventually(true: Callable[[], bool]) -> None:
            until(true, 280, poll_seconds=0.5)  # each look costs the run's Redis a connection

        def alive() -> int:
            if client.run("run").state != "running":
                return 0
            return len([a for a in client.actors("run").actors if a.fields["state"] == "sampling"])

        def step() -> int:
            return client.run("run").step or 0

        assert client.launch(config.model_dump(mode="json")).state == "starting"
        eventually(lambda: alive() == 1)
        client.scale("run", 2)
        eventually(lambda: alive() == 2)
        client.scale("run", 1)
        eventually(lambda: alive() == 1)
        before = step()
        eventually(lambda: step() > before + 20)
        version = client.samples(run="run", n=8).version
        assert version > 0
        client.stop("run")
        eventually(lambda: client.run("run").state == "stopped")
        ended = client.run("run")
        assert ended.failure is None and ended.step is not None and ended.step > before
        assert ended.version >= version
        client.resume("run")
        eventually(lambda: step() > (ended.step or 0) + 5)
        assert client.run("run").version > ended.version
        client.stop("run")
        eventually(lambda: client.run("run").state == "stopped")


def test_top(client: Client, live: RunRegistry) -> None:
    live.beat("learner", {"state": "learning", "step": 7.0, "version": 2.0})
    live.beat("actor-1", {"state": "sampling", "samples_per_second": 10.5, "version": 2})
    live.beat("actor-2", {"state": "sampling", "waiting_for": "the learner"})
    for step, loss in ((5, 4.0), (6, 2.0), (7, 1.5)):
        live.record(step, {"loss": loss, "log_z/sharp": -3.25, "log_z_exact/sharp": -3.5})
    live.event("published", "Adapter version 2.", version=2)
    printed = _printed(client, "live")
    assert "step 7 of" in printed and "version 2" in printed
    assert re.search(r"loss +1\.5 +█▂▁", printed)
    assert re.search(r"log_z/sharp +-3\.25 .*exact -3\.5", printed)
    assert "0 trajectories" in printed and "2 alive, 1 wanted" in printed
    assert re.search(r"actor-1 +sampling +2 +10\.5", printed)
    assert "waits: the learner" in printed and "Adapter version 2." in printed
    # A run that is not live still has its curves.
    assert "alive" not in _printed(client, "r")


def _printed(client: Client, run: str) -> str:
    console = Console(file=io.StringIO(), width=120)
    watch(client, run, console, once=True, seconds=1.0)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
