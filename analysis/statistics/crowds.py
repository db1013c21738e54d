"""Crowds: many students of one optimizer at one horizon, and how many of them an answer needs.

A block is one lesson seed with some students of each optimizer. Students of a block are exchangeable
and not paired; blocks are independent, and what is compared is one number per block: the difference of
the logarithms of the steps that two optimizers need for the same quality.

How many blocks are needed depends on their spread, which nobody knows beforehand. In Stein's two-stage
rule a pilot estimates it, the number of blocks follows from the pilot's spread alone, and the interval
is that of the mean of all blocks with the pilot's spread and the pilot's degrees of freedom. For normal
differences it covers exactly as often as it says, whatever their spread, and also under a cap on the
number of blocks that was fixed before the pilot. (The spread of all blocks would make the interval a
little too narrow: the rule stops early where the pilot's spread is small by luck.)

The rule takes the horizons and exponents that scouting found as constants. An exponent that is wrong by
a tenth moves the answer by a tenth of how far the ends still are from the quality, in log steps, and
more blocks do not help. So the pilot becomes a rung of the ladder, from which the horizons are aimed
anew, and what the exponents leave (`aiming_error`) widens the interval, in quadrature.

Stein 1945, Annals of Mathematical Statistics 16:243. Components of variance: Searle, Casella and
McCulloch 1992, chapter 4. How often it is right: `python benchmarks/results/two_stage.py`.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.statistics.ratio import FEWEST, LEVEL, ROUNDING, Array, Ratio

POWER_PLANNED = 0.9  # with which a plan detects its precision
NEAR = math.log(2.1)  # of a point, in log steps: the rungs that describe the curve there
ROUNDS = 20


class Curve(NamedTuple):
    """The logarithm of the deciding metric at the ends of a ladder of horizons, lower is better.

    At a point it is a quadratic in log steps, by least squares on the rungs within a factor 2.1 of
    the point, or on the nearest three where those are fewer, each with the weight of its blocks. Rungs
    may be noisy and out of order. Its methods raise ValueError for fewer than three rungs.
    """

    log_steps: Array  # [k], increasing
    log_metric: Array  # [k], mean of a rung's students
    blocks: Array | float = 1.0  # [k], of students in each

    def with_rung(self, log_steps: float, log_metric: float, blocks: int) -> "Curve":
        """With the mean of more blocks, at a horizon of the ladder or at a new one."""
        weights = np.broadcast_to(self.blocks, self.log_steps.shape)
        same = np.abs(self.log_steps - log_steps) < ROUNDING
        if same.any():
            joint = (weights * self.log_metric + blocks * log_metric) / (weights + blocks)
            return Curve(self.log_steps, np.where(same, joint, self.log_metric), weights + blocks * same)
        place = int(np.searchsorted(self.log_steps, log_steps))
        return Curve(
            np.insert(self.log_steps, place, log_steps),
            np.insert(self.log_metric, place, log_metric),
            np.insert(weights, place, blocks),
        )

    def value_at(self, log_steps: float) -> float:
        """The log metric of the local fit; a guess beyond the rungs."""
        return self._fit(log_steps)[0]

    def exponent_at(self, log_steps: float) -> float:
        """How fast the metric falls: -d log metric / d log steps of the local fit.

        Of use where it is above 0; it is 0 or less where the curve is flat or rises.
        """
        return -self._fit(log_steps)[1]

    def exponent_error(self, log_steps: float, spread: float) -> float:
        """Standard error of exponent_at, where means of single blocks have this standard deviation.

        It counts noise alone, not what a quadratic cannot follow.
        """
        information, _ = self._normal_equations(log_steps)
        return spread * math.sqrt(np.linalg.inv(information)[1, 1])

    def steps_at(self, log_quality: float) -> float | None:
        """Log steps at which the local fit falls through a quality (a log metric).

        Of several crossings from above to at or below the quality, the one of the most steps counts.
        None where there is none, or where the fit falls through the quality only beyond the rungs that
        it rests on: more rungs are then needed, of more steps if the last rung is above the quality,
        and of fewer if the first is not.
        """
        above = self.log_metric > log_quality
        crossings = np.flatnonzero(above[:-1] & ~above[1:])
        if not len(crossings):
            return None
        between = crossings[-1] + np.array([1, 0])  # metrics in increasing order
        at = float(np.interp(log_quality, self.log_metric[between], self.log_steps[between]))
        for _ in range(ROUNDS):  # which rungs are near depends on the solution
            value, slope, bend = self._fit(at)
            step = _falling_root(bend, slope, value - log_quality)
            near = self.log_steps[self._near(at)]
            if step is None or not near[0] - ROUNDING <= at + step <= near[-1] + ROUNDING:
                return None
            at += step
            if abs(step) < ROUNDING:
                break
        return at

    def _near(self, log_steps: float) -> slice:
        distances = np.abs(self.log_steps - log_steps)
        if len(distances) < FEWEST:
            raise ValueError(f"a curve of {len(distances)} rungs: at least {FEWEST} are needed")
        reach = max(NEAR, float(np.sort(distances)[FEWEST - 1])) + ROUNDING
        near = np.flatnonzero(distances <= reach)
        return slice(int(near[0]), int(near[-1]) + 1)

    def _fit(self, log_steps: float) -> tuple[float, float, float]:
        """Value, slope and half the second derivative, at a point."""
        value, slope, bend = np.linalg.solve(*self._normal_equations(log_steps)).tolist()
        return value, slope, bend

    def _normal_equations(self, log_steps: float) -> tuple[Array, Array]:
        """Of the local fit's three coefficients, in log steps from the point: [3, 3] and [3]."""
        near = self._near(log_steps)
        at = self.log_steps[near] - log_steps
        powers = np.stack([np.ones_like(at), at, at**2])
        weighted = powers * np.broadcast_to(self.blocks, self.log_steps.shape)[near]
        return weighted @ powers.T, weighted @ self.log_metric[near]


def log_times(log_metric: Array, log_steps: float, log_quality: float, exponent: float) -> Array:
    """Log steps that each block needs for a quality, from its ends at a horizon nearby.

    The log metrics at the end, [blocks, students], of students that ran to exp(log_steps); their mean
    distance to the quality is worth that distance / exponent in log steps. Horizon, quality and exponent
    are constants: they were found on other lessons and other students. [blocks]

    Raises:
        ValueError: the exponent is not above 0: more steps do not make this optimizer better there.
    """
    if not exponent > 0:
        raise ValueError(f"exponent {exponent:.3g}: must be above 0")
    return log_steps + (np.asarray(log_metric, float).mean(axis=1) - log_quality) / exponent


def aiming_error(log_times: Array, log_steps: Array, exponent: float, error: float) -> float:
    """Standard error that an exponent's own standard error leaves in the mean of log_times.

    The steps that blocks need and the steps that they ran, in logarithms, [blocks] both. Errors of two
    optimizers add up in quadrature.
    """
    return abs(float(np.mean(log_times - log_steps))) * error / exponent


def half_width(precision: float, df: int) -> float:
    """Of the interval of a log ratio that detects a true ratio `precision`, 9 times of 10.

    df: degrees of freedom of the pilot's spread.

    Raises:
        ValueError: the precision is not above 1, or df below 1.
    """
    if not precision > 1 or df < 1:
        raise ValueError(
            f"precision {precision} with {df} degrees of freedom: must be above 1, 1 or more"
        )
    bound, reserve = _t(df, (1 + LEVEL) / 2), _t(df, POWER_PLANNED)
    return math.log(precision) * bound / (bound + reserve)


def aims(aiming: float, precision: float, df: int) -> bool:
    """Whether an error that no block shows (see aiming_error) leaves room to detect a ratio.

    df: degrees of freedom of the pilot's spread.
    """
    return aiming * _t(df, (1 + LEVEL) / 2) < half_width(precision, df)


def blocks_needed(pilot: ArrayLike, precision: float) -> int:
    """Blocks in all, the pilot's among them, by Stein's rule from the pilot's log ratios, [n0].

    Raises:
        ValueError: fewer than three of them, one that is not finite, or a precision that is not above 1.
    """
    values = _blocks(pilot)
    df = len(values) - 1
    spread = float(values.std(ddof=1))
    needed = (_t(df, (1 + LEVEL) / 2) * spread / half_width(precision, df)) ** 2
    return max(len(values), math.ceil(needed - ROUNDING))


def students_needed(variance: float, half: float, blocks: int) -> float:
    """Students of each side in a block whose mean log ratio has an interval of this half-width.

    variance: of log steps of a student of the one side and of one of the other, added.
    """
    return variance * (_t(blocks - 1, (1 + LEVEL) / 2) / half) ** 2 / blocks


def two_stage(values: ArrayLike, pilot: int, aiming: float = 0.0) -> Ratio:
    """The ratio exp(mean) of log ratios, one per block, [n]: the pilot's first, then all others.

    Its interval and p_above_1 are Student's with the spread and the degrees of freedom of the pilot, and
    with a standard error beside it that no block shows (see aiming_error). Of log steps needed, the
    ratio is below 1 where the first optimizer is the faster.

    Raises:
        ValueError: a pilot of fewer than three or of more than there are, or a value that is not finite.
    """
    logs = _blocks(values)
    if not FEWEST <= pilot <= len(logs):
        raise ValueError(f"a pilot of {pilot} among {len(logs)} blocks: {FEWEST} to all")
    df, n = pilot - 1, len(logs)
    mean = float(logs.mean())
    error = math.hypot(float(logs[:pilot].std(ddof=1)) / math.sqrt(n), aiming)
    half = _t(df, (1 + LEVEL) / 2) * error
    with np.errstate(over="ignore"):  # above all that a float holds: not bounded
        value, low, high = map(float, np.exp([mean, mean - half, mean + half]))
    # Without spread, a mean that is 0 says nothing and any other is certain.
    t = mean / error if error else np.sign(mean) * np.inf if mean else 0.0
    return Ratio(value, low, high, float(special.stdtr(df, t)), n)


class Components(NamedTuple):
    """Standard deviations of the log metric between students, by their cause; squares add up."""

    first_weights: float
    lessons: float
    both: float  # what a pair of them has beyond the two
    evaluation: float  # of the finite set of held-out views


def components(log_metric: ArrayLike, evaluation: float) -> Components:
    """From one student for each pair of lessons and first weights, [lessons, first weights].

    Analysis of variance of a crossed design of two random effects, by the method of moments; an
    estimate below 0 is 0. What `evaluation` (see evaluation_sd) adds is taken out of `both`.

    Raises:
        ValueError: fewer than two lessons or first weights.
    """
    lessons, weights, rest = _mean_squares(log_metric)
    rows, columns = np.shape(log_metric)
    return Components(
        first_weights=math.sqrt(max(weights - rest, 0.0) / rows),
        lessons=math.sqrt(max(lessons - rest, 0.0) / columns),
        both=math.sqrt(max(rest - evaluation**2, 0.0)),
        evaluation=float(evaluation),
    )


def evaluation_sd(log_metric: ArrayLike) -> float:
    """What a finite set of held-out views adds to a student's log metric, beyond what it adds to all.

    From students scored on several sets of one size, [students, sets]: the residual of students and
    sets. It is that of one set; the mean of k such sets has 1 / sqrt(k) of it.

    Raises:
        ValueError: fewer than two students or sets.
    """
    return math.sqrt(_mean_squares(log_metric)[2])


def _mean_squares(values: ArrayLike) -> tuple[float, float, float]:
    """Of rows, columns and residuals of a layout with one value in each cell."""
    array = np.asarray(values, float)
    rows, columns = array.shape
    if rows < 2 or columns < 2:
        raise ValueError(f"{rows} x {columns} students: at least 2 x 2 are needed")
    of_row, of_column = array.mean(axis=1), array.mean(axis=0)
    residuals = array - of_row[:, None] - of_column + array.mean()
    rest = float((residuals**2).sum()) / ((rows - 1) * (columns - 1))
    return columns * float(of_row.var(ddof=1)), rows * float(of_column.var(ddof=1)), rest


def _falling_root(bend: float, slope: float, value: float) -> float | None:
    """Where value + slope u + bend u^2 is 0 and falls; None where it never does."""
    inside = slope**2 - 4 * bend * value
    if inside <= 0 or (slope >= 0 and bend == 0):
        return None
    fall = math.sqrt(inside)  # minus the slope there
    return 2 * value / (fall - slope) if slope < 0 else -(fall + slope) / (2 * bend)


def _blocks(values: ArrayLike) -> Array:
    array = np.asarray(values, float)
    if array.ndim != 1 or len(array) < FEWEST or not np.isfinite(array).all():
        raise ValueError(f"log ratios of blocks must be {FEWEST} or more, and finite: {array}")
    return array


def _t(df: int, p: float) -> float:
    """A quantile of Student's distribution."""
    return float(special.stdtrit(df, p))
