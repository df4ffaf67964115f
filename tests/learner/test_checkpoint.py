"""Checkpoints: exact, atomic, and chosen with care."""

from __future__ import annotations

import logging
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    TENSORS,
    Checkpoint,
    load_latest,
    pack_optimizer,
    random_states,
    restore_random_states,
    save,
    unpack_optimizer,
)
from posteriori.errors import StorageFull, UserError


def checkpoint(step: int, size: int = 100) -> Checkpoint:
    return Checkpoint(
        step=step,
        version=step // 5,
        adapter={ADAPTER_CONFIG: b"{}", ADAPTER_WEIGHTS: bytes([step % 256]) * size},
        tensors={"m.0.exp_avg": torch.full((size,), float(step))},
        state={"counters": {"trajectories": 7 * step}},
    )


def test_what_is_saved_comes_back(tmp_path):
    assert load_latest(tmp_path / "none") is None
    saved = checkpoint(50)
    assert save(tmp_path, saved).name == "step-00000050"
    found = load_latest(tmp_path)
    assert (found.step, found.version, dict(found.state)) == (50, 10, dict(saved.state))
    assert dict(found.adapter) == dict(saved.adapter)
    assert torch.equal(found.tensors["m.0.exp_avg"], saved.tensors["m.0.exp_avg"])


def test_the_last_ones_are_kept_and_a_step_may_be_saved_again(tmp_path):
    for step in (10, 20, 30, 30, 100):
        save(tmp_path, checkpoint(step), keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000030", "step-00000100"]
    assert load_latest(tmp_path).step == 100


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing", "empty"])
def test_a_damaged_latest_is_skipped_with_a_warning(tmp_path, caplog, damage):
    save(tmp_path, checkpoint(1))
    latest = save(tmp_path, checkpoint(2))
    tensors = latest / TENSORS
    data = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(data[:-10])
    elif damage == "flip":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "manifest":
        (latest / MANIFEST).write_text("{")
    elif damage == "missing":
        (latest / ADAPTER_WEIGHTS).unlink()
    else:
        for path in latest.iterdir():
            path.unlink()
    with caplog.at_level(logging.WARNING):
        assert load_latest(tmp_path).step == 1
    assert "step-00000002 IS DAMAGED" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.learner.test_checkpoint import checkpoint
from learner.checkpoint import save, ADAPTER_CONFIG

class Deadly(dict):
    def __getitem__(self, name):
        if name == ADAPTER_CONFIG:  # two files are on the disk by now
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(name)

directory = Path(sys.argv[1])
save(directory, checkpoint(1))
second = checkpoint(2)
object.__setattr__(second, "adapter", Deadly(second.adapter))
save(directory, second)
"""


def test_a_kill_in_mid_write_leaves_the_previous_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    assert left[0].startswith(".step-00000002.partial-")
    assert load_latest(tmp_path).step == 1
    # The next save clears the debris.
    save(tmp_path, checkpoint(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_no_room_is_a_user_error_and_loses_nothing(tmp_path):
    save(tmp_path, checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageFull, match="No room for the checkpoint of step 2"):
            save(tmp_path, checkpoint(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path).step == 1


def test_an_unwritable_place_is_a_user_error(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    with pytest.raises(UserError, match="Cannot write the checkpoint of step 3"):
        save(occupied, checkpoint(3))


def test_optimiser_states_come_back_exactly(tmp_path):
    def build() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
        return parameters, torch.optim.AdamW(parameters, lr=0.1, betas=(0.8, 0.95))

    def steps(parameters, optimizer, numbers):
        for number in numbers:
            optimizer.zero_grad()
            sum(((p - number) ** 2).sum() for p in parameters).backward()
            optimizer.step()

    parameters, optimizer = build()
    steps(parameters, optimizer, range(3))
    tensors, groups = pack_optimizer("adamw", optimizer)
    held = [p.detach().clone() for p in parameters]
    save(tmp_path, Checkpoint(3, 1, checkpoint(3).adapter, tensors, {"groups": groups}))
    steps(parameters, optimizer, range(3, 6))

    found = load_latest(tmp_path)
    fresh, other = build()
    with torch.no_grad():
        for parameter, value in zip(fresh, held, strict=True):
            parameter.copy_(value)
    unpack_optimizer("adamw", other, found.tensors, found.state["groups"])
    steps(fresh, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(fresh, parameters, strict=True))


def test_random_states_come_back_exactly(tmp_path):
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.standard_normal()  # noqa: NPY002  # leaves a cached Gaussian behind
    tensors, state = random_states()
    save(tmp_path, Checkpoint(1, 1, checkpoint(1).adapter, tensors, state))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.standard_normal()), float(torch.rand(()))  # noqa: NPY002

    expected = draw()
    draw()
    found = load_latest(tmp_path)
    restore_random_states(found.tensors, found.state)
    assert draw() == expected
