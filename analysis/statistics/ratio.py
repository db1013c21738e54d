"""How many times faster: the ratio of two optimizers' times, though some trials never reach it.

The interval is the set of ratios that a t-test does not reject. To test a ratio r, the other's times
are multiplied by r, which makes them the baseline's if r is the truth, and both are cut at the shorter
of the two times that they were watched for; what is then compared are logarithms. Cutting both equally
keeps the test honest however many are censored: under the truth the two sides have one distribution.
A pair of which both are cut says nothing about that ratio and is left out of its test, as ties are of
Wilcoxon's.
Where none is censored this is Student's interval on the logarithms of the ratios, which covers about
as often as it says for five pairs too; a percentile bootstrap of five does not (`python
benchmarks/results/coverage.py`). Times are known to a measurement: how far that may move the ratio,
either way, widens the interval in quadrature. Test inversion: Cox and Hinkley 1974, section 7.2;
cutting both sides, as in rank tests for accelerated failure times: Louis 1981, Biometrika 68:381.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
# Log ratios [m] -> for each the mean difference [m], its standard error [m], degrees of freedom [m].
Test = Callable[[Array], tuple[Array, Array, Array]]

LEVEL = 0.95
GRID = 512
ROUNDING = 1e-12
FEWEST = 3  # pairs that make an interval
TRUE = np.bool_(True)


# Of a table of ratios, in which they are speed-ups.
COLUMNS = ["speedup", "low", "high", "bound", "p_faster", "n"]


class Times(NamedTuple):
    """When each of n trials was seen at the target, and how long it was watched; any unit, above 0."""

    reached: Array  # [n], NaN: never while it was watched
    watched: Array  # [n]
    cadence: Array | float = 0.0  # [n], since the measurement before, at which it had not reached it


class Ratio(NamedTuple):
    """A ratio with its 95 % interval; low is 0 and high inf where the data do not bound it.

    `bound` is "at least" or "at most" where only that can be said of the value itself: beyond it,
    nothing that was watched would differ. `p_above_1` is the confidence that the ratio is above 1 (one
    minus the one-sided p-value of the test of 1). For fewer than three pairs, low, high and p_above_1
    are NaN.
    """

    value: float
    low: float
    high: float
    p_above_1: float
    n: int
    bound: str = ""

    def __str__(self) -> str:
        return f"{self:.4g}"

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        if not np.isfinite(self.value):
            return "-"
        value = f"{self.bound} {self.value:{spec}}".strip()
        if self.n < FEWEST:
            return value
        high = f"{self.high:{spec}}]" if np.isfinite(self.high) else "∞)"
        return f"{value} [{self.low:{spec}}, {high}"

    @classmethod
    def of(cls, row: Mapping[Hashable, Any] | pd.Series) -> "Ratio":
        """From a row of a table that has COLUMNS; one for a figure may lack p_faster."""
        p = row.get("p_faster", np.nan)
        return cls(row["speedup"], row["low"], row["high"], p, row["n"], row["bound"])

    def as_columns(self) -> dict[str, object]:
        """For a row of such a table."""
        values = (self.value, self.low, self.high, self.bound, self.p_above_1, self.n)
        return dict(zip(COLUMNS, values, strict=True))

    def inverse(self) -> "Ratio":
        """1 / the ratio."""
        with np.errstate(divide="ignore"):
            value, low, high = (float(1 / np.float64(x)) for x in (self.value, self.high, self.low))
        bound = {"at least": "at most", "at most": "at least"}.get(self.bound, "")
        return Ratio(value, low, high, 1 - self.p_above_1, self.n, bound)


def paired(base: Times, other: Times) -> Ratio:
    """Base's time / other's, above 1 where the other is faster; row i of both is one seed."""
    a, watched_a = _logs(other)
    b, watched_b = _logs(base)
    seen_a, seen_b = ~np.isnan(other.reached), ~np.isnan(base.reached)
    early = _earlier(base), _earlier(other)

    def test(theta: Array) -> tuple[Array, Array, Array]:
        shift = theta[:, None]
        cut = np.minimum(shift + watched_a, watched_b)
        informative = (seen_a & (shift + a <= cut)) | (seen_b & (b <= cut))
        test_of_mean = _one_sample(np.minimum(shift + a, cut) - np.minimum(b, cut), informative)
        return _widened(*test_of_mean, *early)

    return _invert(test, np.concatenate([watched_b - a, b - watched_a]), len(a))


def unpaired(base: Times, other: Times) -> Ratio:
    """The same of independent trials (Welch's test); n is the smaller number of trials."""
    a, watched_a = _logs(other)
    b, watched_b = _logs(base)
    early = _earlier(base), _earlier(other)

    def test(theta: Array) -> tuple[Array, Array, Array]:
        shift = theta[:, None]
        cut = np.minimum(shift + watched_a.min(), watched_b.min())
        return _widened(*_two_samples(np.minimum(shift + a, cut), np.minimum(b, cut)), *early)

    knots = np.concatenate(
        [watched_b.min() - a, b - watched_a.min(), [watched_b.min() - watched_a.min()]]
    )
    return _invert(test, knots, min(len(a), len(b)))


def geometric_mean(ratios: ArrayLike) -> Ratio:
    """Of independent ratios above 0, with Student's t-interval on their logarithms, without NaNs."""
    array = np.asarray(ratios, float)
    logs = np.log(array[~np.isnan(array)])
    n = len(logs)
    if n < FEWEST:
        return Ratio(float(np.exp(logs.mean())) if n else np.nan, np.nan, np.nan, np.nan, n)

    def test(theta: Array) -> tuple[Array, Array, Array]:
        return _one_sample(theta[:, None] - logs)

    mean, half = logs.mean(), special.stdtrit(n - 1, (1 + LEVEL) / 2) * logs.std(ddof=1) / np.sqrt(n)
    value, low, high = map(float, np.exp([mean, mean - half, mean + half]))
    return Ratio(value, low, high, _confidence(test), n)


def where_zero(differences: Callable[[Array], Array], knots: Array, n: int) -> Ratio:
    """The ratio at which n paired differences have mean 0, with interval.

    `differences` takes log ratios [m] and gives [m, n], in straight lines between the knots (log
    ratios), on average growing. It is not evaluated beyond the knots, where an interval is not bounded.
    """
    return _invert(lambda theta: _one_sample(differences(theta)), knots, n, beyond=0.0)


def _logs(times: Times) -> tuple[Array, Array]:
    watched = np.log(np.asarray(times.watched, float))
    reached = np.log(np.asarray(times.reached, float))
    return np.fmin(reached, watched), watched


def _earlier(times: Times) -> float:
    """How much earlier, in logarithms, trials may have reached the target than was seen: the median.

    Infinite where most had reached it at their first measurement.
    """
    seen = ~np.isnan(times.reached)
    reached, cadence = times.reached[seen], np.broadcast_to(times.cadence, seen.shape)[seen]
    if not len(reached):
        return 0.0
    with np.errstate(divide="ignore"):
        return float(-np.log(np.median(np.clip(1 - cadence / reached, 0, 1))))


def _widened(
    mean: Array, error: Array, df: Array, base: float, other: float
) -> tuple[Array, Array, Array]:
    """A test that also accepts what the cadence allows: that the base, or the other, was earlier."""
    allowed = np.where(mean > 0, other, base)
    return mean, np.hypot(error, allowed / special.stdtrit(df, (1 + LEVEL) / 2)), df


def _one_sample(
    differences: Array, informative: NDArray[np.bool_] | np.bool_ = TRUE
) -> tuple[Array, Array, Array]:
    """Of [m, n], those that are informative: means, standard errors, degrees of freedom, each [m].

    The error of fewer than three is infinite: two that happen to be equal, as steps between measurements
    are, would look certain.
    """
    informative = np.broadcast_to(informative, differences.shape)
    n = informative.sum(axis=1)
    mean = np.where(informative, differences, 0.0).sum(axis=1) / np.maximum(n, 1)
    squares = np.where(informative, differences - mean[:, None], 0.0) ** 2
    error = np.sqrt(squares.sum(axis=1) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    share = n / informative.shape[1]  # of all pairs, the mean is that of straight lines
    return mean * share, np.where(n < FEWEST, np.inf, error * share), np.maximum(n - 1.0, 1.0)


def _two_samples(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Of [m, n] and [m, n']: Welch's test, with Satterthwaite's degrees of freedom."""
    (mean_x, error_x, df_x), (mean_y, error_y, df_y) = _one_sample(x), _one_sample(y)
    error = np.hypot(error_x, error_y)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = error**4 / (error_x**4 / df_x + error_y**4 / df_y)
    return mean_x - mean_y, error, np.where(np.isfinite(df), df, 1.0)


def _invert(test: Test, knots: Array, n: int, beyond: float = 1.0) -> Ratio:
    """The ratio where the mean difference is 0, and all that the test does not reject.

    The mean difference grows, in straight lines between the knots, and is constant beyond them.
    """
    if not n:
        return Ratio(np.nan, np.nan, np.nan, np.nan, 0)
    knots = np.union1d(knots, [knots.min() - beyond, knots.max() + beyond])
    log_value, bound = _zero(knots, test(knots)[0])
    value = float(np.exp(log_value))
    if n < FEWEST or np.isnan(value):
        return Ratio(value, np.nan, np.nan, np.nan, n, bound)

    def accepts(theta: Array) -> NDArray[np.bool_]:
        mean, error, df = test(theta)
        return np.abs(mean) <= special.stdtrit(df, (1 + LEVEL) / 2) * error + ROUNDING

    grid = np.union1d(np.linspace(knots[0], knots[-1], GRID), [log_value, *knots])
    accepted = np.flatnonzero(accepts(grid))
    if not len(accepted):  # even the last ratio that can be asked for is rejected
        low, high = (value, np.inf) if bound == "at least" else (0.0, value)
        return Ratio(value, low, high, _confidence(test), n, bound)
    first, last = int(accepted[0]), int(accepted[-1])
    outer = grid[[max(first - 1, 0), min(last + 1, len(grid) - 1)]]
    low, high = map(float, np.exp(_edges(accepts, grid[[first, last]], outer)))
    return Ratio(
        value=value,
        low=low if first else 0.0,
        high=high if last < len(grid) - 1 else np.inf,
        p_above_1=_confidence(test),
        n=n,
        bound=bound,
    )


def _zero(knots: Array, means: Array) -> tuple[float, str]:
    """Where a piecewise linear function of knots comes to be above 0 for good, and if that is a bound.

    The middle, where it is 0 for a while. Times to a target make it grow throughout; ends of schedules
    may be out of order, and then the largest ratio counts, which is that of the fewest steps.
    """
    below, above = np.flatnonzero(means < -ROUNDING), np.flatnonzero(means > ROUNDING)
    if not len(below) and not len(above):
        return np.nan, ""  # neither was ever at the target
    if not len(below):
        return float(knots[max(above[0] - 1, 0)]), "at most"
    last = int(below[-1])
    if not len(above) or above[-1] < last:
        return float(knots[min(last + 1, len(knots) - 1)]), "at least"
    between = slice(last, int(above[above > last][0]) + 1)
    flat = np.abs(means[between]) <= ROUNDING
    if flat.any():
        return float(knots[between][flat].mean()), ""
    return float(np.interp(0.0, means[between], knots[between])), ""


def _edges(accepts: Callable[[Array], NDArray[np.bool_]], inner: Array, outer: Array) -> Array:
    """Between accepted and rejected points, where acceptance ends; both ends at once."""
    for _ in range(50):
        middle = (inner + outer) / 2
        accepted = accepts(middle)
        inner, outer = np.where(accepted, middle, inner), np.where(accepted, outer, middle)
    return inner


def _confidence(test: Test) -> float:
    """That the ratio is above 1: differences grow with the ratio, and are 0 at the true one."""
    mean, error, df = (x[0] for x in test(np.zeros(1)))
    if error == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    return float(special.stdtr(df, -mean / error))
