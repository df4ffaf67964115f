"""An interval for log Z from both sides: importance weights below, exact posterior draws above.

Neither side alone says how far log Z is. E[log Ẑ] ≤ log Z for any unbiased Ẑ (IWAE: K draws from q; SMC),
and E[log Ẑ] ≥ log Z if one of the K draws is an exact draw from σ (``posteriori.metrics``). Exact draws come
from an oracle, or from the language model itself: if (Z, Y) is drawn jointly from p(· | X), then Z is one
exact draw from p(Z | X, Y). Such a pair bounds log Z of its own Y once, so it is averaged over many Y's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from posteriori.metrics import (
    Estimate,
    log_mean_exp,
    log_z_lower_bound,
    log_z_upper_bound,
    mean_estimate,
)


@dataclass(frozen=True)
class LogZInterval:
    """log Z lies between ``low`` and ``high`` with the stated confidence; nats.

    Attributes:
        lower, upper: the estimated bounds E[log Ẑ] themselves, with standard errors.
        low, high: the bounds, moved outwards by their errors at that confidence.
    """

    lower: Estimate
    upper: Estimate
    low: float
    high: float

    @property
    def middle(self) -> float:
        """Midpoint."""
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> float:
        """No divergence smaller than this can be told from 0 with this interval."""
        return (self.high - self.low) / 2

    def covers(self, log_z: float) -> bool:
        """Whether ``log_z`` lies inside."""
        return self.low <= log_z <= self.high


def sandwich(lower: Estimate, upper: Estimate, confidence: float = 0.95) -> LogZInterval:
    """The interval of two bounds; each side may err with half of 1 − confidence (Bonferroni).

    Args:
        lower: of E[log Ẑ] ≤ log Z, such as ``metrics.log_z_lower_bound`` or a mean over SMC runs.
        upper: of E[log Ẑ] ≥ log Z, such as ``metrics.log_z_upper_bound``.
        confidence: probability of covering log Z, as far as both means are near normal.

    Raises:
        ValueError: a bound has no standard error, because it comes of a single draw.
    """
    if not (np.isfinite(lower.standard_error) and np.isfinite(upper.standard_error)):
        raise ValueError(
            "a bound without a standard error makes no interval: take two draws or more"
        )
    factor = NormalDist().inv_cdf(0.5 + confidence / 2)
    return LogZInterval(
        lower,
        upper,
        lower.value - factor * lower.standard_error,
        upper.value + factor * upper.standard_error,
    )


def log_z_interval(
    log_weights: ArrayLike,
    log_weights_posterior: ArrayLike,
    particles: int,
    confidence: float = 0.95,
) -> LogZInterval:
    """log Z of one X from draws of q and exact draws of σ.

    Args:
        log_weights: log R − log q of N draws from q.
        log_weights_posterior: of M exact draws from σ, M (K − 1) ≤ N.
        particles: K; the gap between the two bounds is about 1/(K · ESS fraction) − 1/K nats.
        confidence: as in ``sandwich``.
    """
    return sandwich(
        log_z_lower_bound(log_weights, particles),
        log_z_upper_bound(log_weights_posterior, log_weights, particles),
        confidence,
    )


def mean_log_z_interval(
    log_weights: ArrayLike, log_weights_posterior: ArrayLike, confidence: float = 0.95
) -> LogZInterval:
    """The mean of log Z over n prompts of which each has a single exact draw, as joint draws give.

    One draw has no spread of its own. The spread of the upper bounds around log Z is therefore taken
    from the distances to the lower bounds of the same prompts, whose own error is added.

    Args:
        log_weights: log R − log q of draws from q, [n, B, K]: B ≥ 2 blocks of K for each prompt.
        log_weights_posterior: of the exact draw of each prompt, [n], n ≥ 2.
        confidence: as in ``sandwich``.

    Raises:
        ValueError: shapes do not fit, or there are fewer than two prompts or blocks.
    """
    weights = np.asarray(log_weights, dtype=np.float64)
    exact = np.asarray(log_weights_posterior, dtype=np.float64)
    if weights.ndim != 3 or exact.shape != weights.shape[:1] or min(weights.shape[:2]) < 2:
        raise ValueError(
            f"need weights [n, B, K] and [n] with n, B >= 2, not {weights.shape} and {exact.shape}"
        )
    below = np.array([[log_mean_exp(block) for block in prompt] for prompt in weights])
    above = np.array(
        [
            np.mean([log_mean_exp([y, *block[1:]]) for block in prompt])
            for y, prompt in zip(exact, weights, strict=True)
        ]
    )
    lower_error = sqrt((below.var(axis=1, ddof=1) / below.shape[1]).sum()) / len(below)
    lower = Estimate(float(below.mean()), lower_error)
    distance = mean_estimate(above - below.mean(axis=1))
    upper = Estimate(float(above.mean()), hypot(distance.standard_error, lower_error))
    return sandwich(lower, upper, confidence)
