"""Peak memory of a learner and of an actor ÷ what they cannot do without.

    python -m benchmarks.memory

Each runs in a process of its own, which first does everything once on a toy model, so that all that is imported
lazily is there: resident memory after that is the process's size after imports. Then the model is loaded, and
the peak of the resident size (Linux' VmHWM) while it works is what is divided, less that size. The learner's
denominator: weights, adapter with gradients and AdamW's state, what autograd keeps for the backward pass, and
one batch of logits at latent positions. The actor's (transformers engine, scoring by the frozen base LM): both models'
weights, the KV cache at its largest, one scoring forward's widest layer, one batch of logits. On a CUDA device the
learner's peak is that of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from actors.rollout import RolloutWorker
from actors.transformers_engine import TransformersEngine
from benchmarks.learner_step import QUICK, STEP, Step, Workload, run_config
from benchmarks.measure import Report, Row, Target, main
from benchmarks.models import MEDIUM, TOY, named, names
from posteriori.config import ReplayConfig, SamplingConfig
from posteriori.freed_memory import allocator
from posteriori.lm import NODES_PER_FORWARD_ON_CPU, LanguageModel
from posteriori.problems import build_problems
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer

GROUPS = 12
"""Finished by the actor, from 8 groups of 16 in flight."""


def status(key: str) -> int:
    """A size of this process in bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def forget_peak() -> None:
    """Let VmHWM begin anew at the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def return_freed() -> None:
    """Give what the toy used back to the system, or the model would move into it unseen."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallctl"):  # jemalloc, which calls all of its arenas together 4096
        assert libc.mallctl(b"arena.4096.purge", None, None, None, 0) == 0
    else:
        libc.malloc_trim(0)


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, shared ones once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def weights(model: Any) -> int:
    """Bytes of parameters and buffers."""
    return size([*model.parameters(), *model.buffers()])


class Kept:
    """Bytes that autograd keeps for the backward pass, weights left out."""

    def __init__(self, model: Any) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._found: dict[int, int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of ``torch.autograd.graph.saved_tensors_hooks``."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        """So far; a storage that is freed and taken again counts once."""
        return sum(self._found.values())


def learner(name: str, step: Step) -> tuple[int, dict[str, int]]:
    """Three steps of a learner; peak bytes above the imports' size, and what was needed."""

    def work(lm: LanguageModel) -> dict[str, int]:
        with tempfile.TemporaryDirectory() as folder:
            memory = MemoryBuffer(ReplayConfig(), seed=0), MemoryAdapters("benchmark")
            load = Workload.of(lm, step, *memory, Path(folder))
            load.step()
            kept = Kept(load.learner.policy.model)
            with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
                load.step()
            load.step()
        adapter = load.learner.policy.parameters()
        state = load.learner.optimizer.state.values()
        states = sum(len(group.states) for group in load.groups)
        return {
            "weights": weights(lm.model),
            "adapter, gradients": 2 * size(adapter),
            "optimiser": size([v for s in state for v in s.values() if torch.is_tensor(v)]),
            "activations": kept.total,
            "logits": 4 * states * len(load.groups[0].column_tokens),
        }

    return _measured(name, work)


def actor(name: str, step: Step) -> tuple[int, dict[str, int]]:
    """An actor that samples and scores some groups; as :func:`learner`."""

    def work(lm: LanguageModel) -> dict[str, int]:
        config = run_config(lm, step)
        sampling = SamplingConfig(engine="transformers", groups_in_flight=2 if step is QUICK else 8)
        with tempfile.TemporaryDirectory() as folder:
            lm.model.save_pretrained(folder)
            engine = TransformersEngine(folder, max_model_tokens=step.x_tokens + step.z_tokens)
        return_freed()
        forget_peak()  # writing the engine's files is not an actor's work
        with tempfile.TemporaryDirectory() as folder:
            worker = RolloutWorker(
                "actor", engine, MemoryBuffer(ReplayConfig(slack_trajectories=10**9), seed=0),
                MemoryAdapters("benchmark"), build_problems(config, lm), sampling,
                seed=0, adapter_directory=Path(folder),
            )  # fmt: skip
            worker.run(stop=lambda: worker.counts.groups >= GROUPS)
        model = lm.model.config
        sequences = sampling.group_size * sampling.groups_in_flight
        tokens = sequences * (step.x_tokens + step.z_tokens)
        width = 4 * model.hidden_size + 3 * model.intermediate_size
        engine.close()
        return {
            "weights": 2 * weights(lm.model),
            "KV cache": 8
            * tokens
            * model.num_hidden_layers
            * model.num_key_value_heads
            * model.head_dim,
            "activations": 4 * NODES_PER_FORWARD_ON_CPU * width,
            "logits": 4 * max(sequences, NODES_PER_FORWARD_ON_CPU) * model.vocab_size,
        }

    return _measured(name, work)


def _measured(
    name: str, work: Callable[[LanguageModel], dict[str, int]]
) -> tuple[int, dict[str, int]]:
    """Once on the toy, then on the model: peak above the size between, and the bytes needed."""
    torch.set_num_threads(1)
    work(named(TOY))
    if torch.cuda.is_available():
        needed = work(named(name))
        return torch.cuda.max_memory_allocated(), needed
    return_freed()
    before = status("VmRSS")
    forget_peak()
    needed = work(named(name))
    return status("VmHWM") - before, needed


@contextmanager
def _allocator_of_a_run() -> Iterator[None]:
    """Processes that start within the block get memory as a run's learner and actors do."""
    environment = allocator()
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]


def measure(quick: bool = False) -> Report:
    """A row for each side and model."""
    step = QUICK if quick else STEP
    spawn = multiprocessing.get_context("spawn")
    rows, parts = [], {}
    measured = names(quick)
    if not quick and not torch.cuda.is_available():
        measured = [*measured, MEDIUM]
    for name in measured:
        for title, side in (("learner", learner), ("actor", actor)):
            if title == "actor" and torch.cuda.is_available():
                continue  # its engine is vLLM, whose memory on a device is what it is told to take
            with _allocator_of_a_run(), spawn.Pool(1) as pool:
                peak, needed = pool.apply(side, (name, step))
            total = sum(needed.values())
            row = f"{name}: {title}'s peak ÷ what it needs"
            rows.append(Row(row, [peak / total], Target(1.3), peak, total, unit="bytes"))
            parts[f"{name}, {title}: bytes needed"] = needed
    return Report(rows, {**step.document(), **parts})


if __name__ == "__main__":
    main("memory", __doc__ or "", measure)
