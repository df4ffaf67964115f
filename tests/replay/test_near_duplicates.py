"""Near duplicates are looked for by the actor: the same ones as by comparing all tokens with all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import redis

from replay import near_duplicates
from replay.memory_buffer import MemoryBuffer, edit_distance
from replay.near_duplicates import NearDuplicates, edit_distances
from replay.redis_buffer import RedisBuffer
from tests.replay.build import config, tokens_of, trajectory


def test_distances_are_those_of_the_table() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 4, 12, dtype=np.int32)
    others = [rng.integers(0, 4, rng.integers(0, 20), dtype=np.int32) for _ in range(200)]
    expected = np.array([edit_distance(one, other) for other in others], dtype=float)
    np.testing.assert_array_equal(edit_distances(one, others, np.full(200, np.inf)), expected)
    limits = rng.uniform(0, 14, 200)
    within = np.where(expected < limits, expected, np.inf)
    np.testing.assert_array_equal(edit_distances(one, others, limits), within)
    empty = one[:0]
    assert edit_distances(empty, [one, empty], np.full(2, np.inf)).tolist() == [12, 0]
    assert edit_distances(one, [], np.empty(0)).tolist() == []


def test_tokens_are_fetched_once_and_forgotten_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = {f"id{k}": np.full(100, k, dtype=np.int32) for k in range(20)}
    fetched: list[str] = []

    def fetch(ids: Sequence[str]) -> dict[str, np.ndarray]:
        fetched.extend(ids)
        return {id_: store[id_] for id_ in ids if id_ in store}

    near = NearDuplicates(0.1, fetch)
    offered = [("new", np.full(100, 3, dtype=np.int32))]
    assert near.find(offered, list(store)) == [["id3"]]
    assert near.find(offered, [*store, "evicted"]) == [["id3"]]
    assert sorted(fetched) == sorted([*store, "evicted"])
    monkeypatch.setattr(near_duplicates, "REMEMBERED_BYTES", 4000)
    near.find(offered, list(store))
    assert len(near._known) == 4


def test_those_offered_before_count_too() -> None:
    near = NearDuplicates(0.2, lambda ids: {})
    base = np.arange(10, dtype=np.int32)
    first, second, other = base.copy(), base.copy(), base + 100
    first[0], second[1] = 50, 60
    offered = [("a", base), ("b", first), ("c", second), ("d", other), ("b", first)]
    assert near.find(offered, []) == [[], ["a"], ["a", "b"], [], ["a", "c"]]


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_two_kinds_of_buffer_keep_the_same_whatever_comes(
    client: redis.Redis, tolerance: float
) -> None:
    """Old versions that arrive late, repeats within a batch, both bounds at work."""
    rng = np.random.default_rng(3)
    settings = config(
        near_duplicate_tolerance=tolerance, capacity_per_prompt=12, capacity_bytes=2**16
    )
    memory, server = MemoryBuffer(settings), RedisBuffer(client, "test", settings)
    for step in range(60):
        batch = [
            trajectory(
                rng.integers(0, 3, rng.integers(1, 7)).tolist() * int(rng.choice([1, 8])),
                float(rng.normal()),
                prompt=f"x{rng.integers(5)}",
                version=max(0, step - int(rng.integers(0, 6))),
                reward_version=int(rng.integers(0, 2)),
                actor="a" * int(rng.integers(1, 9)),
            )
            for _ in range(int(rng.integers(1, 20)))
        ]
        assert server.insert(batch) == memory.insert(batch)
        memory.set_learner_version(step)
        server.set_learner_version(step)
        assert server.stats() == memory.stats()
    stats = server.stats()
    assert stats.evicted > 100 and stats.merged > 20 and (stats.dropped > 20) == (tolerance > 0)
    everything = memory.draw(stats.prompts, 400).groups
    for group in server.draw(stats.prompts, 400).groups:
        [twin] = [g for g in everything if g[0].prompt == group[0].prompt]
        assert set(tokens_of(group)) == set(tokens_of(twin))
