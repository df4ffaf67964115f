"""One seed: chain-of-thought prompting, the untrained policy, SFT, PPO, and the GFlowNet with and without gold.

All but prompting share the problem: alphabet, calculator, reward, size of adapter. SFT is given the
gold chains. The GFlowNet begins at that SFT, finds the same chains in its replay buffer, and explores X's
without a chain as PPO does, for as many reward evaluations; PPO stands there twice, from the base LM and
from the SFT. Both are also given a reward that prefers the question repeated to the right chain, as the paper's
does; their log R is measured under the right one all the same. Figures are shares of single draws at
temperature 1: q is meant to be a posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from actors.transformers_engine import TransformersEngine
from baselines.ppo import PPOSettings, train_ppo
from baselines.sft import SFTSettings, train_sft
from baselines.trainers import gold_pairs
from experiments.arithmetic import assess
from experiments.arithmetic.problem import (
    MISSPECIFIED,
    OPERANDS,
    SHOTS,
    TESTED_ACTIONS,
    WORKED,
    held_out,
    problem,
    run_config,
    write_items,
)
from experiments.harness import Row, Trial
from experiments.merging import merged
from posteriori.commands.local import train_locally
from posteriori.config import ProblemConfig
from posteriori.lm import LanguageModel, model_path
from posteriori.problems import Problem, build_problem, build_problems

COT, BASE, SFT, PPO = "CoT prompting", "base LM", "SFT", "PPO"
PPO_FROM_SFT = "PPO from that SFT"
GFN, UNSEEDED = "GFN", "GFN without gold"
PPO_MISLED = "PPO from that SFT, misspecified R"
GFN_MISLED = "GFN from that SFT, misspecified R"
WRITTEN: Mapping[str, Callable[[str], str]] = {
    "right chain": assess.right_chain,
    "the question repeated": lambda question: f" {question}",
    "first call alone": lambda question: f"{assess.right_chain(question).split(',')[0]},",
}
"""Chains whose log R is reported: actions from the sum that is asked for."""

DEMONSTRATIONS = 50
"""As many as the paper has."""

TRAINING_ITEMS = 250
TEST_ITEMS = 60
CHAINS = 3
"""Draws for each test X."""

STEPS = 400
SFT_STEPS = 150


def run(trial: Trial) -> list[Row]:
    """Rows of one seed; see :class:`experiments.harness.Experiment`."""
    quick = trial.quick
    data = trial.directory / "data"
    write_items(
        data,
        train=12 if quick else TRAINING_ITEMS,
        test=2 if quick else TEST_ITEMS,
        demonstrations=8 if quick else DEMONSTRATIONS,
        seed=trial.seed,
    )
    lm = trial.load("pocket")
    tests = {k: _test_problem(lm, data, k) for k in OPERANDS}
    assessment = _Assessment(tests, 1 if quick else CHAINS, trial)
    rows = [assessment.prompting(lm), assessment.policy(BASE, lm)]
    steps = 2 if quick else STEPS

    run_file = partial(run_config, data, seed=trial.seed, steps=steps)
    without_gold = run_file(gold=False)
    problems = build_problems(without_gold, lm)
    demonstrated = build_problems(run_file(gold=True), lm)
    sft = train_sft(
        demonstrated,
        gold_pairs(demonstrated),
        SFTSettings(steps=2 if quick else SFT_STEPS, batch_size=10),
        trial.seed,
    )
    sft.save(trial.directory / "sft")
    start = merged(sft.language_model(), trial.directory / "sft-merged")
    rows.append(assessment.policy(SFT, start, reward_evaluations=0, seconds=sft.seconds))

    def gflownet(
        name: str, lm: LanguageModel, *, gold: bool, reward_context: str = WORKED
    ) -> tuple[Row, int]:
        config = run_file(gold=gold, start=lm.name, reward_context=reward_context)
        done = train_locally(config, directory=trial.directory / name, lm=lm)
        cost = {"reward_evaluations": done.trajectories, "seconds": done.seconds}
        return assessment.policy(
            name, lm, trial.directory / name / "adapter", **cost
        ), done.trajectories

    def ppo(name: str, lm: LanguageModel, problems: list[Problem], evaluations: int) -> Row:
        settings = PPOSettings(prompts_per_step=8, samples_per_prompt=8, prompts_per_update=4)
        done = train_ppo(problems, settings.within(evaluations), trial.seed)
        done.save(trial.directory / name)
        cost = {"reward_evaluations": done.budget.reward_evaluations, "seconds": done.seconds}
        return assessment.policy(name, lm, trial.directory / name, **cost)

    learned, evaluations = gflownet(GFN, start, gold=True)
    rows.append(ppo(PPO, lm, problems, evaluations))
    for name, context in ((PPO_FROM_SFT, WORKED), (PPO_MISLED, MISSPECIFIED)):
        at_start = run_file(gold=False, start=start.name, reward_context=context)
        rows.append(ppo(name, start, build_problems(at_start, start), evaluations))
    rows.append(learned)
    rows.append(gflownet(UNSEEDED, lm, gold=False)[0])
    rows.append(gflownet(GFN_MISLED, start, gold=True, reward_context=MISSPECIFIED)[0])
    return [*rows, *assessment.reward()]


def _test_problem(lm: LanguageModel, data: Path, operands: int) -> Problem:
    """Held-out X's, with room for five operands."""
    section = problem(held_out(data, operands), TESTED_ACTIONS)
    return build_problem(ProblemConfig.model_validate(section), lm)


class _Assessment:
    """Rows of one seed, all on the same held-out X's."""

    def __init__(self, tests: dict[int, Problem], n: int, trial: Trial) -> None:
        self._tests = tests
        self._n = n
        self._trial = trial

    def prompting(self, lm: LanguageModel) -> Row:
        """Worked examples in the prompt, no calculator."""
        engine = self._engine(lm)
        found = {
            k: assess.accuracy(
                test, assess.thoughts(engine, test, lm, SHOTS, self._n, self._trial.seed)
            )
            for k, test in self._tests.items()
        }
        engine.close()
        return self._row(COT, {k: {**v, "valid": np.nan} for k, v in found.items()})

    def policy(
        self, method: str, lm: LanguageModel, adapter: Path | None = None, **cost: float
    ) -> Row:
        """The LM behind the policy's prompt, under an adapter if there is one."""
        engine = self._engine(lm)
        if adapter is not None:
            engine.add_adapter(1, adapter)
        version = 0 if adapter is None else 1
        found, log_r = {}, []
        for k, test in self._tests.items():
            drawn = assess.chains(engine, test, self._n, version, self._trial.seed)
            found[k] = assess.accuracy(test, drawn)
            log_r += assess.log_rewards(test, drawn)
            self._keep(method, k, drawn)
        engine.close()
        return self._row(method, found, log_r=float(np.mean(log_r)), **cost)

    def reward(self) -> list[Row]:
        """What log R says of the right chain and of degenerate ones."""
        rows = []
        for name, actions in WRITTEN.items():
            log_r = []
            for test in self._tests.values():
                drawn = {}
                for prompt in test.prompts:
                    question = prompt.fields["sum"]
                    drawn[prompt.id] = [assess.written(test, prompt, actions(question))]
                log_r += assess.log_rewards(test, drawn)
            rows.append(Row(f"log R: {name}", {"log_r": float(np.mean(log_r))}))
        return rows

    def _engine(self, lm: LanguageModel) -> TransformersEngine:
        return TransformersEngine(
            model_path(lm.name), device=self._trial.device, seed=self._trial.seed
        )

    def _keep(self, method: str, operands: int, drawn: dict[str, list[assess.Chain]]) -> None:
        """Leave the chains beside the run, to be read."""
        file = self._trial.directory / f"chains-{method.replace(' ', '-')}-{operands}.txt"
        lines = [f"{identity}:{chain.text}" for identity, found in drawn.items() for chain in found]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _row(self, method: str, found: dict[int, dict[str, float]], **cost: float) -> Row:
        metrics = {f"right{k}": row["right"] for k, row in found.items()}
        metrics["unparsed"] = float(np.mean([row["unparsed"] for row in found.values()]))
        valid = float(np.mean([row["valid"] for row in found.values()]))
        if not np.isnan(valid):
            metrics["valid"] = valid
        text = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        self._trial.console.print(f"{method}: {text}", highlight=False)
        return Row(method, {**metrics, **{key: float(value) for key, value in cost.items()}})
