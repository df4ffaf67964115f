"""What may enter the replay buffer, under which name, as how old and at which charge."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from posteriori.config import ReplayConfig
from posteriori.errors import CorruptPayload, ProducerQuarantined, StorageFull
from posteriori.trajectory import Trajectory, decode, encode

AGELESS_BEHAVIOURS = frozenset({"base", "gold"})
"""These do not follow the policy, so its versions do not age them: their version for staleness,
recency and eviction is the learner's at the time they arrive."""

LARGEST_VERSION = 2**21 - 1
"""Versions and arrivals share one exact double as the score of the age index."""
LARGEST_REWARD_VERSION = 2**32 - 1

INDEX_BYTES_PER_TRAJECTORY = 600
"""Charged beside the payload, as in ``lua/common.lua``; the index was measured to cost 500."""


def trajectory_id(trajectory: Trajectory) -> str:
    """16 characters for (problem, prompt), 32 for those and the tokens."""
    return prompt_key(trajectory.problem, trajectory.prompt) + trajectory.digest


@lru_cache(maxsize=65_536)
def prompt_key(problem: str, prompt: str) -> str:
    """16 hexadecimal characters that stand for a prompt of a problem in the index."""
    return hashlib.blake2b(f"{problem}\0{prompt}".encode(), digest_size=8).hexdigest()


def checked_payload(trajectory: Trajectory) -> bytes:
    """Wire bytes of a trajectory fit for the index.

    Raises:
        CorruptPayload: names the producer and what is wrong.
    """
    trajectory.check()
    if not (
        0 <= trajectory.adapter_version <= LARGEST_VERSION
        and 0 <= trajectory.reward_version <= LARGEST_REWARD_VERSION
    ):
        raise CorruptPayload(
            f"Trajectory of group {trajectory.group} from producer {trajectory.actor}: adapter "
            f"version {trajectory.adapter_version}, reward version {trajectory.reward_version}.",
            f"Versions lie in 0 … {LARGEST_VERSION} and 0 … {LARGEST_REWARD_VERSION}.",
        )
    return encode(trajectory)


def stored_payload(id_: bytes, payload: bytes | None) -> Trajectory:
    """The trajectory stored under an id.

    Raises:
        CorruptPayload: it is gone, cannot be read, or is another one than its id says.
    """
    trajectory = decode(payload or b"")
    if trajectory_id(trajectory).encode() != id_:
        raise CorruptPayload(
            f"Trajectory of group {trajectory.group} from producer {trajectory.actor} is not the one "
            "that was announced.",
            "The trajectory is dropped; check the producer's log.",
        )
    return trajectory


def in_quarantine(producer: str, reason: str) -> ProducerQuarantined:
    """The error for an insert by a producer that nothing more is taken from."""
    return ProducerQuarantined(
        f"The replay buffer takes nothing more from producer {producer}: {reason}.",
        "Look for what is wrong with its machine or its version of posteriori; another actor may "
        "take its place under another name.",
    )


def refuse_oversized(incoming_bytes: int, config: ReplayConfig) -> None:
    """Refuse at once what could never be stored, instead of letting the actor wait for ever.

    Raises:
        StorageFull: one insert is larger than the whole buffer.
    """
    if incoming_bytes > config.capacity_bytes:
        raise StorageFull(
            f"One insert of {incoming_bytes} bytes is more than replay.capacity_bytes "
            f"({config.capacity_bytes}).",
            "Raise replay.capacity_bytes or lower sampling.group_size.",
        )


def indexed_version(trajectory: Trajectory, learner_version: int) -> int:
    """The version that staleness, recency and eviction go by."""
    if trajectory.behaviour in AGELESS_BEHAVIOURS:
        return learner_version
    return trajectory.adapter_version
