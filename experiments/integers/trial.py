"""One seed: base LM, SFT on exact draws, PPO and the GFlowNet policy, the same problem and the same adapter.

Z is a number with the space before it, as the base LM writes it behind a colon. The alphabet is every
token of the vocabulary that is a text of its own; nothing is masked. R = 1 for " 0" … " 99" and
e^-8 · p_LM(Z⊤ | X) for anything else. PPO maximises the same log R under the KL penalty that it is
defined with, for the same number of reward evaluations.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.ppo import PPOSettings, train_ppo
from baselines.sft import SFTSettings, train_sft
from baselines.trained import given
from experiments.harness import Row, Trial
from posteriori.commands.local import train_locally
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.oracle.scoring import sequence_log_q
from posteriori.pocket.integers import PROMPT
from posteriori.problems import Problem, build_problems

BASE, SFT, PPO, GFN = "base LM", "SFT on 512 exact draws", "PPO", "GFN"
NUMBERS = 100
PER_STEP = 128
"""Trajectories of a learner step and of a PPO round."""
DRAWS = 512
"""Posterior samples that SFT is given: uniform integers, drawn with replacement."""


def run(trial: Trial) -> list[Row]:
    """Rows of one seed; see :class:`experiments.harness.Experiment`."""
    lm = trial.load("pocket")
    config = run_config(lm, trial.seed, 8 if trial.quick else 100)
    problems = build_problems(config, lm)
    rows = [row(BASE, lm, problems[0])]

    began = time.monotonic()
    run_ = train_locally(config, problems, directory=trial.directory / "run", lm=lm)
    cost = {"reward_evaluations": run_.trajectories, "seconds": time.monotonic() - began}
    gfn = row(GFN, run_.policy(), problems[0], **cost)
    trial.console.print(f"GFN: {gfn.metrics['kl']:.5f}", highlight=False)

    sft = train_sft(
        problems,
        [given(problems[0], problems[0].prompts[0], z) for z in draws(lm, trial.seed)],
        SFTSettings(steps=10 if trial.quick else 60, batch_size=64),
        trial.seed,
    )
    rows.append(
        row(SFT, sft.language_model(), problems[0], reward_evaluations=0, seconds=sft.seconds)
    )

    settings = PPOSettings(prompts_per_step=1, samples_per_prompt=PER_STEP, prompts_per_update=1)
    ppo = train_ppo(problems, settings.within(run_.trajectories), trial.seed)
    cost = {"reward_evaluations": ppo.budget.reward_evaluations, "seconds": ppo.seconds}
    rows.append(row(PPO, ppo.language_model(), problems[0], **cost))
    return [*rows, gfn]


def run_config(lm: LanguageModel, seed: int, steps: int) -> RunConfig:
    """The run file of the GFlowNet policy."""
    texts = dict.fromkeys(
        lm.text([token]) for token in range(lm.vocabulary_size) if token not in lm.special_ids
    )
    problem: dict[str, Any] = {
        "name": "integers",
        "kind": "uniform",
        "prompts": [{"x": PROMPT}],
        # White space alone would spell every number a second way.
        "alphabet": [text for text in texts if text.strip() and len(lm.encode(text)) == 1],
        "max_tokens": 5,
        "constraint": {"regex": " [0-9]| [1-9][0-9]", "masked": False, "floor_nats": -8.0},
    }
    return parse(
        {
            "run": "integers",
            "seed": seed,
            "oracle_max_strings": 0,
            "problems": [problem],
            "sampling": {
                "group_size": 64,
                "groups_in_flight": 4,
                "base_share": 0.1,
                "tempered_share": 0.1,
                "uniform_share": 0.1,
            },
            # The buffer keeps a Z once, and there are a hundred numbers against thousands of other Z's:
            # drawn uniformly, hardly any would be a number.
            "replay": {"recent_share": 0.4, "prioritised_share": 0.6},
            "learner": {
                "steps": steps,
                "learning_rate": 0.003,
                "prompts_per_step": 1,
                "trajectories_per_prompt": PER_STEP,
                "huber_delta_nats": 5.0,
            },
        },
        "experiment integers",
    )


def numbers(lm: LanguageModel) -> list[list[int]]:
    """Token ids of 0 to 99."""
    return [lm.encode(f" {number}") for number in range(NUMBERS)]


def draws(lm: LanguageModel, seed: int) -> list[list[int]]:
    """Independent draws from the target."""
    every = numbers(lm)
    return [every[k] for k in np.random.default_rng(seed).integers(NUMBERS, size=DRAWS)]


def log_q_of_numbers(lm: LanguageModel, problem: Problem) -> NDArray[np.float64]:
    """Exact log q of 0 to 99, [100]; their sum is the validity of q."""
    prompt = problem.prompts[0]
    moves = problem.moves(prompt)
    return sequence_log_q(lm, problem.policy_ids(prompt), moves, numbers(problem.lm))


def row(method: str, lm: LanguageModel, problem: Problem, **cost: float) -> Row:
    """Exact figures of a sampler.

    ``kl``: KL of the uniform distribution from q given that it wrote a number; ``kl_all``: without that
    condition, which adds −log validity; ``least``, ``most``: a number's share times 100; ``p0`` … ``p99``.
    """
    log_q = log_q_of_numbers(lm, problem)
    q = np.exp(log_q)
    kl_all = float(np.mean(-np.log(NUMBERS) - log_q))
    share = q / q.sum()
    return Row(
        method,
        {
            "kl": kl_all + float(np.log(q.sum())),
            "kl_all": kl_all,
            "validity": float(q.sum()),
            "least": float(share.min() * NUMBERS),
            "most": float(share.max() * NUMBERS),
            **{key: float(value) for key, value in cost.items()},
            **{f"p{number}": float(f"{value:.6g}") for number, value in enumerate(q)},
        },
    )
