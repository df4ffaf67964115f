"""One seed: a GFlowNet for each temperature, and what needs no training, on held-out beginnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from baselines import local, search
from baselines.draws import Draws
from experiments.continuation.diversity import Embedder, distinct, diversity
from experiments.continuation.stories import JOB, beginnings, problem_config
from experiments.harness import Row, Trial
from posteriori import metrics
from posteriori.commands.local import train_locally
from posteriori.config import LearnerConfig, ReplayConfig, RunConfig, SamplingConfig
from posteriori.lm import LanguageModel
from posteriori.oracle.enumeration import enumerate_posterior, exact_log_q
from posteriori.problems import Problem, build_problem
from posteriori.seams import Prompt
from posteriori.sharpened import write_sharpened

TEMPERATURES = (0.8, 0.5)

MAX_STRINGS = 20_000

BASE = "base LM"
NUCLEUS = "nucleus .95"
GREEDY = "greedy"
BEAM = "beam"
BEAM_5 = "beam x5"
DIVERSE = "diverse beam"
DIVERSE_5 = "diverse beam x5"


def gfn(temperature: float) -> str:
    """Row of the GFlowNet."""
    return f"GFlowNet, T = {temperature:g}"


def tempering(temperature: float) -> str:
    """Row of token-level tempering."""
    return f"token tempering, T = {temperature:g}"


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        train, test: beginnings.
        samples: of each method for each held-out beginning, as in the paper.
        weighted: draws of the samplers with a known log q, for log Ẑ and KL(q‖σ).
        job_train, job_test: beginnings of one plot; the posteriors of the latter are enumerated.
        steps, job_steps: of the learner.
    """

    train: int = 400
    test: int = 18
    samples: int = 20
    weighted: int = 128
    job_train: int = 40
    job_test: int = 6
    steps: int = 200
    job_steps: int = 50


QUICK = Scale(
    train=6,
    test=1,
    samples=3,
    weighted=8,
    job_train=6,
    job_test=1,
    steps=1,
    job_steps=1,
)

Sampler = Callable[[Problem, Prompt, int, int], Draws]


def run(trial: Trial) -> list[Row]:
    """Rows of all methods."""
    scale = QUICK if trial.quick else Scale()
    lm = trial.load("pocket")
    stories = beginnings(trial.seed, scale.train, scale.test)
    jobs = beginnings(trial.seed, scale.job_train, scale.job_test, JOB)
    embedder = Embedder(lm, [story["next"] for story in stories.train])
    untempered = build_problem(problem_config(stories.test, 1.0), lm)
    found: dict[str, dict[str, float]] = {}

    def say(what: str) -> None:
        trial.console.print(f"  {what}", highlight=False)

    rivals: dict[str, Sampler] = {
        BASE: local.sample,
        NUCLEUS: partial(local.sample, top_p=0.95),
        GREEDY: local.greedy,
        BEAM: search.beam,
        BEAM_5: partial(search.beam, times=5),
        DIVERSE: search.diverse_beam,
        DIVERSE_5: partial(search.diverse_beam, times=5),
    }
    for temperature in TEMPERATURES:
        rivals[tempering(temperature)] = partial(local.sample, temperature=temperature)
    say("what needs no training")
    for name, sampler in rivals.items():
        found[name] = _frontier(untempered, sampler, embedder, scale.samples, trial.seed)

    for temperature in TEMPERATURES:
        say(f"GFlowNet, T = {temperature:g}")
        policy = _train(trial, lm, stories.train, temperature, scale.steps, enumerable=False)
        name = gfn(temperature)
        sampler = partial(local.sample, lm=policy)
        found[name] = _frontier(untempered, sampler, embedder, scale.samples, trial.seed)
        problem = build_problem(problem_config(stories.test, temperature), lm)
        tempered = rivals[tempering(temperature)]
        found[name] |= _divergence(problem, sampler, sampler, scale.weighted, trial.seed)
        found[tempering(temperature)] |= _divergence(
            problem, tempered, sampler, scale.weighted, trial.seed
        )
        say(f"GFlowNet on one plot, T = {temperature:g}")
        trained = _train(trial, lm, jobs.train, temperature, scale.job_steps, enumerable=True)
        problem = build_problem(problem_config(jobs.test, temperature, enumerable=True), lm)
        samplers = {name: (trained, 1.0), tempering(temperature): (lm, temperature)}
        for sampled, distances in _exact(problem, samplers).items():
            found[sampled] |= distances
    return [Row(name, row) for name, row in found.items()]


def _train(
    trial: Trial,
    lm: LanguageModel,
    stories: Sequence[dict[str, str]],
    temperature: float,
    steps: int,
    enumerable: bool,
) -> LanguageModel:
    learner = LearnerConfig(
        steps=steps,
        prompts_per_step=6,
        trajectories_per_prompt=12,
        learning_rate=2e-3,
        huber_delta_nats=5.0,
        evaluate_every_steps=steps,
        checkpoint_every_steps=steps,
    )
    sampling = SamplingConfig(
        group_size=16,
        base_share=0.25,
        tempered_share=0.25,
        temperature_range=(temperature, 1.5),
        uniform_share=0.0,
    )
    replay = ReplayConfig(samples_per_insert=4.0, recent_share=0.5, prioritised_share=0.3)
    policy_base = lm
    if not enumerable:
        # Over all tokens the end of the text in the middle of a story is so unlikely that SubTB spends itself on
        # how unlikely (docs/log.md); VarGrad looks at whole stories alone. On-policy, from token tempering.
        whole = {"objective": "vargrad", "prompts_per_step": 8, "trajectories_per_prompt": 16}
        learner = learner.model_copy(
            update={**whole, "learning_rate": 1.5e-3, "huber_delta_nats": 10.0}
        )
        sampling = SamplingConfig(
            group_size=16, base_share=0.0, tempered_share=0.0, uniform_share=0.0
        )
        replay = ReplayConfig(recent_share=1.0, prioritised_share=0.0)
        sharp = write_sharpened(lm.name, temperature, trial.directory / f"pocket-{temperature:g}")
        policy_base = trial.load(str(sharp))
    config = RunConfig(
        run="continuation",
        model=policy_base.name,
        seed=trial.seed,
        oracle_max_strings=0,
        problems=(problem_config(stories, temperature, enumerable),),
        sampling=sampling,
        replay=replay,
        learner=learner,
    )
    name = f"gflownet-{temperature:g}{'-jobs' if enumerable else ''}"
    return train_locally(config, directory=trial.directory / name, lm=policy_base).policy()


def _frontier(
    problem: Problem, sampler: Sampler, embedder: Embedder, n: int, seed: int
) -> dict[str, float]:
    """Likelihood and diversity of n samples, mean over the X's; R is p(Z⊤ | X) itself here."""
    rows = []
    for prompt in problem.prompts:
        draws = sampler(problem, prompt, n, seed)
        texts = [problem.text(z) for z in draws.tokens]
        rows.append(
            {
                "max_log_p": float(draws.log_reward.max()),
                "mean_log_p": float(draws.log_reward.mean()),
                "diversity": diversity(embedder(texts)) if len(texts) > 1 else 0.0,
                "distinct_2": distinct(draws.tokens, 2),
                "unique": metrics.unique_fraction(draws.tokens),
                "token_forwards": draws.budget.token_forwards / n,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _divergence(
    problem: Problem, sampler: Sampler, proposal: Sampler, n: int, seed: int
) -> dict[str, float]:
    """KL(q‖σ) = log Z − E_q[log R/q], log Ẑ from the draws of both samplers as one mixture.

    log Ẑ is below log Z on average, and so is the divergence reported.
    """
    gaps = []
    for prompt in problem.prompts:
        own = sampler(problem, prompt, n, seed + 1)
        other = proposal(problem, prompt, n, seed + 2)
        log_z = max(
            metrics.log_z_estimate(draws.log_reward - draws.log_q).value for draws in (own, other)
        )
        gaps.append(log_z - float((own.log_reward - own.log_q).mean()))
    return {"kl_q_posterior": float(np.mean(gaps))}


def _exact(
    problem: Problem, samplers: Mapping[str, tuple[LanguageModel, float]]
) -> dict[str, dict[str, float]]:
    """Distances from the enumerated posterior, mean over the X's.

    Args:
        problem: over the sentences of one plot.
        samplers: model and token-level temperature of each.
    """
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    for prompt in problem.prompts:
        exact = enumerate_posterior(
            problem.name, prompt, problem.moves(prompt), problem.reward, MAX_STRINGS
        )
        for name, (lm, temperature) in samplers.items():
            log_q = exact_log_q(exact.tree, lm, problem.policy_ids(prompt), temperature)
            kl = metrics.kl_divergence(exact.log_sigma, log_q)
            rows[name].append((kl, metrics.total_variation(exact.log_sigma, log_q)))
    means = {name: np.mean(found, axis=0) for name, found in rows.items()}
    return {
        name: {"exact_kl": float(kl), "exact_tv": float(tv)} for name, (kl, tv) in means.items()
    }
