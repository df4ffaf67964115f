"""Training and test items: no item on both sides, whatever its spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posteriori.data import Record, leaks, normalised, refuse_leaks, split
from posteriori.errors import UserError


def test_spelling_does_not_hide_a_leak() -> None:
    assert leaks(["One  Fish ", "two"], ["three", "one fish", "ＴＷＯ", "TWO\n"]) == [
        (1, 0), (2, 1), (3, 1),
    ]  # fmt: skip


def test_a_leak_is_refused_with_both_places() -> None:
    def record(x: str, place: str) -> Record:
        return Record({"x": x}, place)

    training = [record("a b", "train, line 1"), record("c", "train, line 2")]
    refuse_leaks(training, [record("a bc", "test, line 1")], lambda r: r.fields["x"])
    with pytest.raises(
        UserError, match=r"1 of 2 test items .* test, line 2 is train, line 1: 'A  b'"
    ):
        refuse_leaks(
            training,
            [record("d", "test, line 1"), record("A  b", "test, line 2")],
            lambda r: r.fields["x"],
        )


@given(
    st.lists(st.sampled_from(["a", "A", " a", "b", "c", "d", "e e", "e  E"]), min_size=5),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_split_keeps_everything_and_leaks_nothing(items: list[str], test: int, seed: int) -> None:
    numbered = list(enumerate(items))
    try:
        training, held_out = split(numbered, test, seed, lambda item: item[1])
    except UserError:
        assert len({normalised(item) for item in items}) <= test
        return
    assert sorted(training + held_out) == numbered
    assert len(held_out) >= test
    assert not leaks([text for _, text in training], [text for _, text in held_out])
    assert split(numbered, test, seed, lambda item: item[1]) == (training, held_out)
