"""Checkpoints of the learner: complete or absent, checked on the way back, never pickled.

A checkpoint is a directory ``step-00000050`` of safetensors and JSON files with a manifest of their
sizes and checksums. It is written under a hidden temporary name, flushed to the disk and renamed,
so a process killed at any moment leaves the previous checkpoints as they were.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from posteriori.errors import StorageFull, UserError
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from replay.connection import disk_errors

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
STATE = "state.json"
RESERVED = "last-version"
_NAME = re.compile(r"step-(\d{8})")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything the learner needs to go on as if it had never stopped.

    Attributes:
        step: optimiser steps done.
        version: adapter version counter.
        adapter: PEFT files.
        tensors: optimiser moments, log Z table, torch RNG states.
        state: JSON values: optimiser settings, counters, Python and numpy RNG states.
    """

    step: int
    version: int
    adapter: Mapping[str, bytes]
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def save(directory: Path, checkpoint: Checkpoint, keep_last: int = 3) -> Path:
    """Write a checkpoint below ``directory`` and delete all but the ``keep_last`` newest.

    Returns:
        Its directory.

    Raises:
        StorageFull: the disk has no room; earlier checkpoints are intact.
        UserError: the directory cannot be written.
    """
    final = directory / f"step-{checkpoint.step:08d}"
    partial = directory / f".{final.name}.partial-{os.getpid()}"
    head = {"step": checkpoint.step, "version": checkpoint.version, **checkpoint.state}
    try:
        partial.mkdir(parents=True)
        manifest: dict[str, dict[str, Any]] = {}
        contents: dict[str, Callable[[], bytes]] = {
            TENSORS: lambda: safetensors.torch.save(
                {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
            ),
            STATE: lambda: json.dumps(head).encode(),
            ADAPTER_CONFIG: lambda: checkpoint.adapter[ADAPTER_CONFIG],
            ADAPTER_WEIGHTS: lambda: checkpoint.adapter[ADAPTER_WEIGHTS],
        }
        for name, content in contents.items():
            data = content()
            _write(partial / name, data)
            manifest[name] = {"bytes": len(data), "blake2b": _digest(data)}
        _write(partial / MANIFEST, json.dumps({"format": FORMAT, "files": manifest}).encode())
        _flush_directory(partial)
        if final.exists():  # the same step again, after a resume
            shutil.rmtree(final)
        partial.rename(final)
        _flush_directory(directory)
    except OSError as cause:
        shutil.rmtree(partial, ignore_errors=True)
        kept = "Checkpoints written before are intact."
        if cause.errno in _NO_ROOM:
            raise StorageFull(
                f"No room for the checkpoint of step {checkpoint.step} in {directory}: "
                f"{cause.strerror}. {kept}",
                "Free space and continue with --resume.",
            ) from cause
        raise UserError(
            f"Cannot write the checkpoint of step {checkpoint.step} to {directory}: "
            f"{cause.strerror}. {kept}",
            "Make the directory writable and continue with --resume.",
        ) from cause
    _sweep(directory, keep_last)
    return final


def load_latest(
    directory: Path,
    at_most: int | None = None,
    on_damage: Callable[[str], object] | None = None,
) -> Checkpoint | None:
    """The newest checkpoint that is whole, of step ``at_most`` at most; None if there is none.

    Damaged ones are skipped with a warning that says what is wrong with them, which ``on_damage`` is
    told too.
    """
    for path in reversed(_complete(directory)):
        if at_most is not None and int(path.name.removeprefix("step-")) > at_most:
            continue
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as cause:
            what = (
                f"CHECKPOINT {path} IS DAMAGED ({type(cause).__name__}: {cause}): it is skipped, the "
                "one before it is used."
            )
            log.warning("%s", what)
            if on_damage is not None:
                on_damage(what)
    return None


def reserve_version(directory: Path, version: int) -> None:
    """Remember on the disk that an adapter version is about to be published.

    The store may forget its newest versions when its host dies; actors on other hosts do not. Written in
    place, since a full disk has room for what it holds already.

    Raises:
        StorageFull: the disk has no room for the file itself.
    """
    path = directory / RESERVED
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, f"{version:020d}\n".encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reserved_version(directory: Path) -> int:
    """The greatest version that was ever reserved here, 0 if none was."""
    try:
        return int((directory / RESERVED).read_bytes())
    except FileNotFoundError:
        return 0
    except ValueError as cause:
        log.warning("%s IS DAMAGED (%s): it is not used.", directory / RESERVED, cause)
        return 0


def _load(path: Path) -> Checkpoint:
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
    contents = {}
    for name in (TENSORS, STATE, ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        data = (path / name).read_bytes()
        expected = manifest["files"][name]
        if len(data) != expected["bytes"] or _digest(data) != expected["blake2b"]:
            raise ValueError(f"{name} does not match its checksum")
        contents[name] = data
    state = json.loads(contents[STATE])
    return Checkpoint(
        step=int(state.pop("step")),
        version=int(state.pop("version")),
        adapter={name: contents[name] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
        tensors=safetensors.torch.load(contents[TENSORS]),
        state=state,
    )


def _complete(directory: Path) -> list[Path]:
    """Directories with a checkpoint's name, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _sweep(directory: Path, keep_last: int) -> None:
    """Delete older checkpoints and what killed processes left half-written."""
    for path in _complete(directory)[:-keep_last]:
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".step-*.partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


# ------------------------------------------------------------------------ optimiser and RNG states


def pack_optimizer(
    name: str, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Split an optimiser's state into tensors, named ``{name}.{parameter}.{key}``, and JSON."""
    packed = optimizer.state_dict()
    tensors = {
        f"{name}.{index}.{key}": torch.as_tensor(value)
        for index, values in packed["state"].items()
        for key, value in values.items()
        if value is not None
    }
    return tensors, packed["param_groups"]


def unpack_optimizer(
    name: str,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    param_groups: list[dict[str, Any]],
) -> None:
    """Inverse of :func:`pack_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(f"{name}."):
            _, index, key = full_name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def random_states() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of the global generators of torch, CUDA, numpy and Python, as tensors and JSON."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return tensors, {
        "numpy": [
            str(kind),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(internal), gauss],
    }


def restore_random_states(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Inverse of :func:`random_states`."""
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached)
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
