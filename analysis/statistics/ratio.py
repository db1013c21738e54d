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
either way, widens the interval in quadrature. Students that share lessons are exchangeable: what is
compared is then the mean of each crowd, cut for all of its students alike.
Test inversion: Cox and Hinkley 1974, section 7.2;
cutting both sides, as in rank tests for accelerated failure times: Louis 1981, Biometrika 68:381.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
# Log ratios [m] -> for each the mean difference [m], its standard error [m], degrees of freedom [m].
Test = Callable[[Array], tuple[Array, Array, Array]]

LEVEL = 0.95
POWER = 0.8  # with which the smallest ratio is detected
NEAR = 0.05  # of a log ratio: over which the slope of a mean difference is taken
GRID = 512
ROUNDING = 1e-12
FEWEST = 3  # pairs that make an interval
TRUE = np.bool_(True)


# Of a table of ratios, in which they are speed-ups.
COLUMNS = ["speedup", "low", "high", "bound", "p_faster", "n", "smallest"]


class Times(NamedTuple):
    """When each of n trials was seen at the target, and how long it was watched; any unit, above 0."""

    reached: Array  # [n], NaN: never while it was watched
    watched: Array  # [n]
    cadence: Array | float = 0.0  # [n], since the measurement before, at which it had not reached it
    lessons: NDArray[Any] | None = None  # [n], the crowd that each is of; None: each is its own


class Ratio(NamedTuple):
    """A ratio with its 95 % interval; low is 0 and high inf where the data do not bound it.

    `bound` is "at least" or "at most" where only that can be said of the value itself: beyond it,
    nothing that was watched would differ. `p_above_1` is the confidence that the ratio is above 1 (one
    minus the one-sided p-value of the test of 1). `smallest` is the smallest ratio above 1 that would
    have been detected with a power of 80 % (and so would 1 / smallest); NaN where the value is
    only a bound. For fewer than three pairs, low, high, p_above_1 and smallest are NaN.
    """

    value: float
    low: float
    high: float
    p_above_1: float
    n: int
    bound: str = ""
    smallest: float = np.nan

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
        """From a row of a table that has COLUMNS; one for a figure may lack p_faster and smallest."""
        p, smallest = row.get("p_faster", np.nan), row.get("smallest", np.nan)
        return cls(row["speedup"], row["low"], row["high"], p, row["n"], row["bound"], smallest)

    def as_columns(self) -> dict[str, object]:
        """For a row of such a table."""
        values = (self.value, self.low, self.high, self.bound, self.p_above_1, self.n, self.smallest)
        return dict(zip(COLUMNS, values, strict=True))

    def inverse(self) -> "Ratio":
        """1 / the ratio."""
        with np.errstate(divide="ignore"):
            value, low, high = (float(1 / np.float64(x)) for x in (self.value, self.high, self.low))
        bound = {"at least": "at most", "at most": "at least"}.get(self.bound, "")
        return Ratio(value, low, high, 1 - self.p_above_1, self.n, bound, self.smallest)


def smallest_detectable(error: float, df: float) -> float:
    """The smallest ratio above 1 that a t-test of log ratios at 5 % detects with POWER.

    Args:
      error: the standard error of the log ratio.
      df: its degrees of freedom.
    """
    return float(np.exp(error * (special.stdtrit(df, (1 + LEVEL) / 2) + special.stdtrit(df, POWER))))


class _Crowds(NamedTuple):
    """Times of n trials as logarithms, and the k crowds that they are of."""

    reached: Array  # [n], or watched where it was never reached
    seen: NDArray[np.bool_]  # [n], whether it was reached
    watched: Array  # [k], the least of each crowd
    of: NDArray[np.intp]  # [n], the crowd of each
    weights: Array  # [n, k], that make means of crowds

    def means(self, theta: Array, cut: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Means of times after a shift by theta, cut; whether one of a crowd was not cut.

        Args:
          theta: log ratios [m, 1].
          cut: log times [m, k].

        Returns:
          [m, k] each.
        """
        shifted, until = theta + self.reached, cut[:, self.of]
        uncut = (self.seen & (shifted <= until)).astype(float) @ self.weights
        return np.minimum(shifted, until) @ self.weights, uncut > 0


def paired(base: Times, other: Times) -> Ratio:
    """Base's time / other's, above 1 where the other is faster.

    Row i of both is one seed; or both have `lessons`, and the crowds of the same lessons are a pair: all
    lessons of one are lessons of the other.
    """
    a, b = _crowds(other), _crowds(base)
    early = _earlier(base), _earlier(other)

    def test(theta: Array) -> tuple[Array, Array, Array]:
        shift = theta[:, None]
        cut = np.minimum(shift + a.watched, b.watched)
        (mine, informative), (theirs, informative_too) = a.means(shift, cut), b.means(0 * shift, cut)
        return _widened(*_one_sample(mine - theirs, informative | informative_too), *early)

    ends = b.watched - a.watched
    knots = [b.watched[a.of] - a.reached, b.reached - a.watched[b.of], ends]
    return _invert(test, np.concatenate(knots), len(ends))


def unpaired(base: Times, other: Times) -> Ratio:
    """The same of independent trials, or crowds (Welch's test); n is the smaller number of these."""
    a, b = _crowds(other), _crowds(base)
    early = _earlier(base), _earlier(other)
    if not min(len(a.watched), len(b.watched)):
        return Ratio(np.nan, np.nan, np.nan, np.nan, 0)
    end_a, end_b = a.watched.min(), b.watched.min()

    def test(theta: Array) -> tuple[Array, Array, Array]:
        shift = theta[:, None]
        cut = np.minimum(shift + end_a, end_b)
        sides = (
            crowds.means(by, np.broadcast_to(cut, (len(theta), len(crowds.watched))))[0]
            for crowds, by in ((a, shift), (b, 0 * shift))
        )
        return _widened(*_two_samples(*sides), *early)

    knots = np.concatenate([end_b - a.reached, b.reached - end_a, [end_b - end_a]])
    return _invert(test, knots, min(len(a.watched), len(b.watched)))


def geometric_mean(ratios: ArrayLike) -> Ratio:
    """Of independent ratios above 0, with Student's t-interval on their logarithms, without NaNs."""
    array = np.asarray(ratios, float)
    logs = np.log(array[~np.isnan(array)])
    n = len(logs)
    if n < FEWEST:
        return Ratio(float(np.exp(logs.mean())) if n else np.nan, np.nan, np.nan, np.nan, n)
    error = float(logs.std(ddof=1) / np.sqrt(n))

    def test(theta: Array) -> tuple[Array, Array, Array]:
        return _one_sample(theta[:, None] - logs)

    mean, half = logs.mean(), special.stdtrit(n - 1, (1 + LEVEL) / 2) * error
    value, low, high = map(float, np.exp([mean, mean - half, mean + half]))
    return Ratio(value, low, high, _confidence(test), n, smallest=smallest_detectable(error, n - 1))


def where_zero(differences: Callable[[Array], Array], knots: Array, n: int) -> Ratio:
    """The ratio at which n paired differences have mean 0, with interval.

    `differences` takes log ratios [m] and gives [m, n], in straight lines between the knots (log
    ratios), on average growing. It is not evaluated beyond the knots, where an interval is not bounded.
    """
    return _invert(lambda theta: _one_sample(differences(theta)), knots, n, beyond=0.0)


def between_horizons(base: Array, others: Sequence[Array], log_horizon: float, steps: Array) -> Ratio:
    """The ratio of steps at which independent students at several horizons end where others end.

    Means of log metrics are interpolated between horizons, linearly in log steps; the test of a ratio is
    Welch's, of the weighted means of the two horizons on its sides.

    Args:
      base: log metrics [n] at the end of the baseline's horizon.
      others: log metrics [n'] at the ends of each of the other's k >= 2 horizons.
      log_horizon: the baseline's.
      steps: logarithms [k] of the other's horizons, increasing.

    Returns:
      Its n is the smallest number of students, or crowds, that the estimate is made of.
    """
    of_cells = [_one_sample(values[None]) for values in (*others, base)]
    mean, error, df = (np.concatenate(parts) for parts in zip(*of_cells, strict=True))

    def weights(theta: Array) -> Array:
        at = np.clip(log_horizon - theta, steps[0], steps[-1])
        each = [np.interp(at, steps, row) for row in np.eye(len(steps))]
        return np.stack([*each, -np.ones_like(at)], axis=1)

    def test(theta: Array) -> tuple[Array, Array, Array]:
        share = weights(theta)
        with np.errstate(invalid="ignore"):
            variances = np.where(share == 0, 0.0, (share * error) ** 2)
            total = variances.sum(axis=1)
            dfs = total**2 / (variances**2 / df).sum(axis=1)
        return share @ mean, np.sqrt(total), np.where(np.isfinite(dfs), dfs, 1.0)

    counts = np.array([len(values) for values in (*others, base)])
    found = _invert(test, log_horizon - steps, int(counts.max()), beyond=0.0)
    used = np.abs(weights(np.log(np.array([found.value])))[0]) > 1e-9
    n = int(counts[used].min(initial=counts[-1]))
    found = found._replace(n=n)
    return found if n >= FEWEST else Ratio(found.value, np.nan, np.nan, np.nan, n, found.bound)


def _logs(times: Times) -> tuple[Array, Array]:
    watched = np.log(np.asarray(times.watched, float))
    reached = np.log(np.asarray(times.reached, float))
    return np.fmin(reached, watched), watched


def _crowds(times: Times) -> _Crowds:
    """The crowds of trials, in the order of their lessons; each trial is one where none shares any."""
    reached, watched = _logs(times)
    named = np.arange(len(reached)) if times.lessons is None else np.asarray(times.lessons)
    names, of, counts = np.unique(named, return_inverse=True, return_counts=True)
    member = of[:, None] == np.arange(len(names))
    least = np.where(member, watched[:, None], np.inf).min(axis=0, initial=np.inf)
    return _Crowds(reached, ~np.isnan(times.reached), least, of, member / counts)


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


def welch(one: Array, other: Array) -> tuple[float, float, float]:
    """The difference of two means, its standard error (infinite for fewer than three), and its df."""
    difference, error, df = _two_samples(one[None], other[None])
    return float(difference[0]), float(error[0]), float(df[0])


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
    smallest = np.nan if bound else _smallest(test, log_value, knots)
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
        smallest=smallest,
    )


def _smallest(test: Test, log_value: float, knots: Array) -> float:
    """`smallest_detectable`: the error is that of the difference, over the slope with which it grows."""
    near = np.clip(log_value + np.array([-NEAR, 0.0, NEAR]), knots[0], knots[-1])
    mean, error, df = test(near)
    slope = (mean[2] - mean[0]) / (near[2] - near[0])
    known = slope > 0 and np.isfinite(error[1])
    return smallest_detectable(float(error[1] / slope), float(df[1])) if known else np.nan


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
