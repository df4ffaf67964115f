"""The pool's state machine, without Ray and without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pool import (
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    QUARANTINE_AFTER_FAILED_STARTS,
    ActorPool,
    Plan,
)

LONG = 120.0


def test_starts_what_is_missing_once() -> None:
    pool = ActorPool(2)
    assert pool.plan(0.0) == Plan(start=("actor-1", "actor-2"))
    assert pool.plan(0.0) == Plan()
    assert pool.alive == ("actor-1", "actor-2")
    assert pool.restarts == 0


def test_a_dead_actor_is_replaced_after_a_pause_under_a_new_id() -> None:
    pool = ActorPool(2)
    pool.plan(0.0)
    pool.died("actor-1", LONG, "killed by signal 9")
    assert pool.plan(LONG) == Plan()
    later = LONG + FIRST_BACKOFF_SECONDS
    assert pool.plan(later) == Plan(start=("actor-3",))
    assert pool.alive == ("actor-2", "actor-3")
    assert (pool.deaths, pool.restarts) == (1, 1)


def test_backoff_doubles_up_to_the_cap_while_actors_fail_to_start() -> None:
    pool = ActorPool(1)
    pool.plan(0.0)
    now, pauses = 0.0, []
    for death in range(QUARANTINE_AFTER_FAILED_STARTS - 1):
        pool.died(pool.alive[0], now, "no memory")
        pause = 0.0
        while not pool.plan(now + pause).start:
            pause += FIRST_BACKOFF_SECONDS / 2
        pauses.append(pause)
        now += pause
        assert pauses[-1] == min(FIRST_BACKOFF_SECONDS * 2**death, LONGEST_BACKOFF_SECONDS)
    assert pool.quarantine is None


def test_quarantine_after_failed_starts_names_the_cause_and_is_lifted_by_scaling() -> None:
    pool = ActorPool(1)
    now = 0.0
    for _ in range(QUARANTINE_AFTER_FAILED_STARTS):
        now += LONGEST_BACKOFF_SECONDS
        (actor,) = pool.plan(now).start
        pool.died(actor, now, "out of memory")
    assert pool.quarantine is not None and "out of memory" in pool.quarantine
    assert pool.plan(now + 10 * LONGEST_BACKOFF_SECONDS) == Plan()
    pool.scale(1)
    assert pool.plan(now).start != ()


def test_actors_killed_at_work_are_replaced_for_ever_after_the_shortest_pause() -> None:
    pool = ActorPool(1)
    now = 0.0
    for _ in range(3 * QUARANTINE_AFTER_FAILED_STARTS):
        now += FIRST_BACKOFF_SECONDS
        (actor,) = pool.plan(now).start
        pool.died(actor, now, "killed", worked=True)
    assert pool.quarantine is None
    assert pool.deaths == 3 * QUARANTINE_AFTER_FAILED_STARTS
    assert pool.restarts == pool.deaths - 1


def test_a_hopeless_death_stops_at_once() -> None:
    pool = ActorPool(3)
    pool.plan(0.0)
    pool.died("actor-2", LONG, "no such model", hopeless=True)
    assert pool.quarantine == "no such model"
    assert pool.plan(10 * LONG) == Plan()


def test_scaling_down_stops_the_youngest_and_is_no_death() -> None:
    pool = ActorPool(3)
    pool.plan(0.0)
    pool.scale(1)
    assert pool.plan(1.0) == Plan(stop=("actor-2", "actor-3"))
    assert pool.plan(1.0) == Plan()
    assert pool.stopping == ("actor-2", "actor-3")
    pool.ended("actor-2")
    pool.died("actor-3", 2.0, "killed while stopping")
    assert pool.alive == ("actor-1",)
    assert (pool.deaths, pool.restarts) == (0, 0)
    pool.scale(2)
    assert pool.plan(3.0) == Plan(start=("actor-4",))
    assert pool.restarts == 0


def test_a_dead_actor_that_is_not_wanted_any_more_is_no_restart_later() -> None:
    pool = ActorPool(2)
    pool.plan(0.0)
    pool.died("actor-1", LONG, "killed")
    pool.scale(1)
    assert pool.plan(2 * LONG) == Plan()
    pool.scale(2)
    assert pool.plan(2 * LONG).start == ("actor-3",)
    assert pool.restarts == 0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        ActorPool(1).scale(-1)


@given(
    st.lists(
        st.tuples(st.sampled_from(["die", "end", "scale", "wait"]), st.integers(0, 5)), max_size=40
    )
)
def test_whatever_happens_the_pool_converges_to_the_desired_number(
    history: list[tuple[str, int]],
) -> None:
    pool, now, seen = ActorPool(2), 0.0, set[str]()
    for what, number in history:
        now += number
        if what == "scale":
            pool.scale(number)
        elif what == "die" and pool.alive:
            pool.died(pool.alive[number % len(pool.alive)], now, "killed")
        elif what == "end" and pool.stopping:
            pool.ended(pool.stopping[number % len(pool.stopping)])
        plan = pool.plan(now)
        assert not seen & set(plan.start)  # ids are never used twice
        seen |= set(plan.start)
        assert pool.restarts <= pool.deaths
    for actor in pool.stopping:
        pool.ended(actor)
    pool.scale(pool.desired)  # lifts a quarantine
    pool.plan(now + LONGEST_BACKOFF_SECONDS)
    assert len([a for a in pool.alive if a not in pool.stopping]) == pool.desired


def test_all_of_a_large_pool_killed_at_once_are_replaced() -> None:
    pool = ActorPool(3 * QUARANTINE_AFTER_FAILED_STARTS)
    for actor in pool.plan(0.0).start:
        pool.died(actor, 1.0, "killed", worked=True)
    assert pool.quarantine is None
    assert len(pool.plan(1.0 + FIRST_BACKOFF_SECONDS).start) == pool.desired
