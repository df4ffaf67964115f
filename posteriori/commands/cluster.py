"""Ray for the length of a run: this machine's own, or the cluster that RAY_ADDRESS names.

On a cluster the learner's place is reserved before any rollout actor starts, so that actors cannot take
the last GPU it needs, and stays reserved while it is restarted.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posteriori.config import RunConfig
from posteriori.errors import UserError
from posteriori.freed_memory import computing
from posteriori.placement import Asked, Room, asked, check_room

log = logging.getLogger(__name__)

LOGICAL_CPUS = 64
"""On one machine actors and learner share its cores; Ray is told of more, so that it places them all."""
RESERVATION_SECONDS = 120.0
"""The room was there a moment ago; only another run can have taken it."""
POLL_SECONDS = 2.0
START_ATTEMPTS = 4
STARTS_LATE = "timed out during startup"
"""Of Ray's error: it gives a node 30 seconds, which cannot be set; on a busy machine torch's import alone takes them.
What had started of the node ends with this process."""

Nodes = Sequence[dict[str, Any]]


@contextmanager
def cluster(config: RunConfig) -> Iterator[Any]:
    """Ray with room for the run; yields the placement group of the learner, a place for each process.

    Raises:
        UserError: the cluster cannot be reached, lets anyone in, or has too little room.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    with connected():
        nodes = _alive(ray.nodes())
        if os.environ.get("RAY_ADDRESS"):
            refuse_open_cluster(nodes, os.environ.get("RAY_AUTH_MODE", ""))
            refuse_lonely_redis(nodes, config)
        wanted = _wait_for_room(config)
        learner = wanted[0]
        bundle = {"CPU": learner.room.cpus} | ({"GPU": g} if (g := learner.room.gpus) else {})
        group = placement_group(
            [bundle] * config.learner.processes, strategy="PACK", name=f"learner of {config.run}"
        )
        if not group.wait(RESERVATION_SECONDS):
            raise UserError(
                f"The place of the learner ({learner.room}) was not free within {RESERVATION_SECONDS:g} s.",
                "Another run holds it: stop that one (`ray list placement-groups`), or add nodes.",
            )
        try:
            yield group
        finally:
            remove_placement_group(group)


def learner_options(group: Any, threads: int) -> dict[str, Any]:
    """Ray options of an actor that takes the first of the reserved places."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = group.bundle_specs[0]
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0),
        "runtime_env": computing(threads),
    }


def check_shared_directory(group: Any, directory: Path) -> None:
    """Refuse a run directory that the learner's node does not see: its checkpoints would be lost there.

    Raises:
        UserError: the learner's node has no such directory.
    """
    import ray

    def sees(path: str) -> tuple[bool, str]:
        return os.path.isfile(path), ray.util.get_node_ip_address()

    options = learner_options(group, threads=1) | {"num_cpus": 0, "num_gpus": 0}
    marker = str((directory / "run.yaml").resolve())
    seen, node = ray.get(ray.remote(**options)(sees).remote(marker))
    if not seen:
        raise UserError(
            f"The learner's node {node} does not see the run's directory {directory.resolve()}.",
            "Put output_directory (or --runs) on storage that all nodes share, at the same path.",
        )


def refuse_open_cluster(nodes: Nodes, auth_mode: str) -> None:
    """Refuse a cluster that others can reach and that asks nobody who they are.

    Raises:
        UserError: a node has an address beyond loopback, and Ray's token authentication is off.
    """
    reachable = [node for node in nodes if not _is_loopback(str(node["NodeManagerAddress"]))]
    if reachable and auth_mode.lower() != "token":
        raise UserError(
            f"The Ray cluster at {reachable[0]['NodeManagerAddress']} lets anyone who reaches its ports run "
            "programs.",
            "Start every node with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN "
            "(`ray get-auth-token --generate`), and submit with both.",
        )


def refuse_lonely_redis(nodes: Nodes, config: RunConfig) -> None:
    """Refuse the embedded Redis, a socket of one machine, where the run spans several.

    Raises:
        UserError: there are several machines and no Redis that all of them reach.
    """
    machines = {str(node["NodeManagerAddress"]) for node in nodes}
    if config.replay.redis_url == "embedded" and len(machines) > 1:
        raise UserError(
            f"The embedded Redis serves one machine, and the cluster has {len(machines)}.",
            "Set replay.redis_url to `environment` and POSTERIORI_REDIS_URL on every node, or to "
            "the address of a server.",
        )


@contextmanager
def connected() -> Iterator[None]:
    """Ray: this machine's own for the length of the block, or the cluster that RAY_ADDRESS names.

    Raises:
        UserError: the cluster does not answer.
    """
    import ray
    from ray._private import auto_init_hook, ray_constants

    # A router of Ray Serve outlives the service by seconds; what it asks then would start another Ray.
    auto_init_hook.enable_auto_connect = False
    # "local", not nothing: with nothing Ray joins whatever cluster was started last on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    resources: dict[str, Any] = {}
    if address == "local":
        resources = {"num_cpus": LOGICAL_CPUS, "include_dashboard": False}
        # Then nothing of Ray listens beyond loopback. It reads this when it is imported, which may have been.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **resources)
            break
        except ConnectionError as cause:
            raise UserError(
                f"No Ray cluster answers at {address}.",
                "Check RAY_ADDRESS, or unset it to run on this machine.",
            ) from cause
        # A bare Exception, by its words alone told from others.
        except Exception as cause:
            if STARTS_LATE not in str(cause):
                raise
            if attempt == START_ATTEMPTS:
                raise UserError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts: {cause}",
                    "Other programs keep it busy: try again when they have ended.",
                ) from cause
            log.warning("Ray did not start within 30 seconds; it is started again.")
    try:
        yield
    finally:
        ray.shutdown()


def _wait_for_room(config: RunConfig) -> list[Asked]:
    """What the run takes, once the cluster has that; raises UserError."""
    import ray
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + config.placement.wait_seconds
    hinted = False
    while True:
        rooms = [_room(node) for node in _alive(ray.nodes())]
        wanted = asked(config, sum(room.gpus for room in rooms))
        try:
            check_room(wanted, rooms)
        except UserError:
            if time.monotonic() >= deadline:
                raise
        else:
            if hinted:
                request_resources(
                    bundles=[]
                )  # from here on the processes themselves are the demand
            return wanted
        if not hinted:
            bundles = [{"CPU": item.room.cpus, "GPU": item.room.gpus} for item in wanted]
            request_resources(bundles=[{k: v for k, v in b.items() if v} for b in bundles])
            hinted = True
        time.sleep(POLL_SECONDS)


def _alive(nodes: Nodes) -> list[dict[str, Any]]:
    return [node for node in nodes if node["Alive"]]


def _room(node: dict[str, Any]) -> Room:
    resources = node["Resources"]
    return Room(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
