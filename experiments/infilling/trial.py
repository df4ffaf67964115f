"""One seed: train the samplers, draw middles for held-out stories, score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from baselines.sft import SFTSettings, train_sft
from baselines.trained import Trained, given
from experiments.harness import Row, Trial
from experiments.infilling.assess import Sampler, assess
from experiments.infilling.gflownet import GFlowNetSettings, train_gflownet
from experiments.infilling.stories import (
    PAPER_PROMPT,
    Split,
    joint_samples,
    problem_config,
    split,
)
from experiments.merging import merged
from posteriori.lm import LanguageModel
from posteriori.oracle.scoring import sequence_log_q
from posteriori.policy import Policy
from posteriori.problems import Problem, build_problem
from posteriori.templates import fill
from posteriori.trajectory import Trajectory

PROMPTING = "prompting"
PAPERS_PROMPT = "prompting, in the paper's words"
BEGINNING = "base LM, beginning alone"
SFT_FEW = "SFT, few gold pairs"
SFT_AMPLE = "SFT, ample posterior samples"
GFN = "GFlowNet from that SFT"

LEARNING_RATE, LORA_ALPHA = 5e-3, 32.0
"""Of both SFTs. After ten steps on 280 gold pairs a held-out middle cost 2.57 nats, with 1e-3 and 16 3.32."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        train: stories with a gold Z, for the SFT that the GFlowNet starts from.
        unlabelled: further stories, whose X and Y the GFlowNet sees and nothing else.
        joint: stories of them whose X the ample SFT sees, with Z and Y from the LM.
        joint_each: (Z, Y) sampled for each X of the ample SFT.
        test: held-out stories.
        draws: middles of each method for each held-out story that are scored.
        proposals: draws of each proposal behind log Z and the posterior's own row.
        gflownet: its steps and groups.
        ample_steps: optimiser steps.
        few_steps: SFT on few pairs stops at the best validation loss before that.
    """

    train: int = 16
    unlabelled: int = 400
    joint: int = 100
    joint_each: int = 20
    test: int = 40
    draws: int = 6
    proposals: int = 12
    gflownet: GFlowNetSettings = field(default_factory=GFlowNetSettings)
    ample_steps: int = 120
    few_steps: int = 16


QUICK = Scale(
    train=8,
    unlabelled=4,
    joint=4,
    joint_each=3,
    test=3,
    draws=2,
    proposals=3,
    gflownet=GFlowNetSettings(steps=2, proposals=3, prompts_per_step=2),
    ample_steps=2,
    few_steps=2,
)


def run(trial: Trial) -> list[Row]:
    """Rows of all methods."""
    scale = QUICK if trial.quick else Scale()
    lm = trial.load("pocket")
    stories = split(trial.seed, scale.train, scale.unlabelled, scale.test)
    problem = build_problem(problem_config(stories.train, stories.test), lm)

    def say(what: str) -> None:
        trial.console.print(f"  {what}", highlight=False)

    say(f"SFT on {scale.train} gold pairs")
    few = _sft_on_few(problem, stories, scale, trial.seed)
    say("SFT on posterior samples")
    ample = _sft_on_many(lm, stories, scale, trial.seed)
    say("GFlowNet")
    gfn = _gflownet(trial, few, lm, stories, scale)
    samplers = {
        PAPERS_PROMPT: Sampler(
            lm, lambda prompt: lm.context(fill(PAPER_PROMPT, prompt.fields).before)
        ),
        PROMPTING: Sampler(lm, problem.policy_ids),
        BEGINNING: Sampler(lm, lambda prompt: lm.context(prompt.fields["x"])),
        SFT_FEW: Sampler(few, problem.policy_ids),
        SFT_AMPLE: Sampler(ample, problem.policy_ids),
        GFN: Sampler(gfn.language_model(), problem.policy_ids),
    }
    say("held-out stories")
    proposals = (GFN, SFT_AMPLE, BEGINNING)
    rows = assess(problem, samplers, proposals, scale.draws, scale.proposals, trial.seed)
    evaluations = {SFT_FEW: 0, SFT_AMPLE: 0, GFN: gfn.budget.reward_evaluations}
    return [
        Row(row.method, {**row.metrics, "evaluations": float(evaluations[row.method])})
        if row.method in evaluations
        else row
        for row in rows
    ]


def _sft_on_few(problem: Problem, stories: Split, scale: Scale, seed: int) -> LanguageModel:
    """SFT on four fifths of the gold pairs, stopped where the likelihood of the last fifth is best."""
    pairs = _pairs(problem, stories.train)
    cut = max(1, len(pairs) // 5)
    held, used = pairs[:cut], pairs[cut:]
    best: list[tuple[float, dict[str, bytes]]] = []

    def validate(policy: Policy, step: int) -> dict[str, float]:
        log_q = [
            sequence_log_q(
                policy.language_model(),
                problem.policy_ids(problem.by_id[pair.prompt]),
                problem.moves(problem.by_id[pair.prompt]),
                [pair.tokens.tolist()],
            )[0]
            for pair in held
        ]
        loss = -float(np.mean(log_q))
        if not best or loss < best[0][0]:
            best[:] = [(loss, policy.adapter_files())]
        return {"validation_loss": loss}

    settings = SFTSettings(
        steps=scale.few_steps,
        batch_size=16,
        learning_rate=LEARNING_RATE,
        lora_alpha=LORA_ALPHA,
        warmup_steps=5,
        evaluate_every_steps=2,
    )
    trained = train_sft([problem], used, settings, seed, validate)
    trained.policy.load_adapter(best[0][1])
    return trained.language_model()


def _sft_on_many(lm: LanguageModel, stories: Split, scale: Scale, seed: int) -> LanguageModel:
    """SFT on (X, Z, Y) drawn from the LM itself: its optimum is the posterior."""
    drawn = joint_samples(
        lm, [story["x"] for story in stories.unlabelled[: scale.joint]], scale.joint_each, seed
    )
    problem = build_problem(problem_config(drawn, stories.test), lm)
    settings = SFTSettings(
        steps=scale.ample_steps,
        batch_size=32,
        learning_rate=LEARNING_RATE,
        lora_alpha=LORA_ALPHA,
    )
    return train_sft([problem], _pairs(problem, drawn), settings, seed).language_model()


def _pairs(problem: Problem, stories: Sequence[Mapping[str, str]]) -> list[Trajectory]:
    return [
        given(problem, prompt, problem.lm.encode(story["middle"]))
        for prompt, story in zip(problem.prompts, stories, strict=True)
    ]


def _gflownet(
    trial: Trial, few: LanguageModel, lm: LanguageModel, stories: Split, scale: Scale
) -> Trained:
    """The GFlowNet: from that SFT, merged, by rewards for X and Y of stories whose Z it never sees.

    The reward stays that of the base LM.
    """
    start = merged(few, trial.directory / "sft")
    without_z = [{"x": story["x"], "y": story["y"]} for story in stories.unlabelled]
    config = problem_config(without_z, stories.test, reward_model="pocket")
    return train_gflownet(
        build_problem(config, start),
        lm,
        scale.gflownet,
        trial.directory / "gflownet",
        trial.seed,
    )
