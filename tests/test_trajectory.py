"""The wire codec: exact round trip, and no bytes that pass for a trajectory when they are not."""

from __future__ import annotations

import contextlib
import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posteriori.errors import CorruptPayload
from posteriori.trajectory import Trajectory, decode, encode


def trajectory(n: int, seed: int = 0) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(
        problem="p",
        prompt="0",
        group="g",
        actor="actor-1",
        behaviour="policy",
        adapter_version=3,
        reward_version=0,
        tokens=rng.integers(0, 1000, n).astype(np.int32),
        action=np.ones(n, dtype=np.bool_),
        log_q=-rng.random(n).astype(np.float32),
        log_q_stop=-rng.random(n + 1).astype(np.float32),
        log_reward=-rng.random(n + 1).astype(np.float32),
        stop_legal=np.ones(n + 1, dtype=np.bool_),
    )


@given(st.integers(0, 300), st.integers(0, 2**31))
def test_round_trip_is_exact(n: int, seed: int) -> None:
    before = trajectory(n, seed)
    after = decode(encode(before))
    for field in dataclasses.fields(Trajectory):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))
    assert after.digest == before.digest


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(CorruptPayload):
        decode(payload)


@given(st.data())
def test_truncated_or_changed_bytes_never_crash(data: st.DataObject) -> None:
    payload = bytearray(encode(trajectory(5)))
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))]
    else:
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptPayload):
        decode(bytes(payload))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"log_q": np.full(5, np.nan, np.float32)}, "actor-1.*NaN"),
        ({"log_reward": np.full(6, -np.inf, np.float32)}, "actor-1.*log R"),
        (
            {"log_q_stop": np.zeros(5, np.float32)},
            r"actor-1.*log_q_stop has shape \(5,\), expected \(6,\)",
        ),
        ({"stop_legal": np.zeros(6, np.bool_)}, "actor-1.*stopping is illegal"),
    ],
)
def test_a_poisoned_trajectory_names_its_producer(change: dict, message: str) -> None:
    with pytest.raises(CorruptPayload, match=message):
        decode(encode(dataclasses.replace(trajectory(5), **change)))


def test_another_wire_version_is_refused() -> None:
    fields = msgpack.unpackb(encode(trajectory(2)))
    fields[0] = 99
    with pytest.raises(CorruptPayload, match="wire version 99"):
        decode(msgpack.packb(fields))
