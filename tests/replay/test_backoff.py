"""Polling ends with the thing, at the deadline with the reason, or when told to stop."""

from __future__ import annotations

import pytest

from posteriori.errors import WaitTimeout
from replay.backoff import NotYet, wait_for


def test_it_returns_what_it_waited_for() -> None:
    answers = iter([NotYet("empty"), NotYet("empty"), 0])
    assert wait_for("a number", lambda: next(answers), deadline_seconds=60) == 0


def test_it_names_what_and_the_last_reason() -> None:
    reasons = iter(["early reason", *["last reason"] * 1000])
    with pytest.raises(WaitTimeout, match=r"Waited 0\.05 s for trajectories: last reason\."):
        wait_for("trajectories", lambda: NotYet(next(reasons)), deadline_seconds=0.05)


def test_it_polls_once_even_without_time() -> None:
    assert wait_for("a word", lambda: "there", deadline_seconds=0) == "there"


def test_it_stops_when_told() -> None:
    polls = 0

    def poll() -> NotYet:
        nonlocal polls
        polls += 1
        return NotYet("never")

    assert wait_for("nothing", poll, deadline_seconds=600, stop=lambda: polls == 3) is None
    assert polls == 3


def test_errors_of_the_poll_pass_through() -> None:
    def poll() -> NotYet:
        raise KeyError("first cause")

    with pytest.raises(KeyError, match="first cause"):
        wait_for("nothing", poll, deadline_seconds=600)


def test_pauses_grow_with_jitter_and_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    wait_for("nothing", lambda: NotYet("never"), 600, stop=lambda: len(pauses) == 200)
    assert max(pauses) <= 0.5 < 0.51
    assert pauses[0] <= 0.01 < pauses[20]
    assert len(set(pauses[20:])) > 150
