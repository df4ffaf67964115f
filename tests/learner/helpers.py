"""Small problems and trajectories for the learner's tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import BufferStats, Draw, Prompt
from posteriori.trajectory import Trajectory


class LengthReward:
    """log R = −half the length and the sum of token ids mod 3: cheap, uneven, exact."""

    version = 1

    def log_reward(self, prompt: Prompt, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        bonus = 0.3 * len(prompt.fields["x"])
        return [
            np.asarray(
                [
                    bonus - 0.5 * k + 0.7 * (sum(map(int, sequence[:k])) % 3)
                    for k in range(len(sequence) + 1)
                ]
            )
            for sequence in sequences
        ]


def tiny_problem(
    lm: LanguageModel,
    name: str = "tiny",
    min_tokens: int = 1,
    max_tokens: int = 5,
    words: Sequence[str] = (" cat", " dog", " sat", " ran", " happy"),
    contexts: Sequence[str] = (" the", " a big"),
) -> Problem:
    """Few words, ⊤ = ".", two prompts."""
    alphabet = [lm.one_token(word, "test word") for word in words]
    moves = LegalMoves.free(alphabet, lm.one_token(".", "stop"), min_tokens, max_tokens)
    prompts = [Prompt(str(i), {"x": text}) for i, text in enumerate(contexts)]
    return Problem(
        name, prompts, LengthReward(), lm, lambda p: lm.context(p.fields["x"]), lambda p: moves
    )


def random_strings(moves: LegalMoves, count: int, seed: int) -> list[list[int]]:
    """Legal Z of random lengths, the shortest and the longest among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(moves.min_tokens, moves.max_tokens + 1, count)
    lengths[:2] = moves.min_tokens, moves.max_tokens
    return [rng.choice(moves.alphabet, n).tolist() for n in lengths]


def trajectory(
    problem: Problem, prompt: Prompt, tokens: Sequence[int], **changes: object
) -> Trajectory:
    """A trajectory as an actor would deliver it; behaviour log q is left at 0."""
    n = len(tokens)
    values: dict[str, object] = {
        "problem": problem.name,
        "prompt": prompt.id,
        "group": "g0",
        "actor": "actor-7",
        "behaviour": "gold",
        "adapter_version": 0,
        "reward_version": 1,
        "tokens": np.asarray(tokens, dtype=np.int32),
        "action": np.ones(n, dtype=np.bool_),
        "log_q": np.zeros(n, dtype=np.float32),
        "log_q_stop": np.zeros(n + 1, dtype=np.float32),
        "stop_legal": problem.moves(prompt).stop_legal(tokens),
    }
    values.update(changes)
    if "log_reward" not in values:
        values["log_reward"] = problem.reward.log_reward(prompt, [tokens])[0].astype(np.float32)
    return Trajectory(**values)  # type: ignore[arg-type]


class ScriptedBuffer:
    """A buffer whose n-th draw is known beforehand: what two learners must agree on."""

    def __init__(self, draws: Sequence[list[list[Trajectory]]], start: int = 0) -> None:
        self.draws = draws
        self.drawn = start
        self.learner_version = 0
        self.discarded: list[Trajectory] = []
        self.quarantined: dict[str, str] = {}

    def draw(self, prompts: int, per_prompt: int) -> Draw:
        if self.drawn >= len(self.draws):
            return Draw([], wait="the script has ended")
        self.drawn += 1
        return Draw(self.draws[self.drawn - 1])

    def set_learner_version(self, version: int) -> None:
        self.learner_version = version

    def discard(self, trajectories: Sequence[Trajectory]) -> int:
        self.discarded += trajectories
        return len(trajectories)

    def quarantine(self, producer: str, reason: str) -> None:
        self.quarantined[producer] = reason

    def stats(self) -> BufferStats:
        return BufferStats(0, 0, 0, 1, 0, 0, 0, 0, self.drawn, 0, self.learner_version)


def random_draws(
    problem: Problem, steps: int, per_prompt: int = 8, seed: int = 0
) -> list[list[list[Trajectory]]]:
    """For each step one group of random strings for each prompt."""
    return [
        [
            [
                trajectory(problem, prompt, z)
                for z in random_strings(problem.moves(prompt), per_prompt, seed + 100 * step + i)
            ]
            for i, prompt in enumerate(problem.prompts)
        ]
        for step in range(steps)
    ]


def run_config(lm: LanguageModel, **learner: object) -> RunConfig:
    """A run file around one small problem; keyword arguments go to the learner section."""
    settings = {"lora_rank": 8, "prompts_per_step": 2, "trajectories_per_prompt": 8, "steps": 6}
    return parse(
        {
            "run": "test",
            "model": lm.name,
            "problems": [
                {"name": "tiny", "kind": "tempered", "prompts": [{"x": " the"}], "max_tokens": 4}
            ],
            "replay": {"deadline_seconds": 0.2},
            "learner": settings | learner,
        }
    )
