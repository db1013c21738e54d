"""Times to a target, of which some are censored: a trial that missed it was only watched for so long.

Kaplan and Meier 1958. Where all were watched equally long, the curve is the share of trials that were
not yet at the target, and its median that of times in which a miss is later than all others.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 2_000
FEWEST = 5  # values that make an interval of a median: the range of n covers it in 1 - 2^(1 - n)


class Median(NamedTuple):
    """A median time with its 95 % interval; inf: not reached. `missed` of `n` never reached it."""

    value: float
    low: float
    high: float
    missed: int
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "-"
        if not np.isfinite(self.value):
            return "not reached"
        if self.n < FEWEST:
            return f"{self.value:.4g}"
        high = f"{self.high:.4g}]" if np.isfinite(self.high) else "∞)"
        return f"{self.value:.4g} [{self.low:.4g}, {high}"


def median(reached: ArrayLike, watched: ArrayLike) -> Median:
    """The Kaplan-Meier median of n trials: when they reached the target (NaN: never), how long watched.

    The interval is the bootstrap's over trials (Efron 1981, "Censored data and the bootstrap"); it is
    seeded.
    """
    times, until = np.asarray(reached, float), np.asarray(watched, float)
    n = len(times)
    if not n:
        return Median(np.nan, np.nan, np.nan, 0, 0)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    value = float(medians(times, until, np.ones((1, n)))[0])
    low, high = np.quantile(medians(times, until, counts), [0.025, 0.975], method="nearest")
    return Median(value, float(low), float(high), int(np.isnan(times).sum()), n)


def survival(reached: Array, watched: Array, counts: Array) -> tuple[Array, Array]:
    """The Kaplan-Meier curves of r samples that hold trial i counts[:, i] times.

    Returns the distinct times of events [t], and the share of each sample that has not reached the
    target at and after them [r, t].
    """
    events = ~np.isnan(reached)
    left = np.where(events, reached, watched)
    times = np.unique(reached[events])
    at_risk = counts @ (left[:, None] >= times)
    reaching = counts @ (reached[:, None] == times)
    with np.errstate(invalid="ignore"):
        hazard = np.where(at_risk > 0, reaching / at_risk, 0.0)
    return times, np.cumprod(1 - hazard, axis=1)


def medians(reached: Array, watched: Array, counts: Array) -> Array:
    """For each sample the time at which half have reached the target, [r]; inf where half never do.

    Where the curve is at one half for a while, the middle of that while, so that it is the usual median
    when none is censored.
    """
    times, curves = survival(reached, watched, counts)
    times = np.append(times, np.inf)
    below = np.concatenate([curves < 0.5 - 1e-9, np.ones((len(curves), 1), bool)], axis=1)
    at_most = np.concatenate([curves <= 0.5 + 1e-9, np.ones((len(curves), 1), bool)], axis=1)
    return (times[at_most.argmax(axis=1)] + times[below.argmax(axis=1)]) / 2
