"""Trajectories that are not what they claim to be: refused with their producer named, and the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

import replay.redis_buffer
from actors.outbox import QUARANTINE_AFTER_REJECTIONS, Outbox
from learner.intake import Intake
from posteriori.errors import CorruptPayload, ProducerQuarantined
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory, encode
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer
from tests.learner.helpers import random_strings, run_config, tiny_problem, trajectory

pytestmark = pytest.mark.faults

NEWEST_VERSION = 4


def nan_log_q(good: Trajectory) -> bytes:
    return encode(replace(good, log_q=np.full(len(good), np.nan, np.float32)))


def nan_reward(good: Trajectory) -> bytes:
    return encode(replace(good, log_reward=np.full(len(good) + 1, np.nan, np.float32)))


def wrong_shape(good: Trajectory) -> bytes:
    return encode(replace(good, log_q_stop=good.log_q_stop[:-1]))


def foreign_wire_version(good: Trajectory) -> bytes:
    packed: bytes = msgpack.packb([99, *msgpack.unpackb(encode(good))[1:]], use_bin_type=True)
    return packed


def rubbish(good: Trajectory) -> bytes:
    return bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8))


def cut_off(good: Trajectory) -> bytes:
    return encode(good)[:-5]


def unpublished_adapter(good: Trajectory) -> bytes:
    return encode(replace(good, adapter_version=NEWEST_VERSION + 1, behaviour="policy"))


def illegal_token(good: Trajectory) -> bytes:
    return encode(replace(good, tokens=np.full(len(good), 1, np.int32)))


POISONS: list[Callable[[Trajectory], bytes]] = [
    nan_log_q, nan_reward, wrong_shape, foreign_wire_version, rubbish, cut_off, unpublished_adapter,
    illegal_token,
]  # fmt: skip


class Desk:
    """The learner's side of a run: a real buffer, and the intake that draws from it."""

    def __init__(self, server: EmbeddedServer, lm: LanguageModel) -> None:
        self.problem: Problem = tiny_problem(lm, contexts=(" the",))
        config = run_config(lm, prompts_per_step=1)
        self.buffer = RedisBuffer(
            connect(server.url), "r", config.replay.model_copy(update={"recent_share": 1.0}), seed=0
        )
        self.events: list[tuple[str, str]] = []
        self.intake = Intake(
            config,
            {self.problem.name: self.problem},
            self.buffer,
            threading.Event(),
            lambda kind, message: self.events.append((kind, message)),
            lambda: NEWEST_VERSION,
        )

    def strings(self, count: int, seed: int, actor: str) -> list[Trajectory]:
        prompt = self.problem.prompts[0]
        return [
            trajectory(self.problem, prompt, z, actor=actor)
            for z in random_strings(self.problem.moves(prompt), count, seed)
        ]

    def insert_unchecked(self, good: Trajectory, payload: bytes) -> None:
        """What a producer writes whose own checks are broken, or which has none."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay.redis_buffer, "checked_payload", lambda _: payload)
            self.buffer.insert([good])


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_the_producer_is_named_and_three_in_a_row_shut_it_out(
    poison: Callable[[Trajectory], bytes], server: EmbeddedServer, tiny_lm: LanguageModel
) -> None:
    """May be lost: the poisoned trajectories, and draws made in vain on their account."""
    desk = Desk(server, tiny_lm)
    desk.buffer.insert(desk.strings(24, 1, "actor-good"))
    bad = [t for t in desk.strings(200, 2, "actor-bad") if len(t) == 4][
        :QUARANTINE_AFTER_REJECTIONS
    ]
    for good in bad:  # the newest: a draw by recency meets them at once
        desk.insert_unchecked(good, poison(good))
    before = desk.buffer.stats().trajectories

    for _ in range(4):
        groups = desk.intake.draw()
        assert groups and all(t.actor == "actor-good" for group in groups for t in group)
    rejected = [message for kind, message in desk.events if kind == "rejected"]
    assert len(rejected) == desk.intake.rejected == len(bad)
    assert all("from producer actor-bad" in message for message in rejected)
    assert desk.buffer.stats().trajectories == before - len(bad)

    (shut_out,) = [message for kind, message in desk.events if kind == "quarantined"]
    assert "actor-bad" in shut_out and "3 trajectories in a row" in shut_out
    with pytest.raises(ProducerQuarantined, match="actor-bad"):
        desk.buffer.insert(desk.strings(2, 5, "actor-bad"))
    assert desk.buffer.insert(desk.strings(2, 6, "actor-good")).wait is None


def test_one_now_and_then_is_no_reason_to_shut_anyone_out(
    server: EmbeddedServer, tiny_lm: LanguageModel
) -> None:
    """A sound trajectory in between clears the record."""
    desk = Desk(server, tiny_lm)
    desk.buffer.insert(desk.strings(16, 1, "actor-good"))
    for round_ in range(2 * QUARANTINE_AFTER_REJECTIONS):
        (good,) = [t for t in desk.strings(200, 10 + round_, "actor-odd") if len(t) == 4][:1]
        desk.insert_unchecked(good, nan_log_q(good))
        desk.intake.draw()
        # Sound ones of the same producer are seen in the next draw.
        desk.buffer.insert(desk.strings(8, 100 + round_, "actor-odd"))
        desk.intake.draw()
    assert desk.intake.rejected >= QUARANTINE_AFTER_REJECTIONS
    assert not [kind for kind, _ in desk.events if kind == "quarantined"]


def test_an_actor_drops_malformed_groups_and_ends_after_three_in_a_row(
    server: EmbeddedServer, tiny_lm: LanguageModel
) -> None:
    """May be lost: the malformed groups, whole. The pool starts another actor in its place."""
    desk = Desk(server, tiny_lm)
    told: list[tuple[str, str]] = []
    outbox = Outbox(desk.buffer, 4, 60.0, on_event=lambda kind, what: told.append((kind, what)))
    good = desk.strings(4, 1, "actor-1")
    broken = [replace(good[0], log_q=np.full(len(good[0]), np.nan, np.float32)), *good[1:]]
    for group in (broken, broken, good, broken, broken):
        outbox.put(group)
    outbox.flush()
    assert outbox.counts.rejected == 4 * 4
    assert desk.buffer.stats().trajectories == len({t.digest for t in good})
    assert [kind for kind, _ in told] == ["rejected"] * 4
    assert all("producer actor-1: log q is NaN" in what for _, what in told)
    outbox.put(broken)
    with pytest.raises(CorruptPayload, match="3 groups in a row were malformed"):
        outbox.flush()
    assert told[-1][0] == "quarantined"


def test_an_actor_that_the_learner_shut_out_ends(
    server: EmbeddedServer, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """And the pool counts that as a death that another may be spared."""
    from actors.ray_pool import _PASSING

    desk = Desk(server, tiny_lm)
    desk.buffer.quarantine("actor-1", "three were NaN")
    outbox = Outbox(desk.buffer, 4, 60.0)
    outbox.put(desk.strings(4, 1, "actor-1"))
    with pytest.raises(ProducerQuarantined, match="three were NaN") as caught:
        outbox.flush()
    assert isinstance(caught.value, _PASSING)
