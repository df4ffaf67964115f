"""Several learner processes on gloo: the numbers of one process, and an end with a cause."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint import load_latest
from learner.learner import Learner
from learner.log_z import LogZTable
from learner.team import Team, split_groups
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from replay.memory_adapters import MemoryAdapters
from tests.learner.helpers import ScriptedBuffer, random_draws, run_config, tiny_problem

HOST = "127.0.0.1"
CONTEXTS = (" the", " a big", " the sad")
JOIN_SECONDS = 120


def _serve(path: str, ports: Any, jobs: list[dict[str, Any]]) -> None:
    """Rank 1 of one team after another."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    from learner.layers import run_layers_as_told

    lm = LanguageModel.load(path)
    problem = tiny_problem(lm, contexts=CONTEXTS)
    for options in jobs:
        settings = run_config(lm, **options).learner
        team = Team(1, 2, HOST, ports.get())
        team.join()
        policy = Policy(lm, settings, seed=99)  # rank 0's weights are what counts
        if settings.shard_base:
            team.shard(policy, "cpu")
        run_layers_as_told(policy, settings)
        table = LogZTable.for_run([problem], settings)
        team.serve(policy, {problem.name: problem}, settings, table)
        team.close()


@contextmanager
def peer(path: Path, *jobs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """A second process, and the queue that takes the port of each team it is to join."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=_serve, args=(str(path), ports, list(jobs)), daemon=True)
    process.start()
    try:
        yield process, ports
    finally:
        process.kill()
        process.join()


def team_of(ports: Any) -> Team:
    team = Team(0, 2, HOST, 0)
    ports.put(team.port)
    team.join()
    return team


def trained(
    lm: LanguageModel, directory: Path, options: dict[str, Any], team: Team | None
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[tuple[str, str], float]]:
    """Adapter, metrics and log Z table after a short run on scripted draws."""
    problem = tiny_problem(lm, contexts=CONTEXTS)
    rows: list[dict[str, float]] = []
    learner = Learner(
        run_config(lm, **options),
        lm,
        [problem],
        ScriptedBuffer(random_draws(problem, 4)),
        MemoryAdapters("test"),
        directory,
        on_metrics=lambda step, metrics: rows.append(dict(metrics)),
        evaluate=lambda policy, step: {"passes": float(len(policy.parameters()))},
        team=team,
    )
    learner.run()
    weights = {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}
    table = learner.log_z.learned() if learner.log_z is not None else {}
    return {n: w for n, w in weights.items() if "lora" in n}, rows, table


JOBS: list[dict[str, Any]] = [
    {"objective": "subtb+vargrad"},
    {"objective": "subtb+vargrad", "tokens_per_microbatch": 64},
    {"objective": "tb", "root": "learned"},
    {"objective": "contrastive"},
    {"objective": "subtb+vargrad", "shard_base": True, "evaluate_every_steps": 2},
    {
        "objective": "subtb+vargrad",
        "shard_base": True,
        "tokens_per_microbatch": 64,
        "activation_checkpointing": True,
    },
]


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def in_its_own_process(function: Callable[[Path, Path], None], *paths: Path) -> None:
    """As a learner's rank 0 is: where a vLLM engine lives, torch's one default group is the engine's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *paths).result()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tiny_lm_path, tmp_path):
    in_its_own_process(_one_process_and_two, tiny_lm_path, tmp_path)


def _one_process_and_two(tiny_lm_path: Path, tmp_path: Path) -> None:
    tiny_lm = LanguageModel.load(str(tiny_lm_path))
    base = {"prompts_per_step": 3, "steps": 4, "warmup_steps": 0}
    jobs = [base | job | {"processes": 2} for job in JOBS]
    with peer(tiny_lm_path, *jobs) as (_, ports):
        for number, job in enumerate(jobs):
            alone = job | {"processes": 1, "shard_base": False}
            expected, rows, table = trained(tiny_lm, tmp_path / f"one-{number}", alone, None)
            team = team_of(ports)
            found, team_rows, team_table = trained(tiny_lm, tmp_path / f"two-{number}", job, team)
            team.close()
            moved = max(float(w.abs().max()) for n, w in expected.items() if "lora_B" in n)
            assert moved > 1e-3, "the adapter did not learn, so equality says nothing"
            for name, weight in expected.items():
                torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)
            assert team_table == pytest.approx(table, abs=1e-5)
            for ours, theirs in zip(rows, team_rows, strict=True):
                assert ours.keys() == theirs.keys()
                for key in ("loss", "gradient_norm", "flow_spread", "variance", "tokens"):
                    if key in ours:
                        assert theirs[key] == pytest.approx(ours[key], rel=1e-5, abs=1e-5), key


@pytest.mark.slow
def test_the_end_of_a_process_ends_the_step_with_its_cause(tiny_lm_path, tmp_path):
    in_its_own_process(_peer_killed, tiny_lm_path, tmp_path)


def _peer_killed(tiny_lm_path: Path, tmp_path: Path) -> None:
    tiny_lm = LanguageModel.load(str(tiny_lm_path))
    options = {"prompts_per_step": 3, "steps": 4, "processes": 2}
    problem = tiny_problem(tiny_lm, contexts=CONTEXTS)
    with peer(tiny_lm_path, options) as (process, ports):

        def first_cause() -> str | None:
            return None if process.is_alive() else "learner process 2 died: out of memory"

        team = Team(0, 2, HOST, 0, first_cause)
        ports.put(team.port)
        team.join()

        def kill_after_two(step: int, metrics: Any) -> None:
            if step == 2:
                process.kill()
                process.join()

        learner = Learner(
            run_config(tiny_lm, **options),
            tiny_lm,
            [problem],
            ScriptedBuffer(random_draws(problem, 4)),
            MemoryAdapters("test"),
            tmp_path,
            on_metrics=kill_after_two,
            team=team,
        )
        with pytest.raises(UserError, match="learner process 2 died: out of memory"):
            learner.run()
        team.close()
    # Both steps are saved, and go on with any number of processes.
    assert load_latest(tmp_path / "checkpoints").step == 2


def test_groups_stay_whole_and_loads_are_alike(tiny_lm):
    [draws] = random_draws(tiny_problem(tiny_lm, contexts=CONTEXTS), 1)
    drawn = [*draws, draws[0], draws[0]]
    shares = split_groups(drawn, 2, together=False)
    assert sorted(g for share in shares for g in share) == list(range(5))
    assert sorted(map(len, shares)) == [2, 3]
    together = split_groups(drawn, 2, together=True)
    assert [0, 3, 4] in [sorted({0, 3, 4} & set(share)) for share in together]
    assert split_groups(draws[:1], 2, together=False) == [[0], []]
