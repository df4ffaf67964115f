"""One learner's step as benchmarks measure it: real parts, made-up trajectories of equal size.

Two X's of 24 tokens with 32 Z's of 20 random words each, over an alphabet of the whole vocabulary that has
text. Random Z's share no prefix but X, which is the hardest case for a token tree. log R is random too: it
is a constant for the learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.learner import Learner
from learner.objectives import Batch, configured_losses, flow_residuals, summarise
from posteriori.config import RunConfig, parse
from posteriori.groups import Group, prepare
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problems
from posteriori.seams import AdapterStore, Buffer
from posteriori.trajectory import Trajectory

LEARNING = {"lora_rank": 16, "checkpoint_every_steps": 10**6, "steps": 10**6, "decay": "constant"}


@dataclass(frozen=True)
class Step:
    """Sizes of a step; the run file's defaults but for the length of X and Z."""

    x_tokens: int = 24
    z_tokens: int = 20
    prompts: int = 2
    trajectories: int = 32
    pairs: int = 5

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {name: size for name, size in asdict(self).items() if name != "pairs"}


STEP = Step()
QUICK = Step(z_tokens=6, trajectories=8, pairs=2)


def run_config(lm: LanguageModel, step: Step, **replay: Any) -> RunConfig:
    """The run file of the step: p(Z | x) tempered, X's of random words."""
    random = np.random.default_rng(0)
    words = [" one", " two", " a", " the", " was", " and", " in", " of", " to", " not"]
    prompts: list[dict[str, str]] = []
    while len(prompts) < step.prompts:
        x = "".join(random.choice(words, step.x_tokens - 1))
        if len(lm.context(x)) == step.x_tokens:
            prompts.append({"x": x})
    problem = {"name": "step", "kind": "tempered", "prompts": prompts, "max_tokens": step.z_tokens}
    learning = {"prompts_per_step": step.prompts, "trajectories_per_prompt": step.trajectories}
    bfloat16 = lm.model.dtype == torch.bfloat16
    return parse(
        {
            "run": "benchmark",
            "model": lm.name,
            "dtype": "bfloat16" if bfloat16 else "float32",
            "problems": [problem],
            "replay": replay,
            "learner": LEARNING | learning,
        }
    )


def trajectories(problem: Problem, each: int, step: Step, seed: int = 0) -> list[list[Trajectory]]:
    """So many random Z's of every X, none of them twice."""
    random = np.random.default_rng(seed)
    groups = []
    for prompt in problem.prompts:
        moves = problem.moves(prompt)
        members: list[Trajectory] = []
        for number in range(each):
            tokens = random.choice(moves.alphabet, step.z_tokens).astype(np.int32)
            rewards = -3.0 * np.arange(step.z_tokens + 1) + random.normal(size=step.z_tokens + 1)
            members.append(
                Trajectory(
                    problem=problem.name,
                    prompt=prompt.id,
                    group=f"{prompt.id}-{number // step.trajectories}",
                    actor="benchmark",
                    behaviour="policy",
                    adapter_version=1,
                    reward_version=problem.reward.version,
                    tokens=tokens,
                    action=np.ones(step.z_tokens, dtype=np.bool_),
                    log_q=np.full(step.z_tokens, -7.0, dtype=np.float32),
                    log_q_stop=np.append(
                        np.full(step.z_tokens, -7.0, dtype=np.float32), np.float32(0)
                    ),
                    log_reward=rewards.astype(np.float32),
                    stop_legal=moves.stop_legal(tokens.tolist()),
                )
            )
        groups.append(members)
    return groups


@dataclass(frozen=True, eq=False)
class Workload:
    """A learner with one step's trajectories in memory.

    Attributes:
        learner: a whole one; nothing but its step is called here.
        drawn: what it drew: a group for each X.
        groups: the same, packed.
    """

    learner: Learner
    drawn: Sequence[Sequence[Trajectory]]
    groups: Sequence[Group]

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        step: Step,
        buffer: Buffer,
        adapters: AdapterStore,
        directory: Path,
        **options: Any,
    ) -> Workload:
        """A learner on ``buffer`` and ``adapters``, and a step in memory."""
        config = run_config(lm, step)
        problems = build_problems(config, lm)
        learner = Learner(
            config, lm, problems, buffer, adapters, directory,
            device=str(lm.model.device), **options,
        )  # fmt: skip
        drawn = trajectories(problems[0], step.trajectories, step)
        return cls(learner, drawn, [prepare(group, problems[0]) for group in drawn])

    def step(self) -> Mapping[str, float]:
        """What the learner does with a draw: checks, packing, gradient, optimiser, metrics."""
        return self.learner._update(self.drawn)

    def detached_batch(self) -> Batch:
        """log q and log R of the step; log q is a leaf, so that gradients end there."""
        with torch.no_grad():
            log_q, log_q_stop = self.learner.policy.log_probs(self.groups)
        device = log_q.device

        def joined(arrays: Sequence[Any]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device)

        groups = self.groups
        return Batch(
            log_q=log_q.requires_grad_(),
            log_q_stop=log_q_stop.requires_grad_(),
            log_reward=joined([group.log_rewards() for group in groups]),
            stop_legal=joined([group.stop_legal for group in groups]),
            lengths=joined([group.lengths for group in groups]),
            group=joined([np.full(len(group), index) for index, group in enumerate(groups)]),
        )

    def objective(self, batch: Batch) -> None:
        """From log q to the gradient of the loss with respect to it, with the summaries of the step."""
        summarise(batch, flow_residuals(batch))
        loss, _ = configured_losses(batch, self.learner.settings)
        (loss.sum() / len(loss)).backward()
