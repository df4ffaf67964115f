"""One sampled Z with everything the learner needs, and its bytes on the wire.

Arrays are raw little-endian buffers inside msgpack: no pickle ever comes off the wire, and a
4 kB trajectory costs about 10 µs to encode or decode.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from posteriori.errors import CorruptPayload

WIRE_VERSION = 1

Float32Array = NDArray[np.float32]

_CHECKED = ("action", "log_q", "log_q_stop", "log_reward", "stop_legal")


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """z₁ … zₙ ⊤ for one prompt X of one problem.

    Index i of the per-prefix arrays is the prefix z₁ … zᵢ, i = 0 … n.

    Attributes:
        problem: name of the problem.
        prompt: id of X within the problem.
        group: id shared by the trajectories sampled together for one X.
        actor: id of the producer, named when a trajectory is rejected.
        behaviour: how it was sampled: ``policy``, ``tempered``, ``uniform``, ``base`` or ``gold``.
        adapter_version: adapter that was in force (0: base LM without an adapter).
        reward_version: version of the reward that scored it.
        tokens: z₁ … zₙ without ⊤, tool outputs included verbatim, int32 [n].
        action: False inside tool outputs, which carry no policy log-probability, bool [n].
        log_q: log-probability of each token under the behaviour that sampled it, float32 [n]; 0 in tool outputs.
        log_q_stop: log-probability of ⊤ at every prefix under that behaviour, float32 [n + 1];
            -inf where ⊤ was masked, 0 where it was forced.
        log_reward: log R(z₁:ᵢ⊤) at temperature 1, float32 [n + 1]; finite where ``stop_legal``.
        stop_legal: prefixes at which ⊤ is legal, bool [n + 1].
    """

    problem: str
    prompt: str
    group: str
    actor: str
    behaviour: str
    adapter_version: int
    reward_version: int
    tokens: NDArray[np.int32]
    action: NDArray[np.bool_]
    log_q: Float32Array
    log_q_stop: Float32Array
    log_reward: Float32Array
    stop_legal: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def terminal_log_reward(self) -> float:
        """log R(z⊤), untempered, in nats."""
        return float(self.log_reward[-1])

    @property
    def digest(self) -> str:
        """Identity of (problem, prompt, tokens): equal digests are exact duplicates."""
        head = f"{self.problem}\0{self.prompt}\0".encode()
        return hashlib.blake2b(head + self.tokens.tobytes(), digest_size=16).hexdigest()

    def check(self) -> None:
        """Verify shapes and finiteness.

        Raises:
            CorruptPayload: names the producer and the first thing that is wrong.
        """
        n = len(self.tokens)
        lengths = (n, n, n + 1, n + 1, n + 1)
        for name, expected in zip(_CHECKED, lengths, strict=True):
            shape = getattr(self, name).shape
            if shape != (expected,):
                raise self._corrupt(f"{name} has shape {shape}, expected ({expected},)")
        # A minimum is NaN where an entry is: one pass and no array between, for every trajectory that enters
        # or leaves a buffer.
        if np.isnan(np.minimum.reduce(self.log_q, initial=0.0) + self.log_q_stop.min()):
            raise self._corrupt("log q is NaN")
        if not np.isfinite(self.log_reward[self.stop_legal]).all():
            raise self._corrupt("log R is not finite at a prefix where stopping is legal")
        if not self.stop_legal[-1]:
            raise self._corrupt("it ends where stopping is illegal")

    def _corrupt(self, what: str) -> CorruptPayload:
        return CorruptPayload(
            f"Trajectory of group {self.group} from producer {self.actor}: {what}.",
            "The trajectory is dropped; check the producer's log.",
        )


_DTYPES = {
    "tokens": np.dtype("<i4"),
    "action": np.dtype("?"),
    "log_q": np.dtype("<f4"),
    "log_q_stop": np.dtype("<f4"),
    "log_reward": np.dtype("<f4"),
    "stop_legal": np.dtype("?"),
}
_SCALARS = {
    f.name: int if f.name.endswith("_version") else str
    for f in fields(Trajectory)
    if f.name not in _DTYPES
}
_ARRAYS = tuple((name, dtype, dtype.itemsize) for name, dtype in _DTYPES.items())


def encode(trajectory: Trajectory) -> bytes:
    """Wire bytes of a trajectory."""
    values: list[Any] = [getattr(trajectory, name) for name in _SCALARS]
    arrays = [
        np.ascontiguousarray(getattr(trajectory, name), dtype=dtype).tobytes()
        for name, dtype in _DTYPES.items()
    ]
    packed: bytes = msgpack.packb([WIRE_VERSION, *values, *arrays], use_bin_type=True)
    return packed


def decode(payload: bytes) -> Trajectory:
    """Inverse of :func:`encode`, checked.

    Raises:
        CorruptPayload: the bytes are not a well-formed trajectory of this wire version.
    """
    fix = "Drop it; if it comes back, the producer runs another version of posteriori."
    try:
        version, *rest = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as cause:
        raise CorruptPayload(f"Not a trajectory: {cause}.", fix) from cause
    if version != WIRE_VERSION or len(rest) != len(_SCALARS) + len(_DTYPES):
        raise CorruptPayload(
            f"Trajectory of wire version {version!r}, expected {WIRE_VERSION}.", fix
        )
    values: dict[str, Any] = {}
    for (name, expected), value in zip(_SCALARS.items(), rest, strict=False):
        if not isinstance(value, expected):
            raise CorruptPayload(f"Trajectory field {name} is {value!r}.", fix)
        values[name] = value
    for (name, dtype, item_bytes), raw in zip(_ARRAYS, rest[len(_SCALARS) :], strict=True):
        if not isinstance(raw, bytes) or len(raw) % item_bytes:
            raise CorruptPayload(f"Trajectory field {name} is not a {dtype} array.", fix)
        values[name] = np.frombuffer(raw, dtype=dtype)
    trajectory = Trajectory(**values)
    trajectory.check()
    return trajectory
