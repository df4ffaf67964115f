"""What dead runs left on a Redis that several runs share: found, measured, removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import redis

from replay.connection import storage_errors
from replay.scripts import load_script

LIVE_SECONDS = 600.0
"""A component silent for this long is dead; an engine may take minutes to start after its first beat."""
BATCH_KEYS = 512
"""Deleted at once while the server serves nobody else: a millisecond."""
REWARD_SUFFIX = ".reward"
"""Of the store of a run's reward adapters (posteriori.fitted_reward.store_name)."""
_KEY = re.compile(rb"posteriori:\{([^}]*)\}:")


@dataclass(frozen=True)
class Remains:
    """The keys of one run.

    Attributes:
        run: its name.
        keys: how many.
        size_bytes: of memory, as the server estimates it.
        live: a driver holds it, or a component has beaten within LIVE_SECONDS.
        silent_seconds: since its last heartbeat, by the server's clock; None: none is known.
        known: its registry is here. A run that keeps trajectories on several servers has it on one of them:
            on the others nothing tells whether it lives.
    """

    run: str
    keys: int
    size_bytes: int
    live: bool
    silent_seconds: float | None
    known: bool


def survey(client: redis.Redis) -> list[Remains]:
    """All runs that have keys on this server, by name.

    Raises:
        StorageUnreachable: it does not answer.
    """
    found = _keys_by_run(client)
    remains = []
    for run in sorted(found):
        size = 0
        for keys in _batches(found[run]):
            with storage_errors(client):
                pipeline = client.pipeline(transaction=False)
                for key in keys:
                    pipeline.memory_usage(key, samples=5)
                size += sum(n or 0 for n in pipeline.execute())
        _, live, silent, known = _collect(client, run, [])
        remains.append(Remains(run, len(found[run]), size, live, silent, known))
    return remains


def remove(client: redis.Redis, run: str) -> int:
    """Remove a dead run's keys; return how many. A run that lives keeps them all.

    Every batch looks again whether the run lives, atomically with its deletion, and stops there.

    Raises:
        StorageUnreachable: the server does not answer.
    """
    removed = 0
    keys = _keys_by_run(client).get(run, [])
    # The registry, which tells whether it lives, goes last.
    keys.sort(key=lambda key: b":registry:" in key)
    for some in _batches(keys):
        count, live, _, _ = _collect(client, run, some)
        removed += count
        if live:
            break
    return removed


def _batches(keys: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), BATCH_KEYS):
        yield keys[start : start + BATCH_KEYS]


def _keys_by_run(client: redis.Redis) -> dict[str, list[bytes]]:
    found: dict[str, set[bytes]] = {}
    with storage_errors(client):
        for key in cast(Iterator[bytes], client.scan_iter(match="posteriori:{*", count=1000)):
            matched = _KEY.match(key)
            if matched is not None:
                run = matched.group(1).decode().removesuffix(REWARD_SUFFIX)
                found.setdefault(run, set()).add(key)
    return {run: sorted(keys) for run, keys in found.items()}


def _collect(
    client: redis.Redis, run: str, keys: list[bytes]
) -> tuple[int, bool, float | None, bool]:
    namespace = f"posteriori:{{{run}}}:registry"
    script = load_script(client, "collect")
    own = [key for key in keys if key.startswith(f"posteriori:{{{run}}}:".encode())]
    with storage_errors(client):
        deleted, live, silent, known = script(keys=[namespace, *own], args=[LIVE_SECONDS])
        if not live:
            # The reward's adapters may lie in another slot of a cluster: not in this script.
            for key in set(keys) - set(own):
                deleted += client.unlink(key)
    seconds = float(silent)
    return int(deleted), bool(live), None if seconds < 0 else seconds, bool(known)
