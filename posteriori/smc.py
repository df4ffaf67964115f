"""Twisted sequential Monte Carlo: exact posterior samples from an inexact sampler, as particles grow.

K particles draw Z move by move from a proposal q. A positive twist ψ guesses the reward to come: a step
to s′ multiplies the weight by ψ(s′) / (ψ(s) q(z|s)), stopping by R(s⊤) / (ψ(s) q(⊤|s)), and where the
effective sample size falls below a threshold the particles, finished ones included, are resampled. Any ψ
leaves Ẑ = mean weight unbiased for Z(X) and the weighted particles exact as K → ∞ (Zhao et al. 2024,
section 3); a good one makes both precise. The products telescope, so a twist is stated here by the whole
weight of a prefix, v(s) = ψ(s) / q(s); of a complete Z it is R / q.

Particles finish at different lengths, and resampling weighs finished ones against running ones. So the
scale of ψ matters: a few draws, independent of all others, set ψ(root) before a run begins.

The flows of a GFlowNet policy are twists that come for free: ψ(s) = R(s⊤) / q(⊤|s), which is the flow
through s where q is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posteriori import metrics
from posteriori.decoding import draw_moves, move_log_q
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems.problem import Problem
from posteriori.rewards import checked_log_reward
from posteriori.rows import Rows
from posteriori.seams import Prompt

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PILOT_DRAWS = 64
"""Draws that set the scale of ψ: it need only be right within a few nats."""


class Cancelled(Exception):
    """Nobody waits for the particles any more."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """What a twist may look at: K prefixes s of equal length, every array [K], nats.

    Attributes:
        log_v: log v of the parent of s; of the root itself at the root.
        log_scale: log v of the root: how much reward a particle is worth before anything is known.
        log_q: log q(s), the product of the proposal's moves so far.
        log_p: log p(s) under the proposal's model over its whole vocabulary, tool outputs left out.
        log_q_stop: log q(⊤|s), -inf where ⊤ is illegal.
        log_reward: log R(s⊤), -inf where ⊤ is illegal or the twist does not want rewards.
        log_promise: log h(s) of the moves' lookahead; 0 without one, at the root and of a complete Z.
    """

    log_v: FloatArray
    log_scale: float
    log_q: FloatArray
    log_p: FloatArray
    log_q_stop: FloatArray
    log_reward: FloatArray
    log_promise: FloatArray


@dataclass(frozen=True)
class Twist:
    """ψ, by ``log_v``: from K prefixes to their log v, finite.

    ``wants_rewards`` has R evaluated at every prefix at which ⊤ is legal, not at complete Z alone.
    """

    name: str
    wants_rewards: bool
    log_v: Callable[[Prefixes], FloatArray]


def _flow_log_v(prefixes: Prefixes) -> FloatArray:
    known = np.isfinite(prefixes.log_reward)
    # Elsewhere ψ(s) = ψ(parent) q(z|s), so v is the parent's.
    log_q = prefixes.log_q + np.where(known, prefixes.log_q_stop, 0.0)
    return np.where(known, np.where(known, prefixes.log_reward, 0.0) - log_q, prefixes.log_v)


FLOW = Twist("flow", True, _flow_log_v)
"""ψ(s) = R(s⊤) / q(⊤|s) where ⊤ is legal and R > 0, else ψ(parent) q(z|parent)."""


def likelihood_twist(exponent: float = 1.0) -> Twist:
    """ψ(s) ∝ p(s)^exponent h(s), p the proposal's model over its whole vocabulary, h what s promises.

    For rewards p(z⊤|X)^exponent without a lookahead (h = 1) this is the plain particle filter; under a
    hard constraint it charges every prefix for the mass that the constraint has taken from it.
    """
    return Twist(
        f"likelihood^{exponent:g}",
        False,
        lambda prefixes: (
            prefixes.log_scale + exponent * prefixes.log_p + prefixes.log_promise - prefixes.log_q
        ),
    )


@dataclass(frozen=True, eq=False)
class Population:
    """K weighted particles of one run.

    Attributes:
        tokens: z without ⊤, K of them; resampling makes duplicates.
        log_q: log q(z⊤) under the proposal, nats, [K].
        log_reward: log R(z⊤), [K].
        log_weights: [K]; their mean weight is Ẑ.
        resamplings: how often the run was resampled.
    """

    tokens: list[list[int]]
    log_q: FloatArray
    log_reward: FloatArray
    log_weights: FloatArray
    resamplings: int

    @property
    def log_z(self) -> float:
        """log Ẑ; Ẑ is unbiased for Z(X), log Ẑ is below log Z on average."""
        return metrics.log_mean_exp(self.log_weights)

    def pick(self, n: int, seed: int) -> list[list[int]]:
        """n particles drawn by weight; of one population they share ancestors."""
        rng = np.random.default_rng(seed)
        weights = metrics.normalised_weights(self.log_weights)
        return [self.tokens[k] for k in rng.choice(len(weights), n, p=weights)]


@dataclass(frozen=True, eq=False)
class Filtered:
    """The populations of some independent runs, and what they took.

    Attributes:
        populations: one for each run.
        token_forwards: tokens read by the proposal.
        reward_evaluations: distinct sequences whose reward was asked for, over all steps.
    """

    populations: list[Population]
    token_forwards: int
    reward_evaluations: int


def sample(
    problem: Problem,
    prompt: Prompt,
    proposal: LanguageModel,
    *,
    particles: int,
    runs: int = 1,
    twist: Twist = FLOW,
    ess_threshold: float = 0.5,
    log_scale: float | None = None,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Filtered:
    """Run particle filters for one X.

    Args:
        problem: legal moves, log R and what the proposal sees before Z.
        prompt: X.
        proposal: base LM or policy.
        particles: K.
        runs: independent filters, advanced together in one batch of runs · K rows.
        twist: ψ.
        ess_threshold: a run is resampled when its ESS falls below this share of K; 0: never.
        log_scale: log ψ(root), for the flow's twist an estimate of log Z(X); None: from as many draws
            as there are particles, at most ``PILOT_DRAWS``, which count as the rest does.
        seed: same seed, same result.
        cancelled: asked before every step.

    Raises:
        Cancelled: ``cancelled`` said so.
        RewardError: a reward is not finite where ⊤ is legal.
        ValueError: particles, runs or the threshold is out of range.
    """
    if particles < 1 or runs < 1 or not 0 <= ess_threshold <= 1:
        raise ValueError(
            f"need particles ({particles}) and runs ({runs}) >= 1, ess_threshold ({ess_threshold}) in [0, 1]"
        )
    scorer = _Scorer(problem, prompt)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)]
    spent = 0
    if log_scale is None:
        log_scale = 0.0
        if particles > 1 and ess_threshold > 0:
            pilot = _State(1, min(PILOT_DRAWS, runs * particles))
            spent = _advance(pilot, scorer, proposal, _PLAIN, 0.0, 0.0, streams[0], cancelled)
            log_scale = _scale(twist, pilot)
    state = _State(runs, particles)
    spent += _advance(
        state, scorer, proposal, twist, log_scale, ess_threshold, streams[1], cancelled
    )
    return Filtered(state.populations(), spent, scorer.evaluations)


_PLAIN = Twist("plain", False, lambda prefixes: prefixes.log_v)


def _scale(twist: Twist, pilot: _State) -> float:
    """log of the mean of R / q over what the twist would have said of the same Z at scale 1."""
    zeros = np.zeros(pilot.size)
    silent = np.full(pilot.size, -np.inf)
    said = twist.log_v(Prefixes(zeros, 0.0, pilot.log_q, pilot.log_p, silent, silent, zeros))
    return metrics.log_mean_exp(pilot.log_reward - pilot.log_q - said)


def _advance(
    state: _State,
    scorer: _Scorer,
    proposal: LanguageModel,
    twist: Twist,
    log_scale: float,
    ess_threshold: float,
    rng: np.random.Generator,
    cancelled: Callable[[], bool],
) -> int:
    """Run all particles from the root to their ends; return the token forwards."""
    moves = scorer.moves
    stop = len(moves.alphabet)
    state.log_v += log_scale
    rows = Rows(proposal, scorer.problem.policy_ids(scorer.prompt), moves)
    rows.select(np.zeros(state.size, dtype=np.int64))
    running = np.flatnonzero(~state.finished)  # row i of the cache is particle running[i]
    while len(running):
        if cancelled():
            raise Cancelled
        # A particle that a tool has answered reads the answer first, and acts later than others.
        ready = state.read[running] == state.lengths[running]
        log_moves = np.zeros((len(running), stop + 1))
        promises = np.zeros((len(running), stop + 1))
        if ready.any():
            here = running[ready]
            scores = moves.scores(rows.logits[ready], state.places(here))
            log_moves[ready] = move_log_q(scores)
            if moves.lookahead is not None:
                promises[ready] = [moves.promises(*at) for at in state.places(here)]
            state.log_v[here] = twist.log_v(
                Prefixes(
                    log_v=state.log_v[here],
                    log_scale=log_scale,
                    log_q=state.log_q[here],
                    log_p=state.log_p[here],
                    log_q_stop=log_moves[ready, stop],
                    log_reward=scorer.prefixes(
                        state.prefixes(here),
                        np.isfinite(scores[:, stop]) & twist.wants_rewards,
                    ),
                    log_promise=state.log_promise[here],
                )
            )
        kept = state.resample(ess_threshold, running, rng)
        running = np.flatnonzero(~state.finished)
        ready = ready[kept]
        acting, at = running[ready], kept[ready]
        columns = draw_moves(log_moves[at], rng.random(len(acting)))
        state.log_q[acting] += log_moves[at, columns]
        state.log_promise[acting] = promises[at, columns]
        stopped = columns == stop
        state.log_p[acting] += np.where(
            stopped, 0.0, rows.logits[at, columns] - rows.log_normaliser[at]
        )
        state.act(moves, acting[~stopped], columns[~stopped])
        # At max_tokens actions ⊤ is certain, and the last token need not be read.
        spent = state.actions[acting] == moves.max_tokens
        state.finish(acting[stopped | spent], scorer)
        left = ~state.finished[running]
        running = running[left]
        if len(running):
            rows.select(kept[left])
            rows.advance([state.tokens[k][state.read[k]] for k in running])
            state.read[running] += 1
    return rows.token_forwards


_PER_PARTICLE = (
    "lengths", "actions", "read", "automaton", "finished", "log_q", "log_p", "log_promise", "log_v", "log_reward"
)  # fmt: skip


class _State:
    """All particles of all runs, flat: particle k of run r is r · K + k."""

    def __init__(self, runs: int, particles: int) -> None:
        self.runs, self.particles, self.size = runs, particles, runs * particles
        self.tokens: list[tuple[int, ...]] = [()] * self.size
        self.lengths = np.zeros(self.size, dtype=np.int64)
        self.actions = np.zeros(self.size, dtype=np.int64)
        self.read = np.zeros(self.size, dtype=np.int64)
        self.automaton = np.zeros(self.size, dtype=np.int64)
        self.finished = np.zeros(self.size, dtype=np.bool_)
        self.log_q = np.zeros(self.size)
        self.log_p = np.zeros(self.size)
        self.log_promise = np.zeros(self.size)
        self.log_v = np.zeros(self.size)
        self.log_reward = np.full(self.size, -np.inf)
        # The weight is offset · v: a resampled particle starts again from its run's mean weight.
        self.offset = np.zeros(self.size)
        self.resamplings = np.zeros(runs, dtype=np.int64)

    def resample(self, threshold: float, running: IntArray, rng: np.random.Generator) -> IntArray:
        """Resample the runs that need it; for every particle running afterwards, the row it continues."""
        log_weights = (self.offset + self.log_v).reshape(self.runs, self.particles)
        ancestors = np.arange(self.size).reshape(self.runs, self.particles)
        # Short of the threshold by more than rounding: equal weights are never resampled.
        bound = threshold * self.particles * (1 - 1e-9)
        poor = np.array([metrics.effective_sample_size(row) < bound for row in log_weights])
        for run in np.flatnonzero(poor):
            weights = metrics.normalised_weights(log_weights[run])
            ancestors[run] = ancestors[run][systematic(weights, rng.random())]
        self.resamplings += poor
        index = ancestors.ravel()
        row_of = np.full(self.size, -1, dtype=np.int64)
        row_of[running] = np.arange(len(running))
        self.tokens = [self.tokens[ancestor] for ancestor in index]
        for name in _PER_PARTICLE:
            setattr(self, name, getattr(self, name)[index])
        means = np.repeat([metrics.log_mean_exp(row) for row in log_weights], self.particles)
        self.offset = np.where(np.repeat(poor, self.particles), means - self.log_v, self.offset)
        continued: IntArray = row_of[index[~self.finished]]
        return continued

    def places(self, particles: IntArray) -> list[tuple[int, int]]:
        """Actions taken and automaton state of each."""
        pairs = zip(self.actions[particles], self.automaton[particles], strict=True)
        return [(int(actions), int(state)) for actions, state in pairs]

    def prefixes(self, particles: IntArray) -> list[tuple[int, ...]]:
        """Z so far of each."""
        return [self.tokens[k] for k in particles]

    def act(self, moves: LegalMoves, particles: IntArray, columns: IntArray) -> None:
        """Append an action to each of these particles, and what a tool answers to it."""
        self.automaton[particles] = moves.next_state[self.automaton[particles], columns]
        self.actions[particles] += 1
        for particle, token in zip(particles, moves.alphabet[columns].tolist(), strict=True):
            tokens = (*self.tokens[particle], token)
            self.tokens[particle] = (*tokens, *moves.answer(tokens))
            self.lengths[particle] = len(self.tokens[particle])

    def finish(self, particles: IntArray, scorer: _Scorer) -> None:
        """These particles are complete; log q of their ⊤ is in."""
        self.finished[particles] = True
        self.log_reward[particles] = scorer.complete(self.prefixes(particles))
        self.log_v[particles] = self.log_reward[particles] - self.log_q[particles]

    def populations(self) -> list[Population]:
        log_weights = self.offset + self.log_v
        found = []
        for run in range(self.runs):
            here = slice(run * self.particles, (run + 1) * self.particles)
            found.append(
                Population(
                    tokens=[list(z) for z in self.tokens[here]],
                    log_q=self.log_q[here],
                    log_reward=self.log_reward[here],
                    log_weights=log_weights[here],
                    resamplings=int(self.resamplings[run]),
                )
            )
        return found


class _Scorer:
    """log R of sequences of one X, each distinct one evaluated once."""

    def __init__(self, problem: Problem, prompt: Prompt) -> None:
        self.problem, self.prompt, self.moves = problem, prompt, problem.moves(prompt)
        self._known: dict[tuple[int, ...], float] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def complete(self, sequences: Sequence[tuple[int, ...]]) -> FloatArray:
        """log R of complete Z, [K]."""
        new = [list(z) for z in dict.fromkeys(sequences) if z not in self._known]
        if new:
            scores = checked_log_reward(
                self.problem.reward, self.problem.name, self.prompt, self.moves, new
            )
            self._known.update((tuple(z), float(s[-1])) for z, s in zip(new, scores, strict=True))
        return np.array([self._known[z] for z in sequences], dtype=np.float64)

    def prefixes(
        self, sequences: Sequence[tuple[int, ...]], wanted: NDArray[np.bool_]
    ) -> FloatArray:
        """log R where wanted, else -inf; [K]."""
        found = np.full(len(sequences), -np.inf)
        found[wanted] = self.complete(
            [z for z, want in zip(sequences, wanted, strict=True) if want]
        )
        return found


def systematic(weights: FloatArray, uniform: float) -> IntArray:
    """Systematic resampling: the ancestors of K particles, ascending.

    Particle k has ⌊K w_k⌋ or ⌈K w_k⌉ children, K w_k on average (Douc & Cappé 2005).

    Args:
        weights: normalised, [K].
        uniform: the one random number, in [0, 1).
    """
    size = len(weights)
    cumulative = np.cumsum(weights)
    points = (np.arange(size) + uniform) / size * cumulative[-1]
    ancestors: IntArray = np.searchsorted(cumulative, points, side="right").astype(np.int64)
    return np.minimum(ancestors, size - 1)
