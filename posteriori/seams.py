"""The four seams of the service. Each has a contract test that any implementation must pass.

Reward       log R(z₁:ᵢ⊤ | X) at every prefix                    posteriori/rewards.py
Engine       samples groups of Z under a versioned adapter        actors/vllm_engine.py, actors/transformers_engine.py
Buffer       bounded replay of trajectories                       replay/redis_buffer.py, replay/memory_buffer.py
AdapterStore immutable adapter versions                           replay/redis_adapters.py, replay/memory_adapters.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from posteriori.moves import LegalMoves
from posteriori.tools import ToolSpan, action_mask
from posteriori.trajectory import Trajectory

# --------------------------------------------------------------------------------------- reward


@dataclass(frozen=True)
class Prompt:
    """One X of a problem, with what else is known (Y, …).

    Attributes:
        id: unique within the problem.
        fields: template fields such as ``x`` and ``y``, as text.
    """

    id: str
    fields: Mapping[str, str]


@runtime_checkable
class Reward(Protocol):
    """log R(Z⊤ | X), unnormalised, in nats, at temperature 1."""

    @property
    def version(self) -> int:
        """Changes when the same Z would be scored differently (after an M step)."""
        ...

    def log_reward(
        self, prompt: Prompt, sequences: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """Score every prefix of every sequence.

        Args:
            prompt: X.
            sequences: token ids of Z without ⊤, lengths nᵢ.

        Returns:
            One array of shape [nᵢ + 1] each: entry k is log R(z₁:ₖ⊤ | X). Never NaN or +inf; finite
            wherever ⊤ is legal. Values where ⊤ is illegal are ignored.

        Raises:
            RewardError: a value is NaN or +inf, or a factor has the wrong shape.
        """
        ...


# --------------------------------------------------------------------------------------- engine


@dataclass(frozen=True)
class Behaviour:
    """How to sample. At most one of temperature ≠ 1 and epsilon > 0.

    Attributes:
        name: ``policy``, ``tempered``, ``uniform`` or ``base``.
        temperature: divides the masked logits.
        epsilon: with this probability mass a token is drawn uniformly from the legal moves.
    """

    name: str = "policy"
    temperature: float = 1.0
    epsilon: float = 0.0


@dataclass(frozen=True)
class SampleRequest:
    """A group of n samples of Z for one X.

    Attributes:
        id: unique among requests in flight.
        prompt_ids: the policy's prompt.
        moves: legal continuations; their tool, if they have one, is called by the engine.
        n: samples wanted.
        behaviour: how to sample.
        adapter_version: 0 for the base LM, else a version given to ``add_adapter``.
        seed: same seed, version and engine → same samples; None: unseeded.
    """

    id: str
    prompt_ids: Sequence[int]
    moves: LegalMoves
    n: int
    behaviour: Behaviour = field(default_factory=Behaviour)
    adapter_version: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One finished Z.

    Attributes:
        tokens: z₁ … zₙ without ⊤, tool outputs included.
        log_q: log-probability of each token under the behaviour, [n]; 0 in tool outputs.
        log_q_stop: log-probability of ⊤ at each prefix under the behaviour, [n + 1];
            -inf where masked, 0 at ``max_tokens``. Σ log_q + log_q_stop[-1] is log q(Z⊤).
        spans: the tool outputs.
    """

    tokens: list[int]
    log_q: NDArray[np.float32]
    log_q_stop: NDArray[np.float32]
    spans: tuple[ToolSpan, ...] = ()

    @property
    def action(self) -> NDArray[np.bool_]:
        """False inside tool outputs, bool [n]."""
        return action_mask(len(self.tokens), self.spans)

    @property
    def total_log_q(self) -> float:
        """log q(z₁ … zₙ ⊤) in nats under the sampling behaviour."""
        return float(self.log_q.sum(dtype=np.float64) + self.log_q_stop[-1])


@dataclass(frozen=True)
class SampledGroup:
    """A finished request."""

    request: SampleRequest
    samples: list[Sample]


@runtime_checkable
class Engine(Protocol):
    """Samples Z; requests join and leave between steps, adapters may change under requests in flight."""

    def add_adapter(self, version: int, directory: Path) -> None:
        """Load the PEFT directory as ``version`` (> 0). Requests in flight keep their own version.

        Raises:
            UserError: the rank, target modules or files cannot be served.
        """
        ...

    def remove_adapter(self, version: int) -> None:
        """Free a version no request in flight uses."""
        ...

    @property
    def adapter_versions(self) -> tuple[int, ...]:
        """Loaded versions, ascending, without 0."""
        ...

    def submit(self, request: SampleRequest) -> None:
        """Queue a request; it joins the running batch at the next step."""
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a request; unknown ids are ignored."""
        ...

    def step(self) -> list[SampledGroup]:
        """Advance every running sequence by at least one token; return the groups that finished."""
        ...

    @property
    def unfinished(self) -> int:
        """Requests queued or running."""
        ...

    def close(self) -> None:
        """Free the engine's memory; the engine cannot be used afterwards."""
        ...


# --------------------------------------------------------------------------------------- buffer


@dataclass(frozen=True)
class InsertReceipt:
    """What became of the trajectories offered. Counts add up to the number offered when ``wait`` is None.

    Attributes:
        inserted: newly stored.
        merged: exact duplicates of stored ones (the stored one is refreshed to the newer version).
        dropped: worse near-duplicates of stored ones.
        evicted: stored ones that had to go for these.
        wait: None if all were taken; else nothing was taken, and this is the reason to try again later.
    """

    inserted: int = 0
    merged: int = 0
    dropped: int = 0
    evicted: int = 0
    wait: str | None = None


@dataclass(frozen=True)
class Rejection:
    """A trajectory that was refused: its producer (empty where unknown) and what is wrong with it."""

    producer: str
    reason: str


@dataclass(frozen=True)
class Draw:
    """Groups for one learner step: P lists of K trajectories of one prompt each, or a reason to wait.

    ``rejected`` names what could not be read on the way; it is no longer in the buffer.
    """

    groups: list[list[Trajectory]]
    wait: str | None = None
    rejected: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class BufferStats:
    """A snapshot of the buffer's counters.

    ``payload_bytes`` counts what ``capacity_bytes`` bounds: payloads and a fixed charge for the index
    of each trajectory. ``evicted`` includes those dropped because their reward was void.
    """

    trajectories: int
    prompts: int
    payload_bytes: int
    capacity_bytes: int
    inserted: int
    merged: int
    dropped: int
    evicted: int
    drawn: int
    newest_version: int
    learner_version: int
    corrupt: int = 0


@runtime_checkable
class Buffer(Protocol):
    """A bounded replay buffer shared by all actors and the learner of one run. Every call is atomic."""

    def insert(self, trajectories: Sequence[Trajectory]) -> InsertReceipt:
        """Store trajectories, or say why to wait (limiter, memory).

        Raises:
            CorruptPayload: one is malformed; none is stored.
            ProducerQuarantined: nothing more is taken from the producer of one of them.
            StorageUnreachable: the server does not answer.
        """
        ...

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        """Draw ``prompts`` groups of ``per_prompt`` trajectories with the configured mix, or say why to wait.

        Raises:
            StorageUnreachable: the server does not answer.
        """
        ...

    def set_learner_version(self, version: int) -> None:
        """Tell the buffer the learner's newest published version, for the staleness bound."""
        ...

    def discard(self, trajectories: Sequence[Trajectory]) -> int:
        """Remove drawn trajectories that the learner refuses; return how many were still stored.

        They are counted as corrupt, and the limiter forgets that they were drawn.
        """
        ...

    def quarantine(self, producer: str, reason: str) -> None:
        """Take nothing more from a producer (``Trajectory.actor``); what is stored of it stays."""
        ...

    def drop_reward_versions_below(self, version: int) -> int:
        """Remove trajectories whose rewards are void since an M step; return how many."""
        ...

    def stats(self) -> BufferStats:
        """Counters since the run began; they survive a restart."""
        ...


# --------------------------------------------------------------------------------------- adapters


@runtime_checkable
class AdapterStore(Protocol):
    """Immutable adapter versions of one run: a version, once published, never changes and is never reused."""

    def publish(self, version: int, files: Mapping[str, bytes]) -> None:
        """Make a PEFT directory's files available under a new version, atomically.

        Raises:
            UserError: the version exists already or is not greater than the latest.
            StorageFull, StorageUnreachable
        """
        ...

    def latest(self) -> int:
        """Newest version, 0 if none was published."""
        ...

    def versions(self) -> tuple[int, ...]:
        """Stored versions, ascending."""
        ...

    def fetch(self, version: int, parent: Path) -> Path:
        """Write the version's files into a new directory below ``parent`` and return it (cached if there).

        The directory is written under a temporary name and renamed, so it is complete or absent.

        Raises:
            UserError: the version was never published or has been pruned.
            CorruptPayload: the stored bytes do not match their checksum.
        """
        ...

    def pin(self, version: int) -> None:
        """Keep a version (checkpoint, served) whatever ``prune`` says."""
        ...

    def unpin(self, version: int) -> None:
        """Leave a version to ``prune`` again."""
        ...

    def prune(self, keep_last: int) -> tuple[int, ...]:
        """Delete all but pinned and the last ``keep_last`` versions; return what was deleted."""
        ...
