"""The other processes of a learner that has several, as Ray actors that its first process starts.

They take places of the same placement group as the first one. Each holds the base model and waits for
orders (``learner/team.py``). Ray is asked all the while whether one has ended: its own error is the first
cause of the broken exchange that the others then see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from posteriori import config as run_file
from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.freed_memory import computing, return_freed_memory

if TYPE_CHECKING:
    from learner.team import Team

START_SECONDS = 300.0
"""To find a place and to start a process; loading the model comes after."""

CAUSE_SECONDS = 10.0
"""A lost connection is noticed before Ray says why the process ended."""


class Peer:
    """What runs inside such a process.

    Args:
        config: the resolved run file, as plain data.
        rank: from 1 on.
    """

    def __init__(self, config: dict[str, Any], rank: int) -> None:
        self._config: RunConfig = run_file.parse(config)
        self._rank = rank

    def where(self) -> tuple[str, int]:
        """Address of this node, and the process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    def run(self, host: str, port: int) -> None:
        """Load the base model and compute what rank 0 at ``host`` orders, until it sends this home.

        Raises:
            UserError: the model cannot be loaded, a group cannot be computed, or rank 0 has ended.
        """
        import torch

        from learner.layers import load_for_learning, run_layers_as_told
        from learner.log_z import LogZTable
        from learner.team import Team
        from posteriori.device import resolve_device
        from posteriori.policy import Policy
        from posteriori.problems import build_problems

        return_freed_memory()
        settings = self._config.learner
        use_interface_of(host)
        torch.set_num_threads(settings.threads)
        device = resolve_device(settings.device)
        team = Team(self._rank, settings.processes, host, port)
        team.join(device)
        try:
            lm = load_for_learning(self._config, device)
            problems = build_problems(self._config, lm)
            policy = Policy(lm, settings)  # rank 0's weights take the place of these
            if settings.shard_base:
                team.shard(policy, device)
            run_layers_as_told(policy, settings)
            table = LogZTable.for_run(problems, settings)
            team.serve(policy, {problem.name: problem for problem in problems}, settings, table)
        finally:
            team.close()


PeerActor = ray.remote(max_restarts=0, max_task_retries=0)(Peer)


class Peers:
    """Starts the processes of ranks 1 … ``processes`` − 1, from inside the learner's own Ray actor.

    Args:
        config: the resolved run file.

    Attributes:
        host: address of this process for all of them: loopback where all are on one node.

    Raises:
        UserError: there is no room for all of them.
    """

    def __init__(self, config: RunConfig) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        count = config.learner.processes - 1
        group = ray.util.get_current_placement_group()
        if group is not None:
            mine = group.bundle_specs[0]
        else:
            mine = ray.get_runtime_context().get_assigned_resources()
        room: dict[str, Any] = {"num_cpus": mine.get("CPU", 0), "num_gpus": mine.get("GPU", 0)}
        room["runtime_env"] = computing(config.learner.threads)
        self._actors = []
        for rank in range(1, count + 1):
            if group is not None:
                room["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, rank)
            plain = config.model_dump(mode="json")
            self._actors.append(PeerActor.options(**room).remote(plain, rank))
        places = [actor.where.remote() for actor in self._actors]
        ready, _ = ray.wait(places, num_returns=count, timeout=START_SECONDS)
        if len(ready) < count:
            self.close()
            raise UserError(
                f"{len(ready)} of {count} further learner processes found a place within {START_SECONDS:g} s.",
                f"Each takes {room['num_gpus']:g} GPUs and {room['num_cpus']:g} CPUs: lower "
                "learner.processes or add nodes.",
            )
        found = ray.get(places)
        self.pids = [pid for _, pid in found]
        here = ray.util.get_node_ip_address()
        self.host = "127.0.0.1" if all(node == here for node, _ in found) else here
        self._ends: dict[Any, int] = {}
        self._cause: str | None = None

    def run(self, port: int) -> None:
        """Have all of them join rank 0 at ``port``."""
        self._ends = {
            actor.run.remote(self.host, port): rank for rank, actor in enumerate(self._actors, 1)
        }

    def first_cause(self) -> str | None:
        """Why the first of them ended, if Ray says so within ``CAUSE_SECONDS``."""
        deadline = time.monotonic() + CAUSE_SECONDS
        while self._ends and self._cause is None:
            ended, _ = ray.wait(list(self._ends), timeout=max(0.0, deadline - time.monotonic()))
            if not ended:
                break
            rank = self._ends.pop(ended[0])
            try:
                ray.get(ended[0])
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
                self._cause = f"learner process {rank + 1} died: {line.rstrip('.')}"
        return self._cause

    def close(self) -> None:
        """End them all."""
        for actor in self._actors:
            ray.kill(actor)


@contextmanager
def gathered(config: RunConfig, on_event: Callable[..., object]) -> Iterator[Team | None]:
    """The team of a run's learner, this process being rank 0; None where it has one process alone.

    Args:
        config: the resolved run file.
        on_event: called with kind, message and fields once all have joined.

    Raises:
        UserError: there is no room for all processes, or one of them ended.
    """
    if config.learner.processes == 1:
        yield None
        return
    from learner.team import Team
    from posteriori.device import resolve_device

    peers = Peers(config)
    try:
        use_interface_of(peers.host)
        team = Team(0, config.learner.processes, peers.host, 0, peers.first_cause)
        peers.run(team.port)
        team.join(resolve_device(config.learner.device))
        pids = {f"pid_{number}": pid for number, pid in enumerate(peers.pids, 2)}
        on_event("team", f"The learner has {config.learner.processes} processes.", **pids)
        try:
            yield team
        finally:
            team.close()
    finally:
        peers.close()


def use_interface_of(host: str) -> None:
    """Have gloo connect over loopback where all processes are on one node."""
    if host == "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
