"""How right a sampler is: divergences, importance-weight diagnostics and bounds on log Z.

Notation: σ = R/Z is the posterior, q the sampler, w = R/q an importance weight. Everything is in
nats and in float64; weights and probabilities enter as logarithms, so nothing overflows. An array
of log weights holds log R(zᵢ) − log q(zᵢ) of independent zᵢ; -inf (R = 0) is a legal weight.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

NORMALISATION_TOLERANCE = 1e-3
"""Largest |log Σ p| a distribution may have: float32 log-probabilities of 10⁶ strings stay below it."""

MIN_TAIL_DRAWS = 5
"""Fewest draws a generalised Pareto tail is fitted to (Vehtari et al. 2024, section 3)."""

NEGLIGIBLE_WEIGHT = 1e-150
"""Excesses this far below the largest weight count as none: their reciprocals would overflow."""


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo estimate and its standard error (NaN from a single draw)."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class Marginal:
    """Estimated probabilities of the values 0 … size−1 and their standard errors, both [size]."""

    probabilities: FloatArray
    standard_errors: FloatArray


def log_sum_exp(values: ArrayLike) -> float:
    """log Σᵢ exp(vᵢ) = m + log Σᵢ exp(vᵢ − m), m = max v; -inf for no or only -inf values."""
    array = np.asarray(values, dtype=np.float64)
    peak = array.max(initial=-np.inf)
    if not np.isfinite(peak):
        return float(peak)
    return float(peak + np.log(np.exp(array - peak).sum()))


def log_mean_exp(values: ArrayLike) -> float:
    """log of the mean of exp(vᵢ)."""
    return log_sum_exp(values) - float(np.log(np.size(values)))


# ---------------------------------------------------------------- divergences over all strings


def total_variation(log_p: ArrayLike, log_q: ArrayLike) -> float:
    """TV(p, q) = ½ Σ |p − q|, in [0, 1]; half of what GFlowNet papers call L1.

    Args:
        log_p, log_q: log-probabilities of the same outcomes, each summing to 1; same shape.
    """
    p, q = _distributions(log_p, log_q)
    return float(0.5 * np.abs(np.exp(p) - np.exp(q)).sum())


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> float:
    """KL(p‖q) = Σ p log(p/q).

    Outcomes with p = 0 contribute 0. An outcome with p > 0 and q = 0 makes the divergence +inf,
    which is returned, not raised: a sampler that can never draw a string of the posterior is
    infinitely wrong in KL(σ‖q), and one that draws a string of zero reward in KL(q‖σ).
    """
    p, q = _distributions(log_p, log_q)
    support = p > -np.inf
    if (q[support] == -np.inf).any():
        return float("inf")
    return max(0.0, float((np.exp(p[support]) * (p[support] - q[support])).sum()))


def js_divergence(log_p: ArrayLike, log_q: ArrayLike) -> float:
    """JSD(p, q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2 (Lin 1991); always in [0, log 2]."""
    p, q = _distributions(log_p, log_q)
    middle = np.logaddexp(p, q) - np.log(2.0)
    return 0.5 * kl_divergence(p, middle) + 0.5 * kl_divergence(q, middle)


def entropy(log_p: ArrayLike) -> float:
    """H(p) = −Σ p log p; exp of it is the effective number of strings."""
    p, _ = _distributions(log_p, log_p)
    support = p[p > -np.inf]
    return float(-(np.exp(support) * support).sum())


def exact_ess_fraction(log_posterior: ArrayLike, log_q: ArrayLike) -> float:
    """lim ESS/N of weights σ/q under q: 1 / Σ σ²/q = 1/(1 + χ²(σ‖q)); 0 where q misses a string."""
    p, q = _distributions(log_posterior, log_q)
    support = p > -np.inf
    if (q[support] == -np.inf).any():
        return 0.0
    return float(np.exp(-log_sum_exp(2 * p[support] - q[support])))


def _distributions(log_p: ArrayLike, log_q: ArrayLike) -> tuple[FloatArray, FloatArray]:
    p, q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if p.shape != q.shape:
        raise ValueError(f"log-probabilities of shapes {p.shape} and {q.shape} cannot be compared")
    for array in (p, q):
        mass = log_sum_exp(array)
        if not abs(mass) <= NORMALISATION_TOLERANCE:
            raise ValueError(f"probabilities sum to exp({mass:.6g}), not to 1")
    return p, q


# ---------------------------------------------------------------- importance weights


def normalised_weights(log_weights: ArrayLike) -> FloatArray:
    """w̃ᵢ = wᵢ / Σ w; all zero where every weight is zero."""
    array = _draws(log_weights)
    peak = array.max()
    if peak == -np.inf:
        return np.zeros_like(array)
    weights: FloatArray = np.exp(array - peak)
    weights /= weights.sum()
    return weights


def effective_sample_size(log_weights: ArrayLike) -> float:
    """ESS = (Σ w)² / Σ w² = 1 / Σ w̃² (Kong 1992), between 1 and N; 0 where every weight is zero."""
    weights = normalised_weights(log_weights)
    squares = float(weights @ weights)
    return 1.0 / squares if squares > 0 else 0.0


def ess_fraction(log_weights: ArrayLike) -> float:
    """ESS / N → 1/(1 + χ²(σ‖q)) as N grows. It cannot see a mode that q never draws."""
    return effective_sample_size(log_weights) / np.size(log_weights)


def log_z_estimate(log_weights: ArrayLike) -> Estimate:
    """log Ẑ = log mean w of draws from q; Ẑ is unbiased for Z.

    Standard error by the delta method: se(log Ẑ) = sd(w) / (√N · mean w). If every weight is zero,
    the value is -inf and the error NaN.
    """
    array = _draws(log_weights)
    relative = normalised_weights(array) * len(array)  # w / mean w
    known = len(array) > 1 and relative.any()
    spread = float(relative.std(ddof=1) / np.sqrt(len(array))) if known else float("nan")
    return Estimate(log_mean_exp(array), spread)


def log_z_lower_bound(log_weights: ArrayLike, particles: int = 1) -> Estimate:
    """E[log (1/K) Σₖ wₖ] ≤ log Z, tighter as K grows (Burda et al. 2016, IWAE).

    K = 1 is the ELBO, log Z − KL(q‖σ).

    Args:
        log_weights: of N draws from q; cut into ⌊N/K⌋ blocks, a remainder is left out.
        particles: K.
    """
    blocks = _blocks(log_weights, particles)
    return mean_estimate(np.array([log_mean_exp(block) for block in blocks]))


def log_z_upper_bound(
    log_weights_posterior: ArrayLike, log_weights: ArrayLike = (), particles: int = 1
) -> Estimate:
    """E[log (1/K) (w(y) + Σ_{k<K} wₖ)] ≥ log Z, y ~ σ exactly, K−1 draws from q.

    K = 1 is the EUBO, E_σ[log w] = log Z + KL(σ‖q) (Sobolev & Vetrov 2019; Zhao et al. 2024, app.).

    Args:
        log_weights_posterior: log weights of M exact draws from σ.
        log_weights: of draws from q, at least M (K − 1) of them; the rest is left out.
        particles: K.
    """
    exact = _draws(log_weights_posterior)
    if particles == 1:
        return mean_estimate(exact)
    others = _blocks(log_weights, particles - 1)
    if len(others) < len(exact):
        raise ValueError(
            f"{len(exact)} draws from the posterior with {particles} particles need "
            f"{len(exact) * (particles - 1)} draws from q, not {np.size(log_weights)}"
        )
    return mean_estimate(
        np.array([log_mean_exp([y, *block]) for y, block in zip(exact, others, strict=False)])
    )


def mean_estimate(values: ArrayLike) -> Estimate:
    """Mean and its standard error sd/√N.

    Of log σ(zᵢ) − log q(zᵢ) over zᵢ ~ σ this is KL(σ‖q), over zᵢ ~ q minus KL(q‖σ).
    """
    array = _draws(values)
    if np.isinf(array).any():
        return Estimate(float(array.mean()), float("nan"))
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return Estimate(float(array.mean()), float(error))


def _draws(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"expected a non-empty row of values, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError("a value is NaN")
    return array


def _blocks(values: ArrayLike, size: int) -> FloatArray:
    array = _draws(values)
    if not 1 <= size <= len(array):
        raise ValueError(f"{len(array)} draws cannot be cut into blocks of {size}")
    return array[: len(array) // size * size].reshape(-1, size)


# ---------------------------------------------------------------- Pareto k


def pareto_k(log_weights: ArrayLike) -> float:
    """PSIS k̂, the shape of a generalised Pareto fit to the largest weights (Vehtari et al. 2024).

    The M = ⌈min(N/5, 3√N)⌉ largest weights, less the next one, are fitted by Zhang & Stephens
    (2009), then shrunk towards ½ by ten pseudo-draws: k̂ = (M k + 10·½)/(M + 10). Below 0.7 the
    importance-weighted estimates can be trusted at practical N; above 1 the mean of w is not even
    known to exist.

    Returns:
        k̂. NaN if N < 25 leaves fewer than 5 tail draws. 0 if no weight exceeds the threshold (the
        largest weight is tied more than M times: bounded and well sampled). +inf if only 1–4 draws
        exceed it: a tail too thinly sampled to be fitted.
    """
    array = np.sort(_draws(log_weights))
    tail = int(np.ceil(min(len(array) / 5, 3 * np.sqrt(len(array)))))
    if tail < MIN_TAIL_DRAWS:
        return float("nan")
    scaled = np.exp(array - array[-1]) if array[-1] > -np.inf else np.zeros_like(array)
    excesses = scaled[-tail:] - scaled[-tail - 1]
    excesses = excesses[excesses > NEGLIGIBLE_WEIGHT]
    if len(excesses) == 0:
        return 0.0
    if len(excesses) < MIN_TAIL_DRAWS:
        return float("inf")
    shape = _generalised_pareto_shape(excesses)
    return (len(excesses) * shape + 10 * 0.5) / (len(excesses) + 10)


def _generalised_pareto_shape(ascending: FloatArray) -> float:
    """Zhang & Stephens (2009), section 4: posterior mean of θ on a grid, then k = mean log(1 − θx).

    The sign is that of Vehtari et al.: k > 0 is a heavy tail.
    """
    n = len(ascending)
    grid = 30 + int(np.sqrt(n))
    quartile = ascending[int(n / 4 + 0.5) - 1]
    j = np.arange(1, grid + 1)
    theta = 1 / ascending[-1] + (1 - np.sqrt(grid / (j - 0.5))) / (3 * quartile)
    theta = theta[theta != 0]  # the exponential limit itself, where -θ/k is 0/0
    shapes = np.log1p(-theta[:, None] * ascending).mean(axis=1)
    log_likelihood = n * (np.log(-theta / shapes) - shapes - 1)
    mean_theta = float(normalised_weights(log_likelihood) @ theta)
    return float(np.log1p(-mean_theta * ascending).mean())


# ---------------------------------------------------------------- samples


def unique_fraction(sequences: Sequence[Sequence[Hashable]]) -> float:
    """Distinct sequences / all sequences; 1 means no draw was repeated."""
    if not sequences:
        raise ValueError("no sequences")
    return len({tuple(sequence) for sequence in sequences}) / len(sequences)


def weighted_marginal(values: ArrayLike, log_weights: ArrayLike, size: int) -> Marginal:
    """Self-normalised importance-sampling histogram: p̂(v) = Σᵢ w̃ᵢ 1[vᵢ = v].

    Standard errors by the delta method, se² = Σᵢ w̃ᵢ² (1[vᵢ = v] − p̂(v))² (Owen 2013, eq. 9.9).
    Equal log weights give the plain histogram and its binomial errors.

    Args:
        values: integers in [0, size) of N draws, such as first-token columns or lengths.
        log_weights: [N].
        size: number of possible values.
    """
    outcomes = np.asarray(values, dtype=np.int64)
    weights = normalised_weights(log_weights)
    if outcomes.shape != weights.shape or outcomes.min() < 0 or outcomes.max() >= size:
        raise ValueError(f"need {len(weights)} values in [0, {size}), got shape {outcomes.shape}")
    probabilities = np.bincount(outcomes, weights, minlength=size).astype(np.float64)
    squares = np.bincount(outcomes, weights**2, minlength=size)
    # Σ w̃²(1[v] − p)² = Σ_{vᵢ=v} w̃² (1 − 2p) + p² Σ w̃²
    variances = squares * (1 - 2 * probabilities) + probabilities**2 * squares.sum()
    return Marginal(probabilities, np.sqrt(np.maximum(variances, 0.0)))


def marginal_error(probabilities: ArrayLike, exact: ArrayLike) -> float:
    """TV between two marginals given as probabilities: ½ Σ |p̂ − p|."""
    p, q = np.asarray(probabilities, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    if p.shape != q.shape:
        raise ValueError(f"marginals of shapes {p.shape} and {q.shape} cannot be compared")
    return float(0.5 * np.abs(p - q).sum())
