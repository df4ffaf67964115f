"""The loop: resuming exactly, micro-batches, versions, waits, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import logging
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.checkpoint import load_latest, pack_optimizer
from learner.gradients import accumulate
from learner.learner import Learner
from learner.log_z import LogZTable
from learner.schedules import learning_rate, reward_temperature
from posteriori.config import LearnerConfig
from posteriori.errors import StorageFull, UserError, WaitTimeout
from posteriori.groups import prepare
from posteriori.policy import Policy
from replay.memory_adapters import MemoryAdapters
from tests.learner.helpers import (
    ScriptedBuffer,
    random_draws,
    run_config,
    tiny_problem,
    trajectory,
)


def learner_on(lm, directory, buffer, problem=None, adapters=None, **options):
    """A learner on scripted draws; options that are its own go there, the rest to the run file."""
    own = {
        name: options.pop(name)
        for name in ("evaluate", "on_metrics", "on_event", "resume")
        if name in options
    }
    return Learner(
        run_config(lm, **options),
        lm,
        [problem or tiny_problem(lm)],
        buffer,
        adapters or MemoryAdapters("test"),
        directory,
        **own,
    )


def states(learner):
    """Everything that decides the learner's future."""
    tensors, groups = pack_optimizer("adamw", learner.optimizer)
    table = learner.log_z.learned() if learner.log_z else {}
    groups = json.loads(json.dumps(groups))  # tuples come back as lists
    return learner.policy.adapter_files(), tensors, groups, table, learner.step


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[2:] == second[2:]


@pytest.mark.parametrize(
    "objective", [{"objective": "subtb+vargrad"}, {"objective": "tb", "root": "learned"}]
)
def test_a_resumed_run_equals_one_that_never_stopped(tiny_lm, tmp_path, objective):
    problem = tiny_problem(tiny_lm)
    draws = random_draws(problem, 6)
    options = {"warmup_steps": 2, "reward_temperature_start": 2.0, "anneal_steps": 3} | objective
    whole = learner_on(tiny_lm, tmp_path / "a", ScriptedBuffer(draws), problem, **options)
    whole.run()

    adapters = MemoryAdapters("test")

    def stop_after_three(step, metrics):
        if step == 3:
            first.stop()

    first = learner_on(
        tiny_lm, tmp_path / "b", ScriptedBuffer(draws), problem, adapters,
        on_metrics=stop_after_three, **options,
    )  # fmt: skip
    first.run()
    assert first.step == 3
    torch.manual_seed(999)  # whatever happened in between
    second = learner_on(
        tiny_lm, tmp_path / "b", ScriptedBuffer(draws, start=3), problem, adapters,
        resume=True, **options,
    )  # fmt: skip
    assert_same(states(second), states(first))
    second.run()
    assert_same(states(second), states(whole))
    assert second.trajectories == whole.trajectories == 6 * 16


def test_versions_grow_and_are_never_reused(tiny_lm, tmp_path):
    draws = random_draws(tiny_problem(tiny_lm), 10)
    adapters, buffer = MemoryAdapters("test"), ScriptedBuffer(draws)
    first = learner_on(tiny_lm, tmp_path, buffer, adapters=adapters, publish_every_steps=2, steps=5)
    first.run()
    # Before step 1, after steps 2, 4 and 5.
    assert adapters.versions() == (1, 2, 3, 4)
    assert buffer.learner_version == 4
    # The store is ahead of the checkpoint: a version was published, the process killed before saving.
    adapters.publish(9, first.policy.adapter_files())
    second = learner_on(
        tiny_lm, tmp_path, ScriptedBuffer(draws), adapters=adapters,
        publish_every_steps=2, steps=5, resume=True,
    )  # fmt: skip
    second.run()
    assert adapters.latest() == 10
    # What is published is what the learner has.
    fetched = adapters.fetch(10, tmp_path)
    files = {path.name: path.read_bytes() for path in fetched.iterdir()}
    assert files == second.policy.adapter_files()


def test_resume_without_a_checkpoint_starts_anew(tiny_lm, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fresh = learner_on(tiny_lm, tmp_path, ScriptedBuffer([]), resume=True)
    assert fresh.step == 0
    assert "starts anew" in caplog.text


@pytest.mark.parametrize("objective", ["subtb", "subtb+vargrad", "vargrad", "tb"])
def test_microbatches_add_up_to_the_whole_gradient(tiny_lm, objective):
    problem = tiny_problem(tiny_lm, min_tokens=2, max_tokens=8)
    groups = [prepare(g, problem) for g in random_draws(problem, 1, per_prompt=24)[0]]
    assert max(len(group.tree) for group in groups) > 64
    policy = Policy(tiny_lm, LearnerConfig(lora_rank=8), seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)

    def gradient(budget):
        config = LearnerConfig(
            objective=objective, tokens_per_microbatch=budget, trajectories_per_prompt=24
        )
        table = LogZTable([problem], 0.1, 2)
        with torch.no_grad():
            table.values.copy_(torch.tensor([1.0, 2.0]))
        for parameter in policy.parameters():
            parameter.grad = None
        result = accumulate(
            policy, groups, {"tiny": problem}, config, 1.0, table if objective == "tb" else None
        )
        return result, [p.grad.clone() for p in policy.parameters()], table.values.grad

    whole, expected, log_z = gradient(100_000)
    parts, found, log_z_parts = gradient(64)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)
    assert parts.loss.mean() == pytest.approx(whole.loss.mean(), rel=1e-5)
    assert np.sort(parts.terminal) == pytest.approx(np.sort(whole.terminal), rel=1e-4, abs=1e-4)
    if objective == "tb":
        torch.testing.assert_close(log_z_parts, log_z, rtol=1e-5, atol=1e-6)


def test_contrastive_says_when_a_group_does_not_fit(tiny_lm):
    problem = tiny_problem(tiny_lm, max_tokens=8)
    groups = [prepare(g, problem) for g in random_draws(problem, 1, per_prompt=24)[0]]
    config = LearnerConfig(objective="contrastive", tokens_per_microbatch=64)
    with pytest.raises(UserError, match="tokens_per_microbatch is 64"):
        accumulate(
            Policy(tiny_lm, LearnerConfig(lora_rank=8)),
            groups,
            {"tiny": problem},
            config,
            1.0,
            None,
        )


def test_a_wait_ends_at_its_deadline_with_its_reason(tiny_lm, tmp_path):
    learner = learner_on(tiny_lm, tmp_path, ScriptedBuffer(random_draws(tiny_problem(tiny_lm), 2)))
    with pytest.raises(WaitTimeout, match=r"waited 0\.2 s for trajectories: the script has ended"):
        learner.run()
    assert learner.intake.idle_seconds > 0.2
    assert 0 < learner.idle_ratio < 1
    # What was learned is not lost.
    assert load_latest(learner.checkpoint_directory).step == 2


def test_stop_ends_a_wait(tiny_lm, tmp_path):
    learner = learner_on(tiny_lm, tmp_path, ScriptedBuffer([]))
    learner.stop()
    learner.run()
    assert learner.step == 0


def test_poisoned_trajectories_are_dropped_and_their_producer_named(tiny_lm, tmp_path, caplog):
    problem = tiny_problem(tiny_lm)
    draws = random_draws(problem, 2)
    good = draws[0][0][2]
    draws[0][0][0] = replace(good, tokens=np.full(len(good), 1, dtype=np.int32), actor="bad-1")
    draws[0][0][1] = replace(good, log_q=good.log_q[:-1], actor="bad-2")
    draws[0][1] = [replace(t, problem="else", actor="bad-3") for t in draws[0][1]]
    events = []
    with caplog.at_level(logging.WARNING):
        learner = learner_on(
            tiny_lm, tmp_path, ScriptedBuffer(draws), problem, steps=2,
            on_event=lambda kind, message: events.append((kind, message)),
        )  # fmt: skip
        learner.run()
    assert learner.intake.rejected == 10
    assert learner.trajectories == 6 + 16
    # They would be drawn again otherwise. Three in a row shut a producer out.
    assert len(learner.buffer.discarded) == 10
    assert set(learner.buffer.quarantined) == {"bad-3"}
    assert "3 trajectories in a row" in learner.buffer.quarantined["bad-3"]
    for name in ("bad-1", "bad-2", "bad-3"):
        assert name in caplog.text
        assert any(kind == "rejected" and name in message for kind, message in events)


def test_stale_rewards_are_scored_again(tiny_lm, tmp_path):
    problem = tiny_problem(tiny_lm)
    draws = random_draws(problem, 1)
    stale = [
        [replace(t, reward_version=0, log_reward=t.log_reward + 50) for t in g] for g in draws[0]
    ]
    first = learner_on(tiny_lm, tmp_path / "a", ScriptedBuffer(draws), problem, steps=1)
    second = learner_on(tiny_lm, tmp_path / "b", ScriptedBuffer([stale]), problem, steps=1)
    first.run()
    second.run()
    assert second.intake.rescored == 16
    assert first.intake.rescored == 0
    assert second.metrics["loss"] == first.metrics["loss"]


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tiny_lm, tmp_path):
    problem = tiny_problem(tiny_lm)
    draws = random_draws(problem, 2)
    poison = draws[1][0][3]
    huge = np.where(poison.stop_legal, -3e38, 0.0).astype(np.float32)
    draws[1][0][3] = replace(poison, log_reward=huge)
    learner = learner_on(tiny_lm, tmp_path, ScriptedBuffer(draws), problem)
    with pytest.raises(UserError, match=r"gradient of step 2 .* log R = -3e\+38"):
        learner.run()
    assert learner.step == 1
    assert load_latest(tmp_path / "checkpoints").step == 1
    assert all(torch.isfinite(p).all() for p in learner.policy.parameters())


def test_a_full_disk_stops_the_run_with_its_own_message(tiny_lm, tmp_path):
    draws = random_draws(tiny_problem(tiny_lm), 4)
    learner = learner_on(
        tiny_lm, tmp_path, ScriptedBuffer(draws), checkpoint_every_steps=2, steps=4,
        on_metrics=lambda step, metrics: step == 2 and limit(),
    )  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(StorageFull, match="checkpoint of step 4"):
            learner.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_latest(tmp_path / "checkpoints").step == 2


def test_evaluation_and_metrics_arrive_when_promised(tiny_lm, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    learner = learner_on(
        tiny_lm, tmp_path, ScriptedBuffer(random_draws(tiny_problem(tiny_lm), 5)),
        steps=5, evaluate_every_steps=2,
        evaluate=lambda policy, step: {"tv/tiny": 1.0 / (1 + step)},
        on_metrics=lambda step, metrics: rows.append((step, dict(metrics))),
    )  # fmt: skip
    learner.run()
    assert [step for step, metrics in rows if "tv/tiny" in metrics] == [0, 2, 4, 5]
    steps = [(step, metrics) for step, metrics in rows if "loss" in metrics]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    for name in (
        "loss", "gradient_norm", "learning_rate", "reward_temperature", "flow_spread", "variance",
        "idle_ratio", "version", "step_seconds", "tokens", "rejected",
    ):  # fmt: skip
        assert all(np.isfinite(metrics[name]) for _, metrics in steps), name
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in curves.Scalars("tv/tiny")] == [0, 2, 4, 5]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_missing_is_a_user_error(tiny_lm, tmp_path):
    config = run_config(tiny_lm).model_copy(update={"wandb": True})
    with pytest.raises(UserError, match="pip install wandb"):
        Learner(
            config,
            tiny_lm,
            [tiny_problem(tiny_lm)],
            ScriptedBuffer([]),
            MemoryAdapters("t"),
            tmp_path,
        )


def test_schedules():
    config = LearnerConfig(
        steps=100, warmup_steps=10, learning_rate=2.0, reward_temperature_start=3.0, anneal_steps=40
    )
    assert [learning_rate(config, s) for s in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert learning_rate(config, 55) == pytest.approx(1.0)
    assert 0 < learning_rate(config, 99) < 1e-3
    constant = config.model_copy(update={"decay": "constant"})
    assert learning_rate(constant, 99) == 2.0
    temperatures = [reward_temperature(config, s) for s in (0, 20, 40, 99)]
    assert temperatures == pytest.approx([3.0, 2.0, 1.0, 1.0])


def test_log_z_table_starts_at_its_groups_and_converges(tiny_lm):
    problem = tiny_problem(tiny_lm)
    table = LogZTable([problem], learning_rate=0.1, prompts_per_step=1)
    rows = torch.tensor([0, 0, 0])
    assert table.learned() == {}
    first = table.at(rows, torch.tensor([-40.0, -40.0, -40.0]))
    assert first.tolist() == [-40.0] * 3
    for _ in range(40):
        loss = (
            (table.at(rows, torch.zeros(3)) - torch.tensor([-30.0, -31.0, -32.0])).square().mean()
        )
        loss.backward()
        table.step()
    # The other prompt was never drawn and stays unknown.
    assert table.learned() == {("tiny", "0"): pytest.approx(-31.0, abs=0.01)}


def test_temperature_divides_the_reward(tiny_lm):
    problem = tiny_problem(tiny_lm, min_tokens=0, max_tokens=1)
    prompt = problem.prompts[0]
    groups = [prepare([trajectory(problem, prompt, []), trajectory(problem, prompt, [])], problem)]
    policy = Policy(tiny_lm, LearnerConfig(lora_rank=8))
    config = LearnerConfig(objective="subtb")
    ends = [
        accumulate(policy, groups, {"tiny": problem}, config, t, None).terminal[0]
        for t in (1.0, 2.0)
    ]
    reward = float(groups[0].trajectories[0].log_reward[0])
    assert ends[0] - ends[1] == pytest.approx(reward - reward / 2, abs=1e-5)
