"""One seed: train the samplers, draw middles for held-out stories, score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.sft import SFTSettings, train_sft
from baselines.trained import given
from experiments.harness import Row, Trial
from experiments.infilling.assess import Sampler, assess
from experiments.infilling.stories import (
    PAPER_PROMPT,
    Split,
    joint_samples,
    problem_config,
    split,
)
from experiments.merging import merged
from posteriori.commands.local import train_locally
from posteriori.config import (
    GoldConfig,
    LearnerConfig,
    ReplayConfig,
    RunConfig,
    SamplingConfig,
)
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
        train: stories with a gold Z, for SFT and for the GFlowNet.
        unlabelled: further stories: X and Y for the GFlowNet, X for the joint samples of the ample SFT.
        joint_each: (Z, Y) sampled for each X of the ample SFT.
        test: held-out stories.
        draws: middles of each method for each held-out story that are scored.
        proposals: draws of each proposal behind log Z and the posterior's own row.
        gfn_steps, ample_steps: optimiser steps.
        few_steps: SFT on few pairs stops at the best validation loss before that.
    """

    train: int = 16
    unlabelled: int = 100
    joint_each: int = 20
    test: int = 40
    draws: int = 6
    proposals: int = 12
    gfn_steps: int = 600
    ample_steps: int = 120
    few_steps: int = 16


QUICK = Scale(
    train=8,
    unlabelled=4,
    joint_each=3,
    test=3,
    draws=2,
    proposals=3,
    gfn_steps=2,
    ample_steps=2,
    few_steps=2,
)


def run(trial: Trial) -> list[Row]:
    """Rows of all methods."""
    scale = QUICK if trial.quick else Scale()
    lm = LanguageModel.load("pocket")
    stories = split(trial.seed, scale.train, scale.unlabelled, scale.test)
    problem = build_problem(problem_config(stories.train, stories.test), lm)

    def say(what: str) -> None:
        trial.console.print(f"  {what}", highlight=False)

    say(f"SFT on {scale.train} gold pairs")
    few = _sft_on_few(problem, stories, scale, trial.seed)
    say("SFT on posterior samples")
    ample = _sft_on_many(lm, stories, scale, trial.seed)
    say("GFlowNet")
    gfn = _gflownet(trial, few, stories, scale)
    samplers = {
        PAPERS_PROMPT: Sampler(
            lm, lambda prompt: lm.context(fill(PAPER_PROMPT, prompt.fields).before)
        ),
        PROMPTING: Sampler(lm, problem.policy_ids),
        BEGINNING: Sampler(lm, lambda prompt: lm.context(prompt.fields["x"])),
        SFT_FEW: Sampler(few, problem.policy_ids),
        SFT_AMPLE: Sampler(ample, problem.policy_ids),
        GFN: Sampler(gfn, problem.policy_ids),
    }
    say("held-out stories")
    proposals = (GFN, SFT_AMPLE, BEGINNING)
    return assess(problem, samplers, proposals, scale.draws, scale.proposals, trial.seed)


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
    drawn = joint_samples(lm, [story["x"] for story in stories.unlabelled], scale.joint_each, seed)
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


def _gflownet(trial: Trial, start: LanguageModel, stories: Split, scale: Scale) -> LanguageModel:
    """The GFlowNet: rewards for X and Y of all stories but the held-out ones, gold Z for the few.

    The policy's base is the SFT, merged. The reward stays that of the base LM. VarGrad alone: SubTB
    also fits log q(⊤) behind every half sentence, some -20 nats that no draw ever meets.
    """
    home = trial.directory / "sft"
    start = merged(start, home)
    without_z = [{"x": story["x"], "y": story["y"]} for story in stories.unlabelled]
    training = [*stories.train, *without_z]
    problem = problem_config(training, stories.test, reward_model="pocket")
    config = RunConfig(
        run="infilling",
        model=str(home),
        seed=trial.seed,
        oracle_max_strings=0,
        problems=(problem.model_copy(update={"gold": GoldConfig(template="{middle}")}),),
        sampling=SamplingConfig(
            group_size=8,
            base_share=0.0,
            tempered_share=0.25,
            temperature_range=(0.7, 1.5),
            uniform_share=0.0,
        ),
        replay=ReplayConfig(recent_share=0.75),
        learner=LearnerConfig(
            steps=scale.gfn_steps,
            prompts_per_step=4,
            trajectories_per_prompt=8,
            objective="vargrad",
            learning_rate=5e-4,
            evaluate_every_steps=scale.gfn_steps,
            checkpoint_every_steps=scale.gfn_steps,
        ),
    )
    return train_locally(config, directory=trial.directory / "gflownet", lm=start).policy()
