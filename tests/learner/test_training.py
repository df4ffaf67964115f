"""A small language model is trained to an exact posterior, in this process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.learner import Learner
from posteriori.config import parse
from posteriori.groups import prepare
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q, fidelity
from posteriori.problems import build_problems
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer
from tests.learner.helpers import trajectory

STEPS = 250
WORDS = [" cat", " dog", " sat", " ran", " happy"]


def run_file(lm):
    return parse(
        {
            "run": "training",
            "model": lm.name,
            "problems": [
                {
                    "name": "tempered",
                    "kind": "tempered",
                    "temperature": 0.5,
                    "prompts": [{"x": " the"}],
                    "alphabet": WORDS,
                    "stop": ".",
                    "min_tokens": 1,
                    "max_tokens": 4,
                }
            ],
            "replay": {"samples_per_insert": 2.0, "slack_trajectories": 512},
            "learner": {
                "steps": STEPS,
                "prompts_per_step": 1,
                "trajectories_per_prompt": 64,
                "learning_rate": 0.01,
                "lora_rank": 8,
                "publish_every_steps": 5,
                "evaluate_every_steps": 50,
                "warmup_steps": 10,
            },
        }
    )


class ExactActor:
    """Samples from the published policy, the base LM and uniform strings by enumeration.

    What a rollout actor does, less the engine: log q of each trajectory is that of its version.
    """

    def __init__(self, problem, exact, buffer) -> None:
        self.problem, self.exact, self.buffer = problem, exact, buffer
        self.prompt = problem.prompts[0]
        self.strings = [tuple(exact.tree.tokens(k)) for k in range(exact.count)]
        self.scores = dict(zip(self.strings, exact.log_reward, strict=True))
        self.base = self.log_q(problem.lm)
        self.random = np.random.default_rng(0)

    def log_q(self, lm):
        return exact_log_q(self.exact.tree, lm, self.problem.policy_ids(self.prompt))

    def deliver(self, policy, version, count=160) -> None:
        current = np.exp(self.log_q(policy.language_model()))
        sources = (
            ("policy", current / current.sum(), count // 2),
            ("base", np.exp(self.base) / np.exp(self.base).sum(), count // 4),
            ("gold", np.full(len(current), 1 / len(current)), count // 4),
        )
        for behaviour, probabilities, share in sources:
            drawn = self.random.choice(len(current), share, p=probabilities)
            self.buffer.insert(self._trajectories(policy, version, behaviour, drawn))

    def _trajectories(self, policy, version, behaviour, drawn):
        plain = []
        for k in drawn:
            z = self.strings[k]
            scores = [self.scores.get(z[:i], 0.0) for i in range(len(z) + 1)]
            plain.append(
                trajectory(
                    self.problem, self.prompt, z,
                    behaviour=behaviour,
                    adapter_version=version if behaviour == "policy" else 0,
                    reward_version=self.problem.reward.version,
                    log_reward=np.asarray(scores, dtype=np.float32),
                )
            )  # fmt: skip
        if behaviour != "policy":
            return plain
        with torch.no_grad():
            log_q, stop = (x.numpy() for x in policy.log_probs([prepare(plain, self.problem)]))
        return [
            replace(t, log_q=log_q[row, : len(t)], log_q_stop=stop[row, : len(t) + 1])
            for row, t in enumerate(plain)
        ]


@pytest.mark.slow
def test_a_tiny_language_model_reaches_its_posterior(tiny_lm, tmp_path):
    config = run_file(tiny_lm)
    (problem,) = build_problems(config, tiny_lm)
    prompt = problem.prompts[0]
    exact = enumerate_posterior(problem.name, prompt, problem.moves(prompt), problem.reward, 10_000)
    assert exact.count == 5 + 25 + 125 + 625
    buffer = MemoryBuffer(config.replay, seed=0)
    actor = ExactActor(problem, exact, buffer)
    curve = {}

    def evaluate(policy, step):
        found = fidelity(exact, actor.log_q(policy.language_model()))
        curve[step] = found
        return {"tv": found.total_variation}

    def on_event(kind, message):
        # The weights are those of the version at this moment, and only at this moment.
        if kind == "published":
            actor.deliver(learner.policy, learner.version)

    learner = Learner(
        config, tiny_lm, [problem], buffer, MemoryAdapters("training"), tmp_path,
        evaluate=evaluate, on_event=on_event,
    )  # fmt: skip
    learner.run()
    assert curve[0].total_variation >= 0.3
    assert curve[STEPS].total_variation <= 0.05
    assert learner.metrics["log_z/tempered"] == pytest.approx(exact.log_z, abs=0.1)
    assert learner.metrics["ess"] >= 0.8
    # Recomputed under the weights of their own version, which the learner has long left.
    assert learner.engine_check.tokens > 500
    assert learner.engine_check.maximum_nats < 1e-4
