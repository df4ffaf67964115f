"""Actors and learner never wait for each other at once, whatever the rates and limits."""

from __future__ import annotations

from collections import deque

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from replay.memory_buffer import MemoryBuffer
from replay.redis_buffer import RedisBuffer
from tests.replay.build import config, trajectory

RATES = st.sampled_from([0.01, 0.1, 0.3, 1.0, 1.7, 4.0, 30.0])


@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_one_of_them_can_always_go_on(client: redis.Redis, data: st.DataObject) -> None:
    """Actors with groups of old versions in flight, a learner that publishes, both kinds of buffer.

    The two kinds must give the same answers with the same reasons at every call.
    """
    limits = config(
        samples_per_insert=data.draw(RATES),
        slack_trajectories=data.draw(st.integers(1, 60)),
        max_staleness_versions=data.draw(st.integers(1, 4)),
        capacity_per_prompt=data.draw(st.integers(2, 40)),
        recent_share=0.5,
        prioritised_share=0.25,
    )
    group_size = data.draw(st.integers(1, 20))
    strings = data.draw(st.integers(1, 50))
    step = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20)))
    publish_every_steps = data.draw(st.integers(1, 3))
    client.flushall()
    twins = (MemoryBuffer(limits, seed=0), RedisBuffer(client, "test", limits, seed=0))

    version = steps = sampled = 0
    in_flight = deque([version] * data.draw(st.integers(1, 6)))

    def insert() -> bool:
        nonlocal sampled
        group = [
            trajectory([(sampled + k) % strings], prompt=f"x{sampled % 2}", version=in_flight[0])
            for k in range(group_size)
        ]
        first, second = (buffer.insert(group) for buffer in twins)
        assert first == second
        if first.wait is not None:
            return False
        in_flight.popleft()
        in_flight.append(version)
        sampled += group_size
        return True

    def draw() -> bool:
        nonlocal version, steps
        first, second = (buffer.draw(*step) for buffer in twins)
        assert first.wait == second.wait
        if first.wait is not None:
            return False
        steps += 1
        if steps % publish_every_steps == 0:
            version += 1
            for buffer in twins:
                buffer.set_learner_version(version)
        return True

    # Runs of one side alone, then of the other: each goes until it must wait.
    for actor_turn, calls in data.draw(
        st.lists(st.tuples(st.booleans(), st.integers(1, 25)), min_size=3, max_size=12)
    ):
        this, other = (insert, draw) if actor_turn else (draw, insert)
        for _ in range(calls):
            if not this():
                assert other(), "both wait"
    assert twins[0].stats() == twins[1].stats()


def test_the_bound_holds_on_both_sides(client: redis.Redis) -> None:
    """Greedy sides overshoot the slack by one operation at most."""
    for rate in (0.25, 1.0, 3.0):
        client.flushall()
        limits = config(samples_per_insert=rate, slack_trajectories=50)
        buffer = RedisBuffer(client, "test", limits)
        received = drawn = 0
        for actor_first in (True, False) * 10:
            for _ in range(200):
                if actor_first:
                    receipt = buffer.insert([trajectory([received % 30])] * 8)
                    if receipt.wait is not None:
                        break
                    received += 8
                    assert received - drawn / rate <= 50 + 8
                else:
                    if buffer.draw(1, 8).wait is not None:
                        break
                    drawn += 8
                    assert drawn - received * rate <= 50 + 8
            else:
                raise AssertionError("nobody was ever made to wait")
        assert buffer.stats().drawn == drawn > 0


def test_near_duplicates_need_small_prompts() -> None:
    with pytest.raises(ValidationError, match="capacity_per_prompt <= 512, it is 513"):
        config(near_duplicate_tolerance=0.1, capacity_per_prompt=513)
    assert config(near_duplicate_tolerance=0.1, capacity_per_prompt=512)
    assert config(near_duplicate_tolerance=0.0, capacity_per_prompt=513)
