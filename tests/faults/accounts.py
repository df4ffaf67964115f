"""Is everything there that was acknowledged, once and whole?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from posteriori.trajectory import decode
from replay.admission import INDEX_BYTES_PER_TRAJECTORY, trajectory_id

VERSION_STEP = 2**32
"""As in common.lua: versions and arrivals share the score of the age index."""


@dataclass(frozen=True)
class Account:
    """What a buffer holds against what its producers were told.

    Attributes:
        acknowledged: trajectories that producers noted as taken, with repetitions.
        stored: different ones in the buffer now.
        missing: acknowledged ones the buffer does not have, or has of an older version only.
    """

    acknowledged: int
    stored: int
    missing: list[str]


def acknowledged(notes: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """(id, adapter version or -1) of every trajectory that was acknowledged."""
    return [
        (id_, version)
        for note in notes
        if note["what"] == "insert" and note["state"] == "end"
        for id_, version in note["acknowledged"]
    ]


def check_whole(client: redis.Redis, run: str) -> dict[str, int]:
    """Every stored trajectory is readable, is where its id says, and stands in every index, once.

    Returns:
        The version each id is indexed by.
    """
    space = f"posteriori:{{{run}}}:replay"
    payloads: dict[bytes, bytes] = client.hgetall(f"{space}:payloads")  # type: ignore[assignment]
    ages = {
        id_: int(score) // VERSION_STEP
        for id_, score in client.zrange(f"{space}:age", 0, -1, withscores=True)
    }  # type: ignore[union-attr]
    assert set(payloads) == set(ages) == set(client.hkeys(f"{space}:meta"))  # type: ignore[arg-type]
    by_prompt: list[bytes] = []
    racing: list[bytes] = []
    for prompt in client.zrange(f"{space}:prompts", 0, -1):  # type: ignore[union-attr]
        by_prompt += client.zrange(f"{space}:age:{prompt.decode()}", 0, -1)  # type: ignore[arg-type]
        racing += client.zrange(f"{space}:race:{prompt.decode()}", 0, -1)  # type: ignore[arg-type]
    assert sorted(by_prompt) == sorted(racing) == sorted(payloads)
    for id_, payload in payloads.items():
        assert trajectory_id(decode(payload)) == id_.decode()
    held = sum(len(payload) + INDEX_BYTES_PER_TRAJECTORY for payload in payloads.values())
    assert int(client.hget(f"{space}:counters", "held_bytes") or 0) == held  # type: ignore[arg-type]
    return {id_.decode(): version for id_, version in ages.items()}


def settle(client: redis.Redis, run: str, acks: list[tuple[str, int]]) -> Account:
    """Hold acknowledgements against a buffer that never had to evict; checks that it is whole."""
    versions = check_whole(client, run)
    counters = client.hgetall(f"posteriori:{{{run}}}:replay:counters")  # type: ignore[misc]
    assert int(counters.get(b"evicted", 0)) == 0, "evictions would hide losses"  # type: ignore[union-attr]
    # A newer duplicate takes the place of an older one, never the other way round.
    missing = [id_ for id_, version in acks if versions.get(id_, -2) < version]
    received = sum(int(counters.get(kind, 0)) for kind in (b"inserted", b"merged", b"dropped"))  # type: ignore[union-attr]
    assert received >= len(acks), "the buffer counts fewer than it acknowledged"
    return Account(len(acks), len(versions), missing)


def check_versions(notes: Iterable[dict[str, Any]]) -> dict[int, str]:
    """No adapter version was published twice; returns each one's checksum."""
    published: dict[int, str] = {}
    for note in notes:
        if note["what"] == "publish" and note["state"] == "end":
            assert note["version"] not in published, f"version {note['version']} was used twice"
            published[note["version"]] = note["checksum"]
    return published
