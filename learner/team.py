"""Several processes compute the gradient of one learner step.

Rank 0 is the learner: it draws, keeps adapter, optimiser and log Z table, publishes and writes
checkpoints. Each other rank holds the base model and nothing that a step leaves behind. A step goes

    rank 0 → all   its adapter's weights; to each rank the groups that are its own
    each rank      the gradient of its groups, divided by the trajectories of the whole step
    all → rank 0   the sum of the gradients; of every trajectory what metrics need

which moves the bytes of an all-reduce and leaves one copy of everything that must not be lost: any
number of processes resumes any checkpoint. Only rank 0 draws, so no trajectory is used twice. Groups are
never split, so that what a group's members have in common, such as its mean D, is that of one process.

Orders go through the rendezvous store, where a wait of hours costs nothing and ends when rank 0 does;
tensors through torch.distributed (gloo; NCCL for those on GPUs). Trajectories travel in their own wire
format, never pickled.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import msgpack
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learner.gradients import StepLosses, accumulate
from learner.log_z import LogZTable
from learner.sharding import idle_pass, shard_layers, watch_passes
from posteriori.config import LearnerConfig
from posteriori.errors import UserError
from posteriori.groups import prepare
from posteriori.policy import Policy
from posteriori.problems import Problem
from posteriori.trajectory import Trajectory, decode, encode

EXCHANGE_SECONDS = 900.0
"""Longest wait for a slower process, inside a step or while it loads the model."""

LOOK_SECONDS = 10.0
"""A waiting process looks this often whether the others are still there."""

STEP, PASS, END = "step", "pass", "end"


class Team:
    """One process of a learner that has several; see the module.

    Args:
        rank: 0 is the learner itself.
        size: processes in all.
        host: address of rank 0 that all reach.
        port: there; on rank 0 it may be 0, any free one, see :attr:`port`.
        first_cause: why a process ended, if that is known; asked when an exchange fails.

    Attributes:
        port: of rank 0.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        host: str,
        port: int,
        first_cause: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.rank, self.size = rank, size
        self._first_cause = first_cause
        self._orders = 0
        self._sharded: Policy | None = None
        self._in_step = False
        self._known = torch.empty(0, dtype=torch.bool)
        listening = None
        if rank == 0:
            # Bound to this address alone: the store itself would listen on all of them.
            listening = socket.create_server((host, port))
            port = listening.getsockname()[1]
        self.port = port
        with self._exchange("joining"):
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                host,
                port,
                size,
                is_master=rank == 0,
                timeout=timedelta(seconds=EXCHANGE_SECONDS),
                wait_for_workers=False,
                master_listen_fd=None if listening is None else listening.detach(),
            )

    def join(self, device: str = "cpu") -> None:
        """Wait until all processes are here, their policies on ``device``.

        Raises:
            UserError: one did not come within ``EXCHANGE_SECONDS``, or this process is in a group already.
        """
        if dist.is_initialized():
            raise UserError(
                "This process belongs to a torch.distributed group already (a vLLM engine makes one), "
                "so it cannot be one of a learner's processes.",
                "Run the learner in a process without an engine, as `posteriori train` does.",
            )
        here = [f"here/{rank}" for rank in range(self.size)]
        with self._exchange("joining"):
            self._store.set(here[self.rank], "yes")
            for key in here:
                self._wait(key, EXCHANGE_SECONDS)
            dist.init_process_group(
                "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
                store=dist.PrefixStore("group", self._store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=EXCHANGE_SECONDS),
            )

    def shard(self, policy: Policy, device: str) -> None:
        """Leave this process its part of the policy's frozen layers; on every rank, after joining.

        From then on each pass through the policy is one of all processes: those of rank 0 outside a
        step, such as evaluations, are announced, and the others join in.
        """
        shard_layers(policy, device)
        self._sharded = policy
        if self.rank == 0:
            watch_passes(policy, self._announce_pass)

    # -------------------------------------------------------------------------------- rank 0

    def accumulate(
        self,
        policy: Policy,
        drawn: Sequence[Sequence[Trajectory]],
        problems: Mapping[str, Problem],
        settings: LearnerConfig,
        temperature: float,
        log_z: LogZTable | None,
    ) -> StepLosses:
        """Rank 0: as :func:`learner.gradients.accumulate` of all groups drawn, computed by all.

        Raises:
            UserError: a process ended on the way; names its first cause.
        """
        total = sum(map(len, drawn))
        shares = split_groups(drawn, self.size, together=log_z is not None)
        self._order(STEP)
        with self._exchange("step"):
            for rank in range(1, self.size):
                message = {
                    "temperature": temperature,
                    "total": total,
                    "groups": [[encode(t) for t in drawn[g]] for g in shares[rank]],
                }
                _send(msgpack.packb(message), rank)
            self._share_state(policy, log_z)
        mine = self._compute(
            policy, [drawn[g] for g in shares[0]], problems, settings, temperature, log_z, total
        )
        with self._exchange("step"):
            self._add_up(policy, log_z)
            parts = [_renumbered(mine, shares[0])]
            for rank in range(1, self.size):
                theirs = [drawn[g] for g in shares[rank]]
                parts.append(_renumbered(_receive_losses(rank, theirs), shares[rank]))
        return _joined(parts)

    def close(self) -> None:
        """Rank 0: send the others home. Every rank: leave the group."""
        if dist.is_initialized():
            gone = [f"gone/{rank}" for rank in range(self.size)]
            # Whoever has ended already takes no leave.
            with suppress(UserError, RuntimeError):
                self._store.set(gone[self.rank], "yes")
                if self.rank == 0:
                    self._order(END)
                    self._store.wait(gone, timedelta(seconds=LOOK_SECONDS))
            dist.destroy_process_group()

    def _announce_pass(self) -> None:
        if not self._in_step:
            self._order(PASS)

    def _order(self, kind: str) -> None:
        with self._exchange("order"):
            self._store.set(f"order/{self._orders}", kind)
            # All have read an order once they have carried out the one behind it.
            if self._orders > 1:
                self._store.delete_key(f"order/{self._orders - 2}")
        self._orders += 1

    # --------------------------------------------------------------------------------- others

    def serve(
        self,
        policy: Policy,
        problems: Mapping[str, Problem],
        settings: LearnerConfig,
        log_z: LogZTable | None,
    ) -> None:
        """Other ranks: compute what rank 0 orders until it sends them home.

        Raises:
            UserError: rank 0 has ended, or a group cannot be computed.
        """
        while True:
            order = self._next_order()
            if order == END:
                return
            if order == PASS:
                idle_pass(policy, gradients=False)
                continue
            with self._exchange("step"):
                message = msgpack.unpackb(_receive(0))
                self._share_state(policy, log_z)
            drawn = [[decode(raw) for raw in group] for group in message["groups"]]
            for parameter in policy.parameters():
                parameter.grad = None
            if log_z is not None:
                log_z.values.grad = None
            losses = self._compute(
                policy,
                drawn,
                problems,
                settings,
                message["temperature"],
                log_z,
                message["total"],
            )
            with self._exchange("step"):
                self._add_up(policy, log_z)
                _send_losses(losses, drawn)

    def _next_order(self) -> str:
        key = f"order/{self._orders}"
        with self._exchange("waiting for an order"):
            self._wait(key, math.inf)
            order: str = self._store.get(key).decode()
        self._orders += 1
        return order

    def _wait(self, key: str, seconds: float) -> None:
        """Until somebody sets ``key``; a lost store or process ends the wait."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._store.wait([key], timedelta(seconds=LOOK_SECONDS))
            except dist.DistStoreError as nothing_yet:
                if self._first_cause() is not None or time.monotonic() > deadline:
                    raise nothing_yet

    # ------------------------------------------------------------------------------ all ranks

    def _compute(
        self,
        policy: Policy,
        drawn: Sequence[Sequence[Trajectory]],
        problems: Mapping[str, Problem],
        settings: LearnerConfig,
        temperature: float,
        log_z: LogZTable | None,
        total: int,
    ) -> StepLosses:
        self._in_step = True
        try:
            return accumulate(
                policy,
                [prepare(group, problems[group[0].problem]) for group in drawn],
                problems,
                settings,
                temperature,
                log_z,
                trajectories_of_step=total,
                lockstep=None if self._sharded is None else self,
            )
        finally:
            self._in_step = False

    def idle(self, passes: int, gradients: bool) -> None:
        """Join the passes of those that have more of them; see :class:`learner.gradients.Lockstep`."""
        assert self._sharded is not None
        with self._exchange("step"):
            most = torch.tensor([passes])
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        for _ in range(int(most) - passes):
            idle_pass(self._sharded, gradients)

    def _share_state(self, policy: Policy, log_z: LogZTable | None) -> None:
        """Everybody's adapter and log Z table become those of rank 0."""
        parameters = policy.parameters()
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        dist.broadcast(flat, src=0)
        if self.rank != 0:
            for parameter, part in _parts(parameters, flat):
                parameter.data.copy_(part)
        if log_z is not None:
            dist.broadcast(log_z.values.data, src=0)
            self._known = ~log_z.values.data.isnan()

    def _add_up(self, policy: Policy, log_z: LogZTable | None) -> None:
        """Rank 0's gradients become the sum of all, and its log Z table learns the new entries."""
        parameters = policy.parameters()
        flat = torch.cat([_gradient(parameter).flatten() for parameter in parameters])
        dist.reduce(flat, dst=0)
        if self.rank == 0:
            for parameter, part in _parts(parameters, flat):
                parameter.grad = part.clone()
        if log_z is not None:
            # An X is of one rank alone in a step, so a sum over ranks is that rank's number.
            seen = ~log_z.values.data.isnan()
            new = seen & ~self._known
            entries = log_z.values.data.where(new, 0.0)
            table = torch.stack([entries, new.double(), _gradient(log_z.values)])
            dist.reduce(table, dst=0)
            if self.rank == 0:
                log_z.values.data.copy_(table[0].where(table[1] > 0, log_z.values.data))
                log_z.values.grad = table[2].clone()

    @contextmanager
    def _exchange(self, what: str) -> Iterator[None]:
        """Name the first cause when another process has gone.

        Raises:
            UserError: it has.
        """
        try:
            yield
        except RuntimeError as cause:  # torch.distributed raises nothing narrower for a lost peer
            known = self._first_cause()
            raise UserError(
                f"The learner's {self.size} processes cannot go on ({what}): {known or _line(cause)}.",
                "Mend the cause, then continue with --resume; nothing of the step was kept.",
            ) from cause


def split_groups(
    drawn: Sequence[Sequence[Trajectory]], size: int, together: bool
) -> list[list[int]]:
    """Indices of the groups of each rank, about as many tokens each.

    Args:
        drawn: groups of a step.
        size: ranks.
        together: all groups of an X to one rank, which then knows its entry of the log Z table.
    """
    bundles: dict[tuple[str, str] | int, list[int]] = {}
    for g, group in enumerate(drawn):
        bundles.setdefault((group[0].problem, group[0].prompt) if together else g, []).append(g)
    weighed = [
        (sum(len(t) + 1 for g in members for t in drawn[g]), members)
        for members in bundles.values()
    ]
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for weight, members in sorted(weighed, key=lambda item: -item[0]):
        rank = loads.index(min(loads))
        shares[rank] += members
        loads[rank] += weight
    return [sorted(share) for share in shares]


def _renumbered(losses: StepLosses, share: Sequence[int]) -> StepLosses:
    """With the step's numbers of the groups in place of the rank's own."""
    numbers = np.asarray(share, dtype=np.int64)
    return StepLosses(
        losses.trajectories,
        numbers[losses.group],
        losses.loss,
        losses.mean,
        losses.spread,
        losses.terminal,
        losses.tokens,
    )


def _joined(parts: Sequence[StepLosses]) -> StepLosses:
    return StepLosses(
        [t for part in parts for t in part.trajectories],
        np.concatenate([part.group for part in parts]),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.spread for part in parts]),
        np.concatenate([part.terminal for part in parts]),
        sum(part.tokens for part in parts),
    )


def _send_losses(losses: StepLosses, drawn: Sequence[Sequence[Trajectory]]) -> None:
    """To rank 0, with each trajectory's place in the message it came in."""
    place = {id(t): k for k, t in enumerate(t for group in drawn for t in group)}
    order = np.array([place[id(t)] for t in losses.trajectories], dtype=np.float64)
    columns = [order, losses.group, losses.loss, losses.mean, losses.spread, losses.terminal]
    table = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    dist.send(torch.tensor([float(losses.tokens)], dtype=torch.float64), 0)
    if len(order):
        dist.send(torch.from_numpy(table).contiguous(), 0)


def _receive_losses(rank: int, drawn: Sequence[Sequence[Trajectory]]) -> StepLosses:
    trajectories = [t for group in drawn for t in group]
    tokens = torch.empty(1, dtype=torch.float64)
    dist.recv(tokens, rank)
    table = torch.empty((6, len(trajectories)), dtype=torch.float64)
    if trajectories:
        dist.recv(table, rank)
    order, group, loss, mean, spread, terminal = table.numpy()
    return StepLosses(
        [trajectories[int(k)] for k in order],
        group.astype(np.int64),
        loss,
        mean,
        spread,
        terminal,
        int(tokens),
    )


def _send(data: bytes, rank: int) -> None:
    dist.send(torch.tensor([len(data)]), rank)
    dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank)


def _receive(rank: int) -> bytes:
    size = torch.empty(1, dtype=torch.int64)
    dist.recv(size, rank)
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(data, rank)
    return data.numpy().tobytes()


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _parts(parameters: Sequence[Tensor], flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        yield parameter, flat[start:stop].view_as(parameter)
        start = stop


def _line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
