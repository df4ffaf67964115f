"""A constraint that binds late: keywords in order, somewhere in Z, and a sum of token ids modulo 7.

Nearly every prefix can still be completed, so masks and viability say nothing until the last tokens, while
few draws of the LM satisfy it. R = p(z | x) · c(z), z of fixed length; p as the Markov LM gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posteriori import metrics
from posteriori.lm import LanguageModel
from posteriori.metrics import FloatArray
from posteriori.moves import DEAD, LegalMoves
from posteriori.oracle.dynamic import MarkovPosterior
from posteriori.problems.automata import Automaton

KEYWORDS = ("ba", "so", "mi", "ta", "le", "do")
MODULUS = 7
RESIDUE = 3


def ordered_keywords(
    keywords: Sequence[int], alphabet: Sequence[int], modulus: int = MODULUS, residue: int = RESIDUE
) -> Automaton:
    """Automaton of "these tokens occur in this order, not necessarily side by side, and Σ ids ≡ residue".

    State = keywords seen · modulus + sum so far; a keyword counts when it is the next one awaited.
    """
    seen, total = np.divmod(np.arange((len(keywords) + 1) * modulus), modulus)
    ids = np.asarray(alphabet, dtype=np.int64)
    awaited = np.append(np.asarray(keywords, dtype=np.int64), DEAD)[seen]
    advanced = seen[:, None] + (awaited[:, None] == ids[None])
    next_state = advanced * modulus + (total[:, None] + ids[None]) % modulus
    accepting = (seen == len(keywords)) & (total == residue)
    return next_state.astype(np.int64), accepting


def automaton(lm: LanguageModel, alphabet: Sequence[int]) -> Automaton:
    """The row's constraint, as its run file names it."""
    return ordered_keywords([lm.one_token(word, "Keyword") for word in KEYWORDS], alphabet)


def unconstrained(exact: MarkovPosterior) -> MarkovPosterior:
    """The same likelihood without the constraint."""
    moves = exact.moves
    free = LegalMoves.free(moves.alphabet, moves.stop, moves.min_tokens, moves.max_tokens)
    return MarkovPosterior(exact.table, free, exact.prompt_ids, exact.token_weight, exact.final)


def log_probability(exact: MarkovPosterior) -> float:
    """log P(c) among strings of that length, nats."""
    return exact.log_z - unconstrained(exact).log_z


def viability_filter(
    exact: MarkovPosterior, particles: int, runs: int, seed: int, ess_threshold: float = 0.5
) -> FloatArray:
    """log Ẑ of bootstrap particle filters that keep a particle while its prefix can still be completed.

    Proposals are the LM's own over the alphabet, blind to the constraint; -inf where no particle is left.
    """
    moves, table = exact.moves, exact.table
    log_p = table.log_p[:, moves.alphabet]
    log_mass = np.logaddexp.reduce(log_p, axis=1)
    cumulative = np.cumsum(np.exp(log_p - log_mass[:, None]), axis=1)
    rng = np.random.default_rng(seed)
    shape = (runs, particles)
    contexts = np.full(shape, table.context_of(exact.prompt_ids))
    states = np.zeros(shape, dtype=np.int64)
    log_weights, log_z = np.zeros(shape), np.zeros(runs)
    for length in range(moves.max_tokens):
        log_weights = log_weights + log_mass[contexts]
        drawn = (cumulative[contexts] <= rng.random(shape)[..., None]).sum(axis=2)
        drawn = np.minimum(drawn, len(moves.alphabet) - 1)
        contexts = table.following(contexts, moves.alphabet[drawn])
        states = moves.next_state[states, drawn]
        legal = np.array([moves.row(length + 1, s).any() for s in range(len(moves.accepting))])
        log_weights = np.where(legal[states], log_weights, -np.inf)
        for run in range(runs):
            weights = log_weights[run]
            if not np.isfinite(weights).any():
                continue
            if metrics.effective_sample_size(weights) < ess_threshold * particles:
                log_z[run] += metrics.log_mean_exp(weights)
                chosen = rng.choice(particles, particles, p=metrics.normalised_weights(weights))
                contexts[run], states[run] = contexts[run, chosen], states[run, chosen]
                log_weights[run] = 0.0
    found: FloatArray = log_z + np.array([metrics.log_mean_exp(row) for row in log_weights])
    return found
