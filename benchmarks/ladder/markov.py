"""Rows of up to 32 tokens under a Markov language model: exact σ by dynamic programming.

The policy has full attention and no Markov table of its own, so its divergences are means over exact
draws of σ and over its own draws, with standard errors; nothing is binned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.ladder.ground import Ground, Known, Metrics, averaged
from posteriori import decoding, metrics
from posteriori.config import RunConfig
from posteriori.lm import LanguageModel, prefix_tree
from posteriori.metrics import FloatArray
from posteriori.moves import LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.oracle.markov import MarkovTable
from posteriori.oracle.scoring import sequence_log_q
from posteriori.problems import Problem, build_problems
from posteriori.seams import Prompt

DRAWS = 10_000
"""From σ and from q, over all trained X's together, and as many over the held-out ones."""

MEASURED_PROMPTS = 4
"""Trained and held-out X's that are measured, of each kind at most."""


def posterior(
    config: RunConfig, problem: Problem, prompt: Prompt, table: MarkovTable
) -> MarkovPosterior:
    """The exact posterior of one X of a Markov row.

    The likelihood is that of ``{z}{stop}`` for the kind ``tempered`` and of ``{z}`` for all others.
    """
    (section,) = config.problems
    moves = problem.moves(prompt)
    ids = tuple(problem.lm.context(prompt.fields["x"]))
    if section.kind == "tempered":
        return MarkovPosterior.tempered(table, moves, ids, section.temperature)
    nothing_behind = np.zeros(len(table.log_p))
    return MarkovPosterior(table, moves, ids, 1 / section.temperature, nothing_behind)


def reward_lm_of(config: RunConfig) -> str:
    """Name of the Markov LM that a run's reward reads."""
    (section,) = config.problems
    name = section.model or section.terms[0].model
    assert name is not None
    return name


def ground(config: RunConfig, draws: int = DRAWS) -> Ground:
    """Tabulate the reward LM and solve the posteriors of the measured X's."""
    lm = LanguageModel.load(config.model)
    problems = build_problems(config, lm)
    (problem,) = problems
    # σ does not depend on a lookahead, and its automaton is smaller without one.
    (section,) = config.problems
    blind = section.model_copy(update={"lookahead": None})
    (plain,) = build_problems(config.model_copy(update={"problems": (blind,)}), lm)
    table = MarkovTable.from_model(LanguageModel.load(reward_lm_of(config)).model)
    exact = {
        prompt.id: posterior(config, plain, prompt, table)
        for prompts in (problem.prompts, problem.test_prompts)
        for prompt in prompts[:MEASURED_PROMPTS]
    }
    known = [
        Known(
            problem=problem,
            prompt=prompt,
            held_out=prompt.id not in problem.by_id,
            log_z=exact[prompt.id].log_z,
            lengths=exact[prompt.id].length_marginal(),
            exact=exact[prompt.id],
        )
        for prompt in (*problem.prompts, *problem.test_prompts)
        if prompt.id in exact
    ]

    def measure(sampler: LanguageModel, seed: int) -> Metrics:
        counts = {kind: sum(x.held_out == kind for x in known) for kind in (True, False)}
        return averaged(
            [(x.held_out, distances(x, sampler, draws // counts[x.held_out], seed)) for x in known]
        )

    return Ground(config, lm, problems, known, measure)


def distances(known: Known, sampler: LanguageModel, draws: int, seed: int) -> Metrics:
    """Divergences of one X by ``draws`` exact draws of σ and as many of the sampler."""
    exact = known.exact
    assert isinstance(exact, MarkovPosterior)
    moves, ids = known.problem.moves(known.prompt), known.problem.policy_ids(known.prompt)
    theirs = exact.sample(draws, seed)
    log_w_sigma = exact.log_reward(theirs) - sequence_log_q(sampler, ids, moves, theirs)
    ours = decoding.sample(sampler, ids, moves, draws, seed + 1)
    tokens = [list(sample.tokens) for sample in ours]
    log_w_q = exact.log_reward(tokens) - np.array([sample.total_log_q for sample in ours])
    forward = metrics.mean_estimate(log_w_sigma - known.log_z)
    backward = metrics.mean_estimate(known.log_z - log_w_q)
    lengths = np.bincount([len(z) for z in tokens], minlength=len(known.lengths)) / draws
    return {
        "kl_posterior_q": forward.value,
        "kl_posterior_q error": forward.standard_error,
        "kl_q_posterior": backward.value,
        "kl_q_posterior error": backward.standard_error,
        # TV = E_σ (1 − q/σ)₊
        "total_variation": float(np.maximum(0.0, -np.expm1(known.log_z - log_w_sigma)).mean()),
        "ess_fraction": metrics.ess_fraction(log_w_q),
        "ess_fraction error": ess_error(log_w_q),
        "forward ess_fraction": forward_ess_fraction(log_w_sigma),
        "length_error": metrics.marginal_error(lengths, known.lengths),
        "validity": float(np.isfinite(log_w_q).mean()),
        "mean length": float(np.mean([len(z) for z in tokens])),
        "exact mean length": float(known.lengths @ np.arange(len(known.lengths))),
        "log_z": known.log_z,
    }


def forward_ess_fraction(log_weights_posterior: FloatArray) -> float:
    """n² / (Σ w Σ 1/w) of exact draws from σ: the same limit as the ESS of draws from q, but it sees
    modes that q misses (Blessing et al. 2024)."""
    return float(
        np.exp(
            -metrics.log_mean_exp(log_weights_posterior)
            - metrics.log_mean_exp(-log_weights_posterior)
        )
    )


def ess_error(log_weights: FloatArray, blocks: int = 10) -> float:
    """Standard error of the ESS fraction over blocks of the draws."""
    parts = [metrics.ess_fraction(block) for block in np.array_split(log_weights, blocks)]
    return metrics.mean_estimate(np.array(parts)).standard_error


def kl_by_position(
    known: Known, sampler: LanguageModel, draws: int, seed: int
) -> tuple[FloatArray, float]:
    """Mean KL(σ(· | prefix) ‖ q(· | prefix)) at each length over prefixes of exact draws, nats; ⊤ is a move.

    Their sum estimates KL(σ‖q). A draw has nothing more to say behind its ⊤.

    Returns:
        [max_tokens + 1], and the standard error of the sum.
    """
    exact = known.exact
    assert isinstance(exact, MarkovPosterior)
    moves, ids = exact.moves, known.problem.policy_ids(known.prompt)
    terms = [exact.conditional(length) for length in range(moves.max_tokens + 1)]
    found = np.zeros((draws, moves.max_tokens + 1))
    for row, z in enumerate(exact.sample(draws, seed)):
        log_q = _move_log_q(sampler, ids, known.problem.moves(known.prompt), z)
        states, history = moves.states(z), list(exact.prompt_ids)
        for length in range(len(z) + 1):
            log_sigma = terms[length][exact.table.context_of(history), states[length]]
            (here,) = np.nonzero(log_sigma > -np.inf)
            gap = log_sigma[here] - log_q[length, here]
            found[row, length] = float((np.exp(log_sigma[here]) * gap).sum())
            history += z[length : length + 1]
    total = metrics.mean_estimate(found.sum(axis=1))
    return found.mean(axis=0), total.standard_error


def stop_probabilities(
    known: Known, sampler: LanguageModel, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Mean P(⊤ | prefix) at each length under σ and under the sampler, over prefixes of σ.

    Both over the same exact draws, as long as they are at least that long; [max_tokens + 1], NaN where
    no draw is so long.
    """
    exact = known.exact
    assert isinstance(exact, MarkovPosterior)
    moves, ids = exact.moves, known.problem.policy_ids(known.prompt)
    ours_moves = known.problem.moves(known.prompt)
    strings = exact.sample(draws, seed)
    ours = np.full((draws, moves.max_tokens + 1), np.nan)
    theirs = ours.copy()
    terms = [np.exp(exact.conditional(length)[:, :, -1]) for length in range(moves.max_tokens + 1)]
    for row, z in enumerate(strings):
        states = moves.states(z)
        history = list(exact.prompt_ids)
        for length in range(len(z) + 1):
            context = exact.table.context_of(history)
            theirs[row, length] = terms[length][context, states[length]]
            if length < len(z):
                history.append(z[length])
        ours[row, : len(z) + 1] = np.exp(_move_log_q(sampler, ids, ours_moves, z)[:, -1])
    reached = ~np.isnan(theirs).all(axis=0)
    means = [np.full(moves.max_tokens + 1, np.nan) for _ in range(2)]
    for mean, values in zip(means, (theirs, ours), strict=True):
        mean[reached] = np.nanmean(values[:, reached], axis=0)
    return means[0], means[1]


def _move_log_q(
    sampler: LanguageModel, ids: Sequence[int], moves: LegalMoves, z: Sequence[int]
) -> FloatArray:
    """log q of every move at every prefix of a string, [n + 1, V + 1]."""
    tree, (nodes,) = prefix_tree(ids, [list(z)])
    ((_, logits),) = sampler.node_logits([tree], [np.asarray(nodes)], moves.column_tokens)
    return decoding.move_log_q(moves.path_scores(logits.double().cpu().numpy(), z))
