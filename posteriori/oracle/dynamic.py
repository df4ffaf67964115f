"""Exact posteriors under a Markov language model, by dynamic programming over (length, context, state).

log R(z⊤) = β Σₖ log p(zₖ | w tokens before) + φ(last w tokens of x z): tempered (β = 1/T, φ = β log p(⊤|·)),
constrained (an automaton in ``LegalMoves``), infilling (φ = log p(y|·)). With B_i the log of the sum of
what the rest of z contributes to R,

    B_i(c, s) = log [ 1{⊤ legal} e^{φ(c)} + Σ_a e^{β log p(a|c) + B_{i+1}(ca, δ(s,a))} ],

log Z = B_0 at the prompt, and σ(a | i, c, s) is the share of a's summand. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posteriori.moves import LegalMoves
from posteriori.oracle.markov import MarkovTable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Sampler = Callable[[int], FloatArray]
"""A sampler that, like σ, depends on (length, context, state) alone: length → log-probabilities of the
moves [contexts, states, V + 1], ⊤ last, -inf where illegal."""


@dataclass(frozen=True, eq=False)
class MarkovPosterior:
    """σ(z) ∝ R(z⊤) for one X under a Markov language model.

    Attributes:
        table: the language model.
        moves: legal Z; its automaton is part of the state.
        prompt_ids: x as the language model reads it, at least w tokens.
        token_weight: β.
        final: φ for every context, [V^w].

    Raises:
        ValueError: a tool answers inside Z; its answers are no Markov process.
    """

    table: MarkovTable
    moves: LegalMoves
    prompt_ids: tuple[int, ...]
    token_weight: float
    final: FloatArray

    def __post_init__(self) -> None:
        if self.moves.tool is not None:
            raise ValueError("dynamic programming cannot follow a tool: enumerate the posterior")

    @classmethod
    def tempered(
        cls,
        table: MarkovTable,
        moves: LegalMoves,
        prompt_ids: Sequence[int],
        temperature: float = 1.0,
    ) -> MarkovPosterior:
        """R = p(z⊤ | x)^{1/T}. ⊤ is scored wherever z ends, at ``max_tokens`` too."""
        weight = 1.0 / temperature
        return cls(table, moves, tuple(prompt_ids), weight, weight * table.log_p[:, moves.stop])

    @classmethod
    def infilling(
        cls,
        table: MarkovTable,
        moves: LegalMoves,
        prompt_ids: Sequence[int],
        suffix_ids: Sequence[int],
    ) -> MarkovPosterior:
        """R = p(z y | x); ⊤ is not scored."""
        return cls(table, moves, tuple(prompt_ids), 1.0, table.suffix_log_prob(suffix_ids))

    # ------------------------------------------------------------ σ

    @cached_property
    def _start(self) -> int:
        return self.table.context_of(self.prompt_ids)

    @cached_property
    def _steps(self) -> tuple[IntArray, IntArray]:
        """Next context [C, 1, V] and next state [1, S, V] (0 where dead; the mask forbids it)."""
        contexts = np.arange(len(self.table.log_p))
        following = self.table.following(contexts[:, None], self.moves.alphabet[None])
        return following[:, None], np.maximum(self.moves.next_state, 0)[None]

    def _illegal(self, length: int) -> NDArray[np.bool_]:
        """[1, S, V + 1]."""
        states = range(len(self.moves.accepting))
        return ~np.stack([self.moves.row(length, state) for state in states])[None]

    def _summands(self, length: int, beyond: FloatArray) -> FloatArray:
        """log of the summands of B: a weight for each move, and what follows it; [C, S, V + 1]."""
        return self._weights(length) + self._following(beyond)

    def _weights(self, length: int) -> FloatArray:
        """log factor of R that each move contributes, -inf where illegal; [C, S, V + 1]."""
        tokens = self.token_weight * self.table.log_p[:, self.moves.alphabet]
        moves = np.concatenate([tokens, self.final[:, None]], axis=1)[:, None]
        return np.where(self._illegal(length), -np.inf, moves)

    def _following(self, beyond: FloatArray) -> FloatArray:
        """A function of (context, state) at the next length, read after each move; 0 after ⊤."""
        contexts, states = self._steps
        after = beyond[contexts, states]
        return np.concatenate([after, np.zeros((*after.shape[:2], 1))], axis=2)

    def _backward(self, summands: Callable[[int, FloatArray], FloatArray]) -> list[FloatArray]:
        """Fold from ``max_tokens`` to 0; entry i is [C, S]."""
        values = [np.zeros((len(self.table.log_p), len(self.moves.accepting)))]
        for length in range(self.moves.max_tokens, -1, -1):
            values.append(np.logaddexp.reduce(summands(length, values[-1]), axis=2))
        return values[:0:-1]

    @cached_property
    def _log_rest(self) -> list[FloatArray]:
        """B."""
        return self._backward(self._summands)

    @cached_property
    def log_z(self) -> float:
        """log Z(x), nats."""
        return float(self._log_rest[0][self._start, 0])

    def conditional(self, length: int) -> FloatArray:
        """log σ(move | length, context, state), [C, S, V + 1]; all -inf where no complete Z is left."""
        last = length == self.moves.max_tokens
        here = self._log_rest[length][:, :, None]
        beyond = np.zeros_like(self._log_rest[length]) if last else self._log_rest[length + 1]
        possible = np.where(here > -np.inf, here, 0.0)
        log_sigma: FloatArray = self._summands(length, beyond) - possible
        return log_sigma

    def local_sampler(self, temperature: float = 1.0) -> Sampler:
        """p(move | context)^{1/T}, renormalised at each step over the legal moves.

        T = 1 is the language model itself as a sampler; other T is ordinary token temperature.
        """
        columns = self.table.log_p[:, self.moves.column_tokens][:, None]

        def conditional(length: int) -> FloatArray:
            states = range(len(self.moves.accepting))
            promises = np.stack([self.moves.promises(length, state) for state in states])[None]
            masked = np.where(self._illegal(length), -np.inf, (columns + promises) / temperature)
            mass = np.logaddexp.reduce(masked, axis=2, keepdims=True)
            log_q: FloatArray = masked - np.where(mass > -np.inf, mass, 0.0)
            return log_q

        return conditional

    # ------------------------------------------------------------ strings

    def log_reward(self, sequences: Iterable[Sequence[int]]) -> FloatArray:
        """log R(z⊤) of each sequence; -inf where it is not a legal Z."""
        return self._path_sums(self._weights, sequences)

    def log_sigma(self, sequences: Iterable[Sequence[int]]) -> FloatArray:
        """log σ(z) of each sequence; -inf where it is not a legal Z."""
        return self.log_reward(sequences) - self.log_z

    def log_q(self, sampler: Sampler, sequences: Iterable[Sequence[int]]) -> FloatArray:
        """log q(z⊤) of each sequence under a Markov sampler."""
        return self._path_sums(sampler, sequences)

    def _path_sums(self, terms: Sampler, sequences: Iterable[Sequence[int]]) -> FloatArray:
        paths = [list(map(int, sequence)) for sequence in sequences]
        totals = np.zeros(len(paths))
        contexts = np.full(len(paths), self._start)
        states = np.zeros(len(paths), dtype=np.int64)
        alphabet = {int(token): column for column, token in enumerate(self.moves.alphabet)}
        stop = len(alphabet)
        for length in range(self.moves.max_tokens + 1):
            going = np.array(
                [k for k, path in enumerate(paths) if len(path) >= length], dtype=np.int64
            )
            if len(going) == 0:
                break
            at_end = np.array([len(paths[k]) == length for k in going])
            columns = np.array(
                [
                    stop if end else alphabet.get(paths[k][length], -1)
                    for k, end in zip(going, at_end, strict=True)
                ]
            )
            totals[going] += np.where(
                columns < 0, -np.inf, terms(length)[contexts[going], states[going], columns]
            )
            on = going[~at_end]
            steps = columns[~at_end]
            contexts[on] = self.table.following(contexts[on], self.moves.alphabet[steps])
            states[on] = np.maximum(self.moves.next_state[states[on], steps], 0)
        too_long = [len(path) > self.moves.max_tokens for path in paths]
        totals[too_long] = -np.inf
        return totals

    def sample(self, n: int, seed: int, sampler: Sampler | None = None) -> list[list[int]]:
        """n independent draws from a Markov sampler; None: exact draws from σ.

        The exact draws are for measuring. Training on them would make an oracle of the data.
        """
        terms = self.conditional if sampler is None else sampler
        rng = np.random.default_rng(seed)
        drawn = np.full((n, self.moves.max_tokens), -1, dtype=np.int64)
        alive = np.arange(n)
        contexts, states = np.full(n, self._start), np.zeros(n, dtype=np.int64)
        for length in range(self.moves.max_tokens + 1):
            cumulative = np.exp(terms(length)).cumsum(axis=2)[contexts, states]
            uniform = rng.random(len(alive)) * cumulative[:, -1]
            columns = (cumulative <= uniform[:, None]).sum(axis=1)
            on = columns < len(self.moves.alphabet)
            alive, contexts, states, columns = alive[on], contexts[on], states[on], columns[on]
            if len(alive) == 0:
                break
            drawn[alive, length] = self.moves.alphabet[columns]
            contexts = self.table.following(contexts, drawn[alive, length])
            states = self.moves.next_state[states, columns]
        return [[int(token) for token in row if token >= 0] for row in drawn]

    # ------------------------------------------------------------ divergences and marginals

    def _occupancies(self, sampler: Sampler) -> Iterable[tuple[FloatArray, FloatArray]]:
        """For each length: P(alive in (context, state)) [C, S] and the sampler's log-probabilities."""
        here = np.zeros((len(self.table.log_p), len(self.moves.accepting)))
        here[self._start, 0] = 1.0
        contexts, states = self._steps
        target = (contexts * here.shape[1] + states).ravel()
        for length in range(self.moves.max_tokens + 1):
            log_moves = sampler(length)
            yield here, log_moves
            flow = here[:, :, None] * np.exp(log_moves[:, :, :-1])
            arrived = np.bincount(target, flow.ravel(), minlength=here.size).astype(np.float64)
            here = arrived.reshape(here.shape)

    def length_marginal(self, sampler: Sampler | None = None) -> FloatArray:
        """Probability of each length, [max_tokens + 1]; None: of σ."""
        pairs = self._occupancies(self.conditional if sampler is None else sampler)
        return np.array([(here * np.exp(log_moves[:, :, -1])).sum() for here, log_moves in pairs])

    def first_token_marginal(self, sampler: Sampler | None = None) -> FloatArray:
        """Probability of each first move, ⊤ last; [V + 1]."""
        terms = self.conditional if sampler is None else sampler
        marginal: FloatArray = np.exp(terms(0)[self._start, 0])
        return marginal

    def kl_posterior_q(self, sampler: Sampler) -> float:
        """KL(σ‖q) in nats, exact, by the chain rule; +inf where q misses a string of σ."""
        return self._chain_kl(self.conditional, sampler)

    def kl_q_posterior(self, sampler: Sampler) -> float:
        """KL(q‖σ) in nats, exact; +inf where q draws a string of zero reward."""
        return self._chain_kl(sampler, self.conditional)

    def _chain_kl(self, first: Sampler, second: Sampler) -> float:
        total = 0.0
        for length, (here, log_p) in enumerate(self._occupancies(first)):
            mass = here[:, :, None] * np.exp(log_p)
            support = mass > 0
            total += float((mass[support] * (log_p[support] - second(length)[support])).sum())
        return total

    def ess_fraction(self, sampler: Sampler) -> float:
        """Exact limit of ESS/N under q: Z² / Σ R²/q, by the recursion of B with factors R²/q."""

        def summands(length: int, beyond: FloatArray) -> FloatArray:
            weights = self._weights(length)
            legal = weights > -np.inf
            log_q = np.where(legal, sampler(length), 0.0)
            with np.errstate(invalid="ignore"):
                following = np.where(legal, 2 * weights - log_q + self._following(beyond), -np.inf)
            return following

        second_moment = self._backward(summands)[0][self._start, 0]
        return float(np.exp(2 * self.log_z - second_moment))
