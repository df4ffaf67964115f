"""The controller against random loads and against plants with a right answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.autoscale import HIGH_LEAD, LOW_LEAD, MEMORY_SETTLES, Autoscaler, Load
from posteriori.config import AutoscaleConfig, parse
from posteriori.errors import UserError

SLACK = 1000.0


def scaler(**changes: Any) -> Autoscaler:
    values: dict[str, Any] = {"max_actors": 64, "hold_seconds": 10, "settle_seconds": 60}
    return Autoscaler(AutoscaleConfig(**(values | changes)), max_staleness_versions=8)


def plant(rate: float, demand: float, seconds: float, start: int, **changes: Any) -> list[int]:
    """Numbers of actors over time where each brings ``rate`` trajectories a second and the learner takes ``demand``."""
    controller = scaler(**changes)
    desired, lead, history = start, 0.5 * SLACK, []
    for tick in range(int(seconds / 5)):
        decision = controller.decide(Load(5.0 * tick, desired, desired, lead / SLACK))
        desired = decision.desired
        # The limiter holds the lead between its bounds: whoever is ahead waits.
        lead = min(max(lead + 5 * (desired * rate - demand), -SLACK), SLACK)
        history.append(desired)
    return history


@settings(max_examples=30)
@given(
    rate=st.floats(1.0, 50.0),
    enough=st.floats(0.3, 60.0),
    start=st.integers(1, 64),
)
@example(
    rate=1.0, enough=49.926, start=51
)  # the right number takes long to make up for a wrong one
def test_a_steady_load_is_met_and_then_left_alone(rate: float, enough: float, start: int) -> None:
    memory = MEMORY_SETTLES * 60
    history = plant(rate, rate * enough, 3 * memory, start)
    settled = history[len(history) // 2 :]
    changes = sum(a != b for a, b in itertools.pairwise(settled))
    # In the half hour a bound gives way now and then, and what lies beyond is tried anew.
    assert changes <= 16
    # Most of the time there is about enough, and not twice as much and one more.
    good = [n for n in settled if 0.8 * enough - 1 <= n <= 2 * enough + 1]
    assert len(good) >= 0.75 * len(settled)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 40),
            st.one_of(st.none(), st.floats(-1, 1)),
            st.one_of(st.none(), st.floats(0, 20)),
            st.one_of(st.none(), st.integers(0, 80)),
        ),
        max_size=60,
    ),
    st.integers(1, 8),
    st.integers(0, 56),
)
# Who asks for the number that is wanted already changes nothing: the times go on.
@example([(0.0, 0.0, None, None), (30.0, 0.0, None, 1), (30.0, 0.0, None, None)], 1, 7)
def test_whatever_happens_bounds_and_times_hold(
    events: list[tuple[float, float | None, float | None, int | None]], least: int, extra: int
) -> None:
    most = least + extra
    controller = scaler(min_actors=least, max_actors=most)
    now, desired, last_change = 0.0, least, None
    for wait, lead, age, by_hand in events:
        now += wait
        before = desired
        if by_hand is not None:
            desired = by_hand
        decision = controller.decide(Load(now, desired, desired, lead, age))
        assert decision.desired == 0 if desired == 0 else least <= decision.desired <= most
        clamped = min(max(desired, least), most) if desired else 0
        if decision.desired != clamped:
            assert last_change is None or now - last_change >= 60
            assert lead is not None
            assert not (LOW_LEAD <= lead <= HIGH_LEAD) or (age or 0) > 4
        if decision.desired != before:
            last_change = now
        desired = decision.desired


def test_a_signal_has_to_last() -> None:
    controller = scaler(settle_seconds=0)
    leads = [0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0]
    decided = [controller.decide(Load(6.0 * k, 4, 4, lead)).desired for k, lead in enumerate(leads)]
    assert decided == [4] * 7
    lasting = [controller.decide(Load(60.0 + 6 * k, 4, 4, 0.0)).desired for k in range(4)]
    assert 8 in lasting


def test_actors_that_are_not_there_yet_are_waited_for() -> None:
    controller = scaler(settle_seconds=0, hold_seconds=0)
    controller.decide(Load(0, 4, 2, 0.0))
    assert controller.decide(Load(1, 4, 2, 0.0)).desired == 4
    assert controller.decide(Load(2, 4, 4, 0.0)).desired == 8


def test_old_trajectories_ask_for_more_actors() -> None:
    controller = scaler(settle_seconds=0, hold_seconds=0)
    controller.decide(Load(0, 4, 4, 0.5, 5.0))
    decision = controller.decide(Load(1, 4, 4, 0.5, 5.0))
    assert decision.desired == 8 and "5.0 versions old" in decision.reason


def test_a_spent_budget_ends_it_and_zero_by_hand_pauses() -> None:
    controller = scaler(gpu_hours=2.0)
    assert not controller.decide(Load(0, 4, 4, 0.5, None, 1.99)).spent
    decision = controller.decide(Load(1, 4, 4, 0.5, None, 2.0))
    assert (decision.desired, decision.spent) == (0, True)
    paused = scaler()
    paused.decide(Load(0, 4, 4, 0.0))
    assert [paused.decide(Load(200.0 * k, 0, 0, -1.0)).desired for k in range(1, 4)] == [0, 0, 0]
    assert paused.decide(Load(900, 3, 0, -1.0)).desired == 3


@pytest.mark.parametrize(
    "section, message",
    [
        ({"max_actors": 2, "min_actors": 3}, "min_actors is 3 and max_actors 2"),
        ({"max_actors": 4, "min_actors": 2}, r"sampling\.actors is 1, outside autoscale's 2 … 4"),
        ({"max_actors": 4, "gpu_hours": 1}, "gpus_per_actor is 0"),
        ({"max_actors": 4, "staleness_versions": 9}, r"more than replay\.max_staleness_versions"),
        ({}, r"autoscale\.max_actors"),
        ({"max_actor": 4}, "max_actor.*`max_actors`"),
    ],
)
def test_mistakes_in_the_run_file(section: dict[str, Any], message: str) -> None:
    problem = {"name": "t", "kind": "tempered", "prompts": [{"x": "hi"}], "max_tokens": 3}
    with pytest.raises(UserError, match=message):
        parse({"run": "a", "problems": [problem], "autoscale": section})
