"""What the learner adds to the forward and backward passes it cannot do without.

    python -m benchmarks.learner_efficiency

A step (checks, packing, log q, objective, clipping, AdamW, metrics) ÷ forward and backward of the same packed
tokens with cross-entropy at the same positions, nothing else; and ÷ the same on one padded row for each
trajectory, as it is written without trees. Then the whole loop (draw from a real Redis, decoding, publishing
every fifth step, log files) against steps on groups that lie in memory: trajectories a second of both, in turn.
On a CUDA device also the share of its peak that the step's model FLOPs are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.learner_step import QUICK, STEP, Step, Workload, run_config, trajectories
from benchmarks.measure import Report, Row, Target, in_turn, main
from benchmarks.models import models, parameters
from learner.learner import Learner
from posteriori.config import ReplayConfig
from posteriori.groups import Group
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from posteriori.problems import build_problems
from posteriori.tree import batches, node_logits
from replay.connection import connect
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from replay.redis_adapters import RedisAdapters
from replay.redis_buffer import RedisBuffer
from replay.server import EmbeddedServer

STORED_PER_PROMPT = 128
STRETCH_STEPS = 5
"""Of the loop, between two stretches of as many steps in memory; one version is published in each."""

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Of dense bfloat16, by a part of the device's name."""


class Bare:
    """Forward and backward of a step's tokens with cross-entropy where the policy decides, prepared beforehand."""

    def __init__(self, policy: Policy, groups: Sequence[Group], budget: int) -> None:
        self._policy = policy
        self._groups = groups
        self._micro = list(batches([group.tree for group in groups], budget))
        self._columns = torch.from_numpy(groups[0].column_tokens)
        self._targets = [_columns_taken(group).to(policy.device) for group in groups]
        prompt = [len(group.tree) - int(group.lengths.sum()) for group in groups]
        self._rows = [_rows(group, tokens) for group, tokens in zip(groups, prompt, strict=True)]

    def packed(self) -> None:
        """On the learner's own trees, in its own micro-batches, over the alphabet."""
        self._policy.model.zero_grad(set_to_none=True)
        for chosen in self._micro:
            groups = [self._groups[i] for i in chosen]
            logits = node_logits(
                self._policy.model,
                [group.tree for group in groups],
                [group.states for group in groups],
                self._columns,
            )
            targets = [self._targets[i] for i in chosen]
            cross_entropy(torch.cat(logits), torch.cat(targets)).backward()

    def rows(self) -> None:
        """One row for each trajectory, the LM head at its Z alone."""
        self._policy.model.zero_grad(set_to_none=True)
        for tokens, length in self._rows:
            logits = self._policy.model(
                tokens.to(self._policy.device), logits_to_keep=length + 1, use_cache=False
            ).logits[:, :-1]
            targets = tokens[:, -length:].to(logits.device)
            cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()


def _columns_taken(group: Group) -> torch.Tensor:
    """A move that was taken at each state, [U]; ⊤ where a Z ends."""
    taken = np.full(len(group.states), len(group.column_tokens) - 1)
    taken[group.state_of[:, :-1][group.action]] = group.column_of[group.action]
    return torch.from_numpy(taken)


def _rows(group: Group, prompt_tokens: int) -> tuple[torch.Tensor, int]:
    """X Z of each trajectory, [K, L], and the length of Z; all are equally long, as random Z's share nothing but X."""
    prompt = group.tree.tokens[:prompt_tokens]
    rows = [np.concatenate([prompt, t.tokens]) for t in group.trajectories]
    return torch.from_numpy(np.stack(rows).astype(np.int64)), int(group.lengths[0])


def step_over_bare(lm: LanguageModel, step: Step) -> tuple[list[Row], Workload]:
    """Rows of both references."""
    folder = tempfile.mkdtemp()
    memory = MemoryBuffer(ReplayConfig(), seed=0), MemoryAdapters("benchmark")
    work = Workload.of(lm, step, *memory, Path(folder))
    bare = Bare(work.learner.policy, work.groups, work.learner.settings.tokens_per_microbatch)
    rows = [
        in_turn(
            f"{lm.name}: step ÷ bare forward and backward",
            work.step, bare.packed, pairs=step.pairs, target=Target(1.1),
        ),
        in_turn(
            f"{lm.name}: step ÷ the same, a padded row for each trajectory",
            work.step, bare.rows, pairs=max(2, step.pairs // 2),
        ),
    ]  # fmt: skip
    return rows, work


def pipeline(lm: LanguageModel, step: Step, stretches: int, steps: int) -> Row:
    """The learner's own loop on Redis, interrupted after every stretch by as many steps in memory."""
    config = run_config(
        lm, step, slack_trajectories=10**9, samples_per_insert=1e6, max_staleness_versions=10**6
    )
    settings = config.learner.model_copy(update={"steps": (stretches + 1) * steps})
    config = config.model_copy(update={"learner": settings})
    problems = build_problems(config, lm)
    spent: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "redis", config.replay.capacity_bytes)
        memory = MemoryBuffer(ReplayConfig(), seed=0), MemoryAdapters("benchmark")
        with server:
            client = connect(server.url)
            buffer = RedisBuffer(client, config.run, config.replay, seed=0)
            stored = step.trajectories if step is QUICK else STORED_PER_PROMPT
            for group in trajectories(problems[0], stored, step):
                buffer.insert(group)
            work = Workload.of(lm, step, *memory, Path(folder) / "memory")
            began = time.perf_counter()

            def in_turn_with_memory(number: int, metrics: object) -> None:
                nonlocal began
                if number % steps:
                    return
                here = time.perf_counter()
                for _ in range(steps):
                    work.step()
                spent.append((here - began, time.perf_counter() - here))
                began = time.perf_counter()

            learner = Learner(
                config, lm, problems, buffer, RedisAdapters(client, config.run),
                Path(folder) / "run", device=str(lm.model.device), on_metrics=in_turn_with_memory,
            )  # fmt: skip
            began = time.perf_counter()
            learner.run()
    loop, memory_alone = np.array(spent[1:]).T  # the first stretch waits for the first version
    return Row(
        f"{lm.name}: trajectories a second, the whole loop on Redis ÷ steps in memory",
        (memory_alone / loop).tolist(),
        Target(0.95, "at least"),
        float(np.median(1 / loop)) * steps,
        float(np.median(1 / memory_alone)) * steps,
        unit="steps a second",
    )


def utilisation(lm: LanguageModel, work: Workload, seconds: float) -> float | None:
    """Model FLOPs of a step ÷ what the device could do in its time; None where its peak is not known.

    Counted are forward and the gradient with respect to activations, 4 FLOPs a weight and a token: the base's
    weights are frozen. Attention, adapter and LM head are left out.
    """
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name(0)
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    head = lm.model.get_output_embeddings().weight.numel()
    tokens = sum(len(group.tree) for group in work.groups)
    return None if peak is None else 4 * (parameters(lm) - head) * tokens / seconds / peak


def measure(quick: bool = False) -> Report:
    """All rows."""
    torch.set_num_threads(1)
    step = QUICK if quick else STEP
    rows: list[Row] = []
    share = None
    measured = models(quick)
    for lm in measured:
        found, work = step_over_bare(lm, step)
        rows += found
        assert found[0].subject is not None
        share = utilisation(lm, work, found[0].subject)
    stretches, steps = (2, 2) if quick else (4, STRETCH_STEPS)
    rows.append(pipeline(measured[0], step, stretches, steps))
    return Report(rows, step.document(), share)


if __name__ == "__main__":
    main("learner_efficiency", __doc__ or "", measure)
