"""The five ways to label a sentence: zero-shot, in-context, SFT, and a latent rationale by GFN, with EM.

Prompts, labels and the shape of the reward are those of the paper's section 4.3. One difference: ⊤ is
the comma with which Y begins, not the end-of-sequence token, which the base LM never writes there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from baselines.sft import SFTSettings, train_sft
from baselines.trained import given
from experiments.subjectivity.data import Item
from posteriori.commands.local import train_locally
from posteriori.config import ProblemConfig, RunConfig
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.pocket.reviews import CLASSES, RATIONALES
from posteriori.predictive import answer_scores, from_answers, from_scores
from posteriori.problems import Problem, build_problem
from posteriori.problems.wishful import with_wishful
from posteriori.seams import Prompt
from posteriori.tree import TreeBuilder

FloatArray = NDArray[np.float64]

WORDS: Final = sorted(
    {f" {word}" for reasons in RATIONALES.values() for reason in reasons for word in reason.split()}
)
"""The alphabet of Z. Over its whole vocabulary a model of this size writes no words on real text."""
QUESTION: Final = 'Classify this movie review as objective or subjective: "{text}"'
RATIONALE_TOKENS: Final = 5
CONTEXTS_PER_TREE: Final = 16
CHAINS: Final = 10
"""Rationales sampled for a test item."""
WISHFUL_PER_ITEM: Final = 20
M_STEP: Final = {"rounds": 1, "chains_per_prompt": 16, "prompts_per_step": 8}
PENALTY_NATS: Final = 5.0
"""The paper's 50 makes log R jump by 50 at every prefix that says nothing of the label yet, and such jumps
drown everything else in the loss: the run that had it ended below the untrained LM."""
REVEAL: Final = "{x} {label} because it is"


@dataclass(frozen=True)
class Effort:
    """How long the trained methods train."""

    sft_steps: int
    learner_steps: int
    em_steps: int
    m_steps: int


def _question(item: Item) -> str:
    return QUESTION.format(text=item.text)


def accuracy(chosen: Sequence[str | None], items: Sequence[Item]) -> float:
    """Share of items labelled right; one without a label is wrong."""
    return float(np.mean([a == item.label for a, item in zip(chosen, items, strict=True)]))


# ------------------------------------------------------------------------------ direct labels


def direct(lm: LanguageModel, contexts: Sequence[str]) -> list[str]:
    """The label that the LM prefers right behind each context; what contexts share is read once."""
    labels = [lm.encode(f" {label}") for label in CLASSES]
    chosen = []
    for start in range(0, len(contexts), CONTEXTS_PER_TREE):
        builder = TreeBuilder()
        ends = []
        for context in contexts[start : start + CONTEXTS_PER_TREE]:
            root = builder.path(-1, lm.context(context))[-1]
            ends.append([builder.path(root, label) for label in labels])
        (edges,) = lm.edge_log_probs([builder.build()])
        scores = [[edges[path].sum() for path in paths] for paths in ends]
        chosen += [CLASSES[int(np.argmax(row))] for row in scores]
    return chosen


def zero_shot(lm: LanguageModel, test: Sequence[Item]) -> float:
    """Accuracy without any labelled item."""
    return accuracy(direct(lm, [f"{_question(item)} It is" for item in test]), test)


def in_context(
    lm: LanguageModel, training: Sequence[Item], test: Sequence[Item], seed: int
) -> tuple[float, float]:
    """(accuracy, number of demonstrations): shuffled, as many as the model's context holds."""
    longest = max(len(lm.context(f"{_question(item)} It is")) for item in test) + 2
    demonstrations = ""
    used = 0
    for item in random.Random(seed).sample(list(training), len(training)):
        longer = f"{demonstrations}{_question(item)} It is {item.label}. "
        if len(lm.context(longer)) + longest > lm.context_tokens:
            break
        demonstrations, used = longer, used + 1
    contexts = [f"{demonstrations}{_question(item)} It is" for item in test]
    return accuracy(direct(lm, contexts), test), float(used)


def supervised(
    lm: LanguageModel, training: Sequence[Item], test: Sequence[Item], steps: int, seed: int
) -> float:
    """Accuracy after maximum likelihood on the labels, normalised over the two of them."""
    config = ProblemConfig.model_validate(
        {
            "name": "label",
            "kind": "tempered",
            "prompts": [{"x": f"{_question(item)} It is", "id": str(i)} for i, item in enumerate(training)],
            "alphabet": [f" {label}" for label in CLASSES],
            "stop": ".",
            "max_tokens": 1,
        }
    )  # fmt: skip
    problem = build_problem(config, lm)
    pairs = [
        given(problem, prompt, lm.encode(f" {item.label}"))
        for prompt, item in zip(problem.prompts, training, strict=True)
    ]
    settings = SFTSettings(steps=steps, batch_size=min(16, len(pairs)), warmup_steps=5)
    tuned = train_sft([problem], pairs, settings, seed).language_model()
    return accuracy(direct(tuned, [f"{_question(item)} It is" for item in test]), test)


# --------------------------------------------------------------------------- latent rationales


def _prompt(item: Item, identity: str) -> dict[str, str]:
    return {
        "id": identity,
        "x": f"{_question(item)} This review is",
        "label": item.label,
        "y": ANSWERS[item.label],
    }


ANSWERS: Final = {label: f", so it is {label}." for label in CLASSES}
"""Y of each label."""


def problem_config(training: Sequence[Item]) -> dict[str, Any]:
    """The posterior p(Z | X, Y) of a run file, wrong labels penalised."""
    return {
        "name": "subjectivity",
        "kind": "reasoning",
        "prompts": [_prompt(item, str(i)) for i, item in enumerate(training)],
        "labels": list(ANSWERS.values()),
        "alphabet": WORDS,
        "stop": ",",
        "max_tokens": RATIONALE_TOKENS,
        "wrong_label_penalty_nats": PENALTY_NATS,
    }


def run_config(training: Sequence[Item], effort: Effort, seed: int, model: str, em: bool) -> Any:
    """The run file."""
    steps = effort.em_steps if em else effort.learner_steps
    return {
        "run": "em" if em else "gfn",
        "model": model,
        "seed": seed,
        "oracle_max_strings": 0,
        "problems": [problem_config(training)],
        "sampling": {"engine": "transformers", "group_size": 8, "groups_in_flight": 8},
        "replay": {"samples_per_insert": 2.0, "prioritised_share": 0.5, "recent_share": 0.25},
        "learner": {
            "steps": steps,
            "objective": "vargrad",
            "prompts_per_step": 8,
            "trajectories_per_prompt": 8,
            "huber_delta_nats": 5.0,
            "learning_rate": 2e-3,
            "warmup_steps": 10,
            "checkpoint_every_steps": 10_000,
            "evaluate_every_steps": 10_000,
        },
        **({"em": M_STEP | {"m_steps": effort.m_steps}} if em else {}),
    }


def rationales(
    lm: LanguageModel,
    training: Sequence[Item],
    test: Sequence[Item],
    effort: Effort,
    seed: int,
    directory: Path,
    *,
    em: bool,
) -> dict[str, float]:
    """Train q(Z | X) on labelled items; accuracy on test items, whose label it does not see.

    Args:
        lm: the base LM.
        training, test: items.
        effort: steps.
        seed: of the run and the chains.
        directory: of the run, new.
        em: let an M step fit p(Y | X, Z) halfway.
    """
    config = RunConfig.model_validate(run_config(training, effort, seed, lm.name, em))
    problem = build_problem(config.problems[0], lm)
    problem = with_wishful(problem, REVEAL, WISHFUL_PER_ITEM, seed)
    run = train_locally(config, [problem], directory=directory, lm=lm)
    answers = lm
    if em:
        (_, answers), *_ = problem.reward.answer.terms  # type: ignore[attr-defined]
    found = label_by_chains(run.policy(), answers, problem, test, seed)
    losses = [row["loss"] for row in run.history if "loss" in row]
    return {
        **found,
        "trajectories": float(run.trajectories),
        "loss": losses[-1],
    }


def base_chains(lm: LanguageModel, test: Sequence[Item], seed: int) -> dict[str, float]:
    """Accuracy of rationales that the base LM writes: chain of thought without training."""
    problem = build_problem(ProblemConfig.model_validate(problem_config(test[:1])), lm)
    return label_by_chains(lm, lm, problem, test, seed)


def label_by_chains(
    sampler: LanguageModel,
    answers: LanguageModel,
    problem: Problem,
    test: Sequence[Item],
    seed: int,
) -> dict[str, float]:
    """Sample rationales of each item, let p(Y | X, Z) label each, and vote.

    Returns:
        ``accuracy`` of the votes, as in the paper; ``accuracy_mean`` of the mean of p(y | x, z);
        ``agreement``: mean share of the winning vote; ``chains``: distinct rationales an item.
    """
    voted: list[str | None] = []
    averaged: list[str | None] = []
    agreement, distinct = [], []
    for index, item in enumerate(test):
        prompt = _as_prompt(item)
        moves = problem.moves(prompt)
        drawn = sample(sampler, problem.policy_ids(prompt), moves, CHAINS, 10_000 * seed + index)
        chains = [tuple(one.tokens) for one in drawn]
        known = list(dict.fromkeys(chains))
        scores = answer_scores(problem, answers, prompt, known, list(ANSWERS.values()))
        rows = scores[[known.index(chain) for chain in chains]]
        votes = from_answers([CLASSES[k] for k in rows.argmax(axis=1)])
        voted.append(votes.best)
        averaged.append(from_scores(CLASSES, rows).best)
        agreement.append(votes.probabilities.max())
        distinct.append(len(known))
    return {
        "accuracy": accuracy(voted, test),
        "accuracy_mean": accuracy(averaged, test),
        "agreement": float(np.mean(agreement)),
        "chains": float(np.mean(distinct)),
    }


def _as_prompt(item: Item) -> Prompt:
    fields = _prompt(item, "test")
    return Prompt(fields.pop("id"), fields)
