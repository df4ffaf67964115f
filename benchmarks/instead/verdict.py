"""One posterior for each of very many X's, all of them enumerable: a verdict in two halves, as a pattern asks.

"a dull film. the music is [truly warm but never empty].": X is what stands before the brackets, Z within them
keeps the pattern, σ(Z) ∝ p(Z. | X) over the 450 strings that do. Films, parts and words are those of pocket's own
reviews. A policy is trained on some X's and asked for others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posteriori import config as run_file
from posteriori import metrics
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import (
    ExactPosterior,
    FloatArray,
    enumerate_posterior,
    exact_log_q,
)
from posteriori.oracle.strings import StringTree
from posteriori.problems import Problem, build_problem
from posteriori.seams import Prompt

RUN_FILE = Path(__file__).with_name("verdict.yaml")
FILMS = ("film", "movie", "comedy", "drama", "thriller", "story", "picture", "show")
PARTS = ("script", "music", "acting", "plot", "ending", "cast", "camera", "humor")
WORDS = (
    "funny", "charming", "moving", "clever", "warm", "brilliant", "lovely", "exciting", "honest", "fresh",
    "boring", "silly", "empty", "dull", "clumsy", "cheap", "tired", "ugly", "confused", "lazy",
)  # fmt: skip

TRAINED = 1080
HELD_OUT = 200
QUICK = 4
"""X's of each kind in the quick form."""

MAX_STRINGS = 2000


def prompts(n: int, seed: int) -> list[dict[str, str]]:
    """n different X's; the same seed gives the same ones, in the same order."""
    every = list(itertools.product(WORDS, FILMS, PARTS))
    chosen = np.random.default_rng(seed).permutation(len(every))[:n]
    return [{"x": "a {} {}. the {} is".format(*every[index])} for index in chosen]


def config(quick: bool = False) -> RunConfig:
    """The run file, with its prompts: held-out ones are none of the trained ones."""
    trained, held_out = (QUICK, QUICK) if quick else (TRAINED, HELD_OUT)
    told = prompts(trained + held_out, seed=0)
    parsed = run_file.load(RUN_FILE)
    section = parsed.problems[0].model_copy(
        update={"prompts": tuple(told[:trained]), "test_prompts": tuple(told[trained:])}
    )
    return parsed.model_copy(update={"problems": (section,)})


@dataclass(frozen=True, eq=False)
class Ground:
    """The problem with the exact posteriors of its held-out X's.

    Attributes:
        exact: of ``problem.test_prompts``, in their order.
    """

    config: RunConfig
    lm: LanguageModel
    problem: Problem
    exact: Sequence[ExactPosterior]

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The held-out X's."""
        return self.problem.test_prompts

    def log_q(self, sampler: LanguageModel, held_out: int) -> FloatArray:
        """Exact log q of every string under a base LM or policy; nats, [count]."""
        ids = self.problem.policy_ids(self.prompts[held_out])
        return exact_log_q(self.exact[held_out].tree, sampler, ids)

    def distance(self, sampler: LanguageModel) -> dict[str, float]:
        """TV, KL(σ‖q) and the ESS fraction of weights R/q, averaged over the held-out X's."""
        found = []
        for place, exact in enumerate(self.exact):
            log_q = self.log_q(sampler, place)
            found.append(
                (
                    metrics.total_variation(exact.log_sigma, log_q),
                    metrics.kl_divergence(exact.log_sigma, log_q),
                    metrics.exact_ess_fraction(exact.log_sigma, log_q),
                )
            )
        names = ("total_variation", "kl_posterior_q", "ess_fraction")
        return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def ground(settings: RunConfig, oracle: Path) -> Ground:
    """Build the problem; log R of all strings of the held-out X's is kept in the file ``oracle``."""
    lm = LanguageModel.load(settings.model)
    problem = build_problem(settings.problems[0], lm)
    held_out = problem.test_prompts
    moves = problem.moves(held_out[0])
    tree = StringTree.of(moves, MAX_STRINGS)
    if oracle.exists():
        rewards = np.load(oracle)
    else:
        rewards = np.stack(
            [
                enumerate_posterior(
                    problem.name, prompt, moves, problem.reward, MAX_STRINGS
                ).log_reward
                for prompt in held_out
            ]
        )
        oracle.parent.mkdir(parents=True, exist_ok=True)
        np.save(oracle, rewards, allow_pickle=False)
    return Ground(settings, lm, problem, [ExactPosterior(tree, row) for row in rewards])
