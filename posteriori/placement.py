"""What a run asks of a cluster, and whether the cluster has it: pure arithmetic, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posteriori.config import RunConfig
from posteriori.errors import UserError

TOLERANCE = 1e-6
"""Ray counts in units of 1e-4; sums of thirds are not exact."""


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs, of a node or asked for together on one node."""

    cpus: float
    gpus: float = 0.0

    def holds(self, other: Room) -> bool:
        """Is there room for another one in here?"""
        return self.cpus + TOLERANCE >= other.cpus and self.gpus + TOLERANCE >= other.gpus

    def __sub__(self, other: Room) -> Room:
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)

    def __str__(self) -> str:
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs" if self.gpus else f"{self.cpus:g} CPUs"


@dataclass(frozen=True)
class Asked:
    """One process of the run."""

    what: str
    room: Room


def actor_room(config: RunConfig, on_gpu: bool) -> Room:
    """What one rollout actor takes."""
    cpus = config.placement.actor_cpus
    return Room(
        float(config.sampling.threads) if cpus is None else cpus,
        config.sampling.gpus_per_actor if on_gpu else 0.0,
    )


def gpu_actors(config: RunConfig, actors: int) -> int:
    """How many of so many rollout actors take a GPU."""
    if config.sampling.gpus_per_actor == 0:
        return 0
    most = config.placement.gpu_actors
    return actors if most is None else min(actors, most)


def asked(config: RunConfig, gpus_in_cluster: float) -> list[Asked]:
    """The learner's processes, then the rollout actors the run starts with.

    Args:
        config: the run.
        gpus_in_cluster: a learner that may take a GPU or not takes one that actors leave.
    """
    actors = config.sampling.actors
    on_gpu = gpu_actors(config, actors)
    processes = config.learner.processes
    learner_gpus = config.placement.learner_gpus
    if learner_gpus is None:
        left = gpus_in_cluster - on_gpu * config.sampling.gpus_per_actor
        wanted = config.learner.device.startswith("cuda")
        welcome = config.learner.device == "auto" and left >= processes
        learner_gpus = int(wanted or welcome)
    learner_room = Room(config.placement.learner_cpus, float(learner_gpus))
    return [
        Asked("the learner", learner_room),
        *(
            Asked(f"learner process {number} of {processes}", learner_room)
            for number in range(2, processes + 1)
        ),
        *(
            Asked(
                f"rollout actor {number + 1} of {actors}",
                actor_room(config, on_gpu=number < on_gpu),
            )
            for number in range(actors)
        ),
    ]


def check_room(wanted: Sequence[Asked], nodes: Sequence[Room]) -> None:
    """Is there room for all of it at once?

    Raises:
        UserError: the cluster has too few GPUs or CPUs in all, or none of its nodes has room for a
            process beside the others (largest first, each on the fullest node that holds it).
    """
    for unit in ("gpus", "cpus"):
        need = sum(getattr(item.room, unit) for item in wanted)
        have = sum(getattr(node, unit) for node in nodes)
        if need > have + TOLERANCE:
            name = unit[:-1].upper() + "s"
            raise UserError(
                f"The run asked for {need:g} {name}, the cluster has {have:g}.",
                _cheaper(unit),
            )
    free = list(nodes)
    for item in sorted(wanted, key=lambda item: (item.room.gpus, item.room.cpus), reverse=True):
        fitting = [index for index, node in enumerate(free) if node.holds(item.room)]
        if not fitting:
            raise UserError(
                f"No node has room for {item.what}, which takes {item.room} together; nodes: "
                f"{', '.join(str(node) for node in nodes) or 'none'}, before the others took theirs.",
                _cheaper("gpus" if item.room.gpus else "cpus"),
            )
        index = min(fitting, key=lambda index: (free[index].gpus, free[index].cpus))
        free[index] = free[index] - item.room


def _cheaper(unit: str) -> str:
    if unit == "gpus":
        return (
            "Lower sampling.actors or sampling.gpus_per_actor (a fraction shares a GPU), let further actors "
            "sample on the CPU with placement.gpu_actors, or add nodes (placement.wait_seconds waits for them)."
        )
    return (
        "Lower sampling.actors or placement.actor_cpus, or add nodes (placement.wait_seconds waits "
        "for them)."
    )
