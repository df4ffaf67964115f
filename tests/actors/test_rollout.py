"""The rollout loop on real parts: engine, reward, buffer and adapter store, all in this process."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.adapter_follower import ADAPTER_SLOTS, AdapterFollower
from actors.exploration import Exploration
from actors.outbox import Outbox
from actors.rollout import RolloutWorker
from actors.transformers_engine import TransformersEngine
from posteriori.config import ProblemConfig, ReplayConfig, SamplingConfig
from posteriori.errors import RewardError, StorageUnreachable, UserError, WaitTimeout
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem
from posteriori.seams import Engine, InsertReceipt, SampleRequest
from posteriori.trajectory import Trajectory
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from tests.actors.conftest import RANK, naive_log_q, run

ALPHABET = [" cat", " dog", " ran", " slept"]

SAMPLING = SamplingConfig(
    engine="transformers",
    group_size=4,
    groups_in_flight=3,
    base_share=0.25,
    tempered_share=0.25,
    uniform_share=0.25,
)

Adapters = dict[str, tuple[Path, torch.nn.Module]]


class RecordingBuffer(MemoryBuffer):
    """Keeps everything it was offered and took."""

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config, seed=0)
        self.taken: list[Trajectory] = []

    def insert(self, trajectories: Any) -> InsertReceipt:
        receipt = super().insert(trajectories)
        if receipt.wait is None:
            self.taken += trajectories
        return receipt


@pytest.fixture
def problems(tiny_lm: LanguageModel) -> list[Problem]:
    settings: dict[str, Any] = {"alphabet": ALPHABET, "stop": ".", "kind": "tempered"}
    return [
        build_problem(
            ProblemConfig.model_validate(
                settings
                | {
                    "name": "short",
                    "max_tokens": 3,
                    "prompts": [{"x": " the big"}, {"x": " a small cat"}],
                    "temperature": 0.5,
                }
            ),
            tiny_lm,
        ),
        build_problem(
            ProblemConfig.model_validate(
                settings
                | {
                    "name": "long",
                    "min_tokens": 2,
                    "max_tokens": 6,
                    "prompts": [{"x": " the cat", "y": " and then the bird ate."}],
                    "kind": "infilling",
                }
            ),
            tiny_lm,
        ),
    ]


@pytest.fixture
def engine(tiny_lm_path: Path) -> Iterator[Engine]:
    engine = TransformersEngine(
        tiny_lm_path, lora_rank=RANK, max_adapters=ADAPTER_SLOTS, device="cpu"
    )
    yield engine
    engine.close()


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def worker(
    engine: Engine,
    buffer: MemoryBuffer,
    problems: list[Problem],
    tmp_path: Path,
    adapters: MemoryAdapters | None = None,
    **settings: Any,
) -> RolloutWorker:
    return RolloutWorker(
        "actor-1",
        engine,
        buffer,
        adapters or MemoryAdapters("run"),
        problems,
        settings.pop("sampling", SAMPLING),
        seed=7,
        adapter_directory=tmp_path,
        **settings,
    )


def turns(count: int) -> Any:
    """A stop condition that allows ``count`` turns."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def test_trajectories_are_what_was_sampled_and_scored(
    engine: Engine, problems: list[Problem], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    buffer = RecordingBuffer(ReplayConfig())
    beats: list[dict[str, Any]] = []
    loop = worker(engine, buffer, problems, tmp_path, heartbeat=lambda b: beats.append(dict(b)))
    loop.run(turns(40))
    assert len(buffer.taken) >= 10 * SAMPLING.group_size
    assert {t.problem for t in buffer.taken} == {"short", "long"}
    assert {t.behaviour for t in buffer.taken} == {"policy", "tempered", "uniform", "base"}
    groups = Counter(t.group for t in buffer.taken)
    assert set(groups.values()) == {SAMPLING.group_size}
    by_name = {problem.name: problem for problem in problems}
    for t in buffer.taken[:40]:
        problem = by_name[t.problem]
        prompt = problem.by_id[t.prompt]
        t.check()
        assert (t.actor, t.adapter_version, t.reward_version) == (
            "actor-1",
            0,
            problem.reward.version,
        )
        assert t.action.all()
        tokens = t.tokens.tolist()
        (scores,) = problem.reward.log_reward(prompt, [tokens])
        legal = problem.moves(prompt).stop_legal(tokens)
        np.testing.assert_array_equal(t.stop_legal, legal)
        np.testing.assert_allclose(t.log_reward[legal], scores[legal], rtol=1e-5)
        if t.behaviour in {"policy", "base"}:
            log_q, log_q_stop = naive_log_q(
                tiny_lm.model, problem.policy_ids(prompt), tokens, problem.moves(prompt)
            )
            np.testing.assert_allclose(t.log_q, log_q, atol=1e-3)
            np.testing.assert_allclose(t.log_q_stop, log_q_stop, atol=1e-3)
    last = beats[-1]
    assert last["inserted"] + last["merged"] + last["dropped"] == len(buffer.taken)
    assert last["tokens"] == sum(len(t) for t in buffer.taken)
    assert last["groups_in_outbox"] == 0
    assert last["idle_ratio"] == 0.0
    assert engine.unfinished == 0  # what was in flight at the stop was cancelled


def test_the_share_of_marked_draws_is_in_the_heartbeat(
    engine: Engine, problems: list[Problem], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """Every token of the denominator is below a floor this high."""
    contrastive = build_problem(
        ProblemConfig.model_validate(
            {
                "name": "contrast",
                "kind": "contrastive",
                "prompts": [{"x": " the big"}],
                "alphabet": ALPHABET,
                "stop": ".",
                "max_tokens": 3,
                "contrast": {"prompt": " a small", "token_floor_nats": -1e-3},
            }
        ),
        tiny_lm,
    )
    buffer = RecordingBuffer(ReplayConfig())
    loop = worker(engine, buffer, [problems[0], contrastive], tmp_path)
    loop.run(turns(40))
    assert loop.status()["clipped/contrast"] == 1.0
    assert [key for key in loop.status() if "/" in key] == ["clipped/contrast"]


def test_the_engine_is_kept_full(engine: Engine, problems: list[Problem], tmp_path: Path) -> None:
    loop = worker(engine, RecordingBuffer(ReplayConfig()), problems, tmp_path)
    finished = []
    for _ in range(20):
        before = loop.status()["groups"]
        loop.turn()
        finished.append(loop.status()["groups"] - before)
        assert loop.status()["groups_in_flight"] == SAMPLING.groups_in_flight - finished[-1]
    # One by one, not batch by batch.
    assert 1 in finished


def test_new_adapters_are_taken_up_while_sampling_and_old_ones_go(
    engine: Engine, problems: list[Problem], adapted_models: Adapters, tmp_path: Path
) -> None:
    adapters, buffer = MemoryAdapters("run"), RecordingBuffer(ReplayConfig())
    loop = worker(engine, buffer, problems, tmp_path, adapters)
    directories = [directory for directory, _ in adapted_models.values()]
    in_flight = []
    for version in range(1, 7):
        adapters.publish(version, files_of(directories[version % 2]))
        loop._next_poll = 0.0  # as if POLL_SECONDS had passed
        in_flight.append(loop.status()["groups_in_flight"])
        loop.turn()
        assert loop.status()["version"] == version
        assert len(engine.adapter_versions) <= ADAPTER_SLOTS
        for _ in range(10):
            loop.turn()
    loop.run(turns(10))
    assert any(in_flight)
    assert loop.status()["adapters_loaded"] == 6
    assert len(list(tmp_path.iterdir())) <= ADAPTER_SLOTS
    versions = {t.adapter_version for t in buffer.taken if t.behaviour != "base"}
    assert versions >= {1, 2, 3, 4, 5, 6}
    assert {t.adapter_version for t in buffer.taken if t.behaviour == "base"} == {0}
    models = [model for _, model in adapted_models.values()]
    by_name = {problem.name: problem for problem in problems}
    on_policy = [t for t in buffer.taken if t.behaviour == "policy"]
    assert len(on_policy) > 20
    for t in on_policy[::3]:
        problem = by_name[t.problem]
        prompt = problem.by_id[t.prompt]
        log_q, _ = naive_log_q(
            models[t.adapter_version % 2],
            problem.policy_ids(prompt),
            t.tokens.tolist(),
            problem.moves(prompt),
        )
        np.testing.assert_allclose(t.log_q, log_q, atol=1e-3)


def test_a_full_buffer_stops_sampling_and_loses_nothing(
    engine: Engine, problems: list[Problem], tmp_path: Path
) -> None:
    # The limiter lets 2 × 4 trajectories and one more group in, then waits for the learner.
    buffer = RecordingBuffer(ReplayConfig(slack_trajectories=8))
    loop = worker(engine, buffer, problems, tmp_path)
    while loop.status()["idle_ratio"] == 0.0:
        loop.turn()
    status = loop.status()
    assert status["groups_in_flight"] == 0
    assert status["waiting_for"] != ""
    assert 0.0 < float(status["idle_ratio"]) < 1.0
    outbox = int(status["groups_in_outbox"])
    assert SAMPLING.groups_in_flight <= outbox < 2 * SAMPLING.groups_in_flight
    assert len(buffer.taken) + outbox * SAMPLING.group_size == status["samples"]
    taken = len(buffer.taken)
    assert len(buffer.draw(1, 8).groups) == 1  # the learner comes along
    assert len(buffer.draw(1, 8).groups) == 1
    while len(buffer.taken) == taken:
        loop.turn()
    sampled = [t.group for t in buffer.taken]
    assert sampled == sorted(sampled, key=sampled.index)  # in the order they were finished


def test_an_actor_that_drains_finishes_and_stores_what_it_has_begun(
    engine: Engine, problems: list[Problem], tmp_path: Path
) -> None:
    buffer = RecordingBuffer(ReplayConfig())
    actor = worker(engine, buffer, problems, tmp_path / "drained")
    actor.run(turns(1), hurry=lambda: False)
    assert actor.counts.groups >= SAMPLING.groups_in_flight
    assert engine.unfinished == 0 and actor.status()["groups_in_outbox"] == 0
    assert len(buffer.taken) == actor.counts.samples
    hurried = worker(engine, RecordingBuffer(ReplayConfig()), problems, tmp_path / "hurried")
    hurried.run(turns(1))
    assert hurried.counts.groups < SAMPLING.groups_in_flight and engine.unfinished == 0


def test_a_buffer_that_never_takes_anything_ends_the_actor(
    engine: Engine, problems: list[Problem], tmp_path: Path
) -> None:
    class Shut(RecordingBuffer):
        def insert(self, trajectories: Any) -> InsertReceipt:
            return InsertReceipt(wait="the learner has not drawn yet")

    loop = worker(engine, Shut(ReplayConfig()), problems, tmp_path, deadline_seconds=0.05)
    with pytest.raises(WaitTimeout, match="the learner has not drawn yet"):
        loop.run(lambda: False)
    assert engine.unfinished == 0


class BrokenReward:
    version = 3

    def __init__(self, value: float, extra: int = 0) -> None:
        self.value, self.extra = value, extra

    def log_reward(self, prompt: Any, sequences: Any) -> list[np.ndarray[Any, Any]]:
        return [np.full(len(z) + 1 + self.extra, self.value) for z in sequences]


@pytest.mark.parametrize(
    "reward", [BrokenReward(np.nan), BrokenReward(np.inf), BrokenReward(0.0, 1)]
)
def test_a_broken_reward_names_problem_prompt_and_z(
    engine: Engine, problems: list[Problem], tmp_path: Path, reward: BrokenReward
) -> None:
    broken = dataclasses.replace(problems[0], reward=reward)
    loop = worker(engine, RecordingBuffer(ReplayConfig()), [broken], tmp_path)
    with pytest.raises(RewardError) as caught:
        loop.run(turns(50))
    assert "'short'" in str(caught.value)
    assert any(repr(prompt.id) in str(caught.value) for prompt in broken.prompts)
    assert "Z = [" in str(caught.value)


def test_gold_sequences_are_trajectories(
    engine: Engine, problems: list[Problem], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    buffer = RecordingBuffer(ReplayConfig())
    loop = worker(engine, buffer, problems, tmp_path)
    problem, prompt = problems[0], problems[0].prompts[1]
    gold = [[tiny_lm.one_token(text, "token") for text in z] for z in ([" cat", " ran"], [" dog"])]
    loop.store_gold(problem, prompt, gold)
    loop.turn()
    found = [t for t in buffer.taken if t.behaviour == "gold"]
    assert [t.tokens.tolist() for t in found] == gold
    for t in found:
        t.check()
        assert t.log_q.sum() + t.log_q_stop[-1] == 0.0
        (scores,) = problem.reward.log_reward(prompt, [t.tokens.tolist()])
        assert t.terminal_log_reward == pytest.approx(scores[-1], rel=1e-5)


def test_behaviours_come_by_their_shares(problems: list[Problem]) -> None:
    config = SamplingConfig(
        base_share=0.2, tempered_share=0.3, uniform_share=0.1, uniform_epsilon=0.4
    )
    exploration = Exploration("actor-9", problems, config, seed=1)
    planned = [exploration.next(adapter_version=5) for _ in range(4000)]
    share = Counter(p.request.behaviour.name for p in planned)
    for name, expected in {"base": 0.2, "tempered": 0.3, "uniform": 0.1, "policy": 0.4}.items():
        # Five standard deviations of a binomial count.
        assert abs(share[name] / 4000 - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5
    targets = Counter((p.problem.name, p.prompt.id) for p in planned)
    assert len(targets) == 3
    assert all(abs(count / 4000 - 1 / 3) < 0.04 for count in targets.values())
    temperatures = []
    for p in planned:
        behaviour = p.request.behaviour
        assert p.request.adapter_version == (0 if behaviour.name == "base" else 5)
        assert behaviour.epsilon == (0.4 if behaviour.name == "uniform" else 0.0)
        if behaviour.name == "tempered":
            temperatures.append(behaviour.temperature)
        else:
            assert behaviour.temperature == 1.0
    assert 0.5 <= min(temperatures) < 0.55 and 1.95 < max(temperatures) <= 2.0
    assert len({p.request.id for p in planned}) == len({p.request.seed for p in planned}) == 4000


def test_exploration_is_reproducible_and_differs_between_actors(problems: list[Problem]) -> None:
    def seeds(seed: int) -> list[int | None]:
        exploration = Exploration("actor", problems, SAMPLING, seed)
        return [exploration.next(0).request.seed for _ in range(5)]

    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))


def test_the_follower_waits_for_a_slot(
    engine: Engine, problems: list[Problem], adapted_models: Adapters, tmp_path: Path
) -> None:
    adapters = MemoryAdapters("run")
    follower = AdapterFollower(engine, adapters, tmp_path)
    assert not follower.poll(set())
    directory = adapted_models["first"][0]
    problem, prompt = problems[1], problems[1].prompts[0]
    for version in range(1, ADAPTER_SLOTS + 1):
        adapters.publish(version, files_of(directory))
        assert follower.poll({1, 2, 3})
        engine.submit(
            SampleRequest(
                str(version),
                problem.policy_ids(prompt),
                problem.moves(prompt),
                2,
                adapter_version=version,
                seed=0,
            )
        )
    adapters.publish(9, files_of(directory))
    assert not follower.poll({1, 2, 3})
    assert follower.version == ADAPTER_SLOTS
    run(engine)
    assert follower.poll(set())
    assert follower.version == 9
    assert engine.adapter_versions == (ADAPTER_SLOTS, 9)
    assert not follower.poll(set())


def test_an_adapter_that_cannot_be_served_is_an_error(
    engine: Engine, adapted_models: Adapters, tmp_path: Path
) -> None:
    adapters = MemoryAdapters("run")
    files = files_of(adapted_models["first"][0])
    adapters.publish(1, {name: f for name, f in files.items() if name != "adapter_config.json"})
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        AdapterFollower(engine, adapters, tmp_path).poll(set())


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_outbox_pauses_between_attempts_and_keeps_order() -> None:
    class Gate(RecordingBuffer):
        reason: str | None = "memory"
        attempts = 0

        def insert(self, trajectories: Any) -> InsertReceipt:
            self.attempts += 1
            if self.reason == "unreachable":
                raise StorageUnreachable("Redis does not answer.", "Start it.")
            if self.reason is not None:
                return InsertReceipt(wait=self.reason)
            self.taken += trajectories
            return InsertReceipt(inserted=len(trajectories))

    clock, buffer = FakeClock(), Gate(ReplayConfig())
    outbox = Outbox(buffer, capacity_groups=2, deadline_seconds=60.0, clock=clock)
    outbox.put(["a"])  # type: ignore[list-item]
    outbox.put(["b", "c"])  # type: ignore[list-item]
    assert outbox.full
    outbox.flush()
    outbox.flush()  # within the pause: no second attempt
    assert buffer.attempts == 1
    assert outbox.reason == "memory" and outbox.pause_seconds > 0
    buffer.reason = "unreachable"
    clock.now += 1.0
    outbox.flush()
    assert buffer.attempts == 2 and outbox.reason is not None and "Redis" in outbox.reason
    buffer.reason = None
    clock.now += 1.0
    outbox.flush()
    assert buffer.taken == ["a", "b", "c"]
    assert (len(outbox), outbox.reason, outbox.counts.inserted) == (0, None, 3)
    # Progress resets the deadline.
    buffer.reason = "memory"
    outbox.put(["d"])  # type: ignore[list-item]
    clock.now += 1000.0
    outbox.flush()
    clock.now += 61.0
    with pytest.raises(WaitTimeout, match="memory"):
        outbox.flush()
