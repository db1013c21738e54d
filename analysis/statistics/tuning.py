"""The best of k trials as a function of k: how much tuning an optimizer needs.

Pure functions on values, and on frames (`trials.trials`). References: Dodge et al. 2019, "Show your
work: improved reporting of experimental results" (arXiv 1909.03004); Tang et al. 2020, "Showing your
work doesn't always work" (arXiv 2004.13705), who correct its bias.

A miss or a divergence counts as the worst value, infinite, and is never dropped.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import frames
from analysis.statistics.trials import LOST

Mode = Literal["min", "max"]
Array = NDArray[np.float64]

TUNED = ["task", "total_steps", "protocol", "optimizer"]
CURVES = [*TUNED, "measure", "k", "n", "mean", "mean_biased", "q25", "median", "q75", "p_reached"]

# More than the rounding errors of a sum of probabilities, less than any difference that matters.
ROUNDING = 1e-12


def expected_best(values: ArrayLike, k: int, mode: Mode = "min") -> float:
    """The expected best of k of these n values, drawn without replacement: unbiased.

    The mean over all subsets of k, a U-statistic (Tang et al. 2020). The i-th best of n is the best of
    C(n - i, k - 1) of the C(n, k) subsets.

    Args:
      values: n of them; a miss is NaN, or the worst: inf (mode min), -inf (mode max).
      k: how many are drawn.
      mode: which is better, less or more.

    Returns:
      In the unit of the values; the worst, infinite, where k misses can be drawn.

    Raises:
      ValueError: k is not in 1 to n.
    """
    losses, sign = _ordered(values, mode)
    weights = _without_replacement(len(losses), k)
    possible = len(losses) - k + 1  # the k - 1 worst are never the best
    if np.isinf(losses[possible - 1]):
        return sign * np.inf
    return sign * float(losses[:possible] @ weights[:possible])


def expected_best_biased(values: ArrayLike, k: int, mode: Mode = "min") -> float:
    """The expected best of k draws with replacement from these n values, their empirical distribution.

    Dodge et al. 2019, equation 5. Pessimistic, as k draws are often fewer than k values. Arguments as
    those of `expected_best`, but k may exceed n.

    Returns:
      In the unit of the values; the worst, infinite, where there is a miss.

    Raises:
      ValueError: k < 1, or there are no values.
    """
    losses, sign = _ordered(values, mode)
    weights = _with_replacement(len(losses), k)
    if np.isinf(losses[-1]):
        return sign * np.inf
    return sign * float(losses @ weights)


def best_quantile(values: ArrayLike, k: int, q: float, mode: Mode = "min") -> float:
    """The q-quantile of the best of k of these n values, drawn without replacement.

    The smallest value that is not exceeded with a probability of at least q: always one of the values
    (so the median of an even number is the lower of two), and finite where misses are rarely the best.
    Arguments as those of `expected_best`.

    Raises:
      ValueError: k is not in 1 to n, or q not between 0 and 1.
    """
    if not 0 < q < 1:
        raise ValueError(f"q = {q} is not between 0 and 1")
    losses, _ = _ordered(values, mode)
    weights = _without_replacement(len(losses), k)
    # From the smallest value to the largest.
    outcomes, weights = (losses, weights) if mode == "min" else (-losses[::-1], weights[::-1])
    return float(outcomes[np.searchsorted(np.cumsum(weights), q - ROUNDING)])


def p_reached(values: ArrayLike, k: int) -> float:
    """The probability that at least one of k of these values, drawn without replacement, is no miss.

    Raises:
      ValueError: k is not in 1 to their number.
    """
    losses, _ = _ordered(values, "min")
    return float(_without_replacement(len(losses), k)[np.isfinite(losses)].sum())


def _ordered(values: ArrayLike, mode: Mode) -> tuple[Array, float]:
    """Values as losses from best to worst, and the sign that makes them values again."""
    sign = 1.0 if mode == "min" else -1.0
    losses = sign * np.asarray(values, float)
    return np.sort(np.where(np.isnan(losses), np.inf, losses)), sign


def _without_replacement(n: int, k: int) -> Array:
    """[n]: the probability that the i-th best of n is the best of k, by a running product."""
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} is not in 1 to {n}")
    i = np.arange(1, n)
    return k / n * np.cumprod(np.concatenate([[1.0], np.maximum(n - i - k + 1, 0) / (n - i)]))


def _with_replacement(n: int, k: int) -> Array:
    """[n]: the same for k draws with replacement."""
    if k < 1 or n < 1:
        raise ValueError(f"the best of k = {k} draws from {n} values")
    return -np.diff((np.arange(n, -1, -1) / n) ** k)


def configurations(ends: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: medians over its seeds, from `trials.trials`.

    Columns: those of TUNED, hyperparameters (JSON text), mode, loss (the trials' `score`), steps (to
    the target; inf where half of the seeds or more missed it), n (seeds), diverged (how many did, or
    failed).
    Trials without an end (unfinished) have no result yet, and are left out.
    """
    columns = [*TUNED, "hyperparameters", "mode", "loss", "steps", "n", "diverged"]
    if ends.empty:
        return pd.DataFrame(columns=columns)
    ended = ends[ends["status"] != "unfinished"]
    trials = ended[[*TUNED, "hyperparameters"]].assign(
        mode=ended["target_mode"],
        loss=ended["score"],
        steps=ended["steps_to_target"].astype(float).fillna(np.inf),
        diverged=ended["status"].isin(LOST),
    )
    grouped = trials.groupby([*TUNED, "hyperparameters"], dropna=False, sort=False)
    return grouped.agg(
        mode=("mode", "first"),
        loss=("loss", "median"),
        steps=("steps", "median"),
        n=("loss", "size"),
        diverged=("diverged", "sum"),
    ).reset_index()[columns]


def tuning_curves(ends: pd.DataFrame) -> pd.DataFrame:
    """The best of k configurations, for every optimizer of which there are two or more.

    k counts configurations drawn at random from those that were tried, each with one value: the median
    over its seeds. That is what random search finds with k trials where the configurations were
    themselves drawn at random; where they were not (defaults beside them, survivors of a halving), it
    flatters. A configuration is a set of hyperparameters.

    Args:
      ends: from `trials.trials`.

    Returns:
      Columns task, total_steps, protocol, optimizer; measure ("final": the target metric at the end, on
      validation data, a divergence the worst; "steps_to_target": a miss inf); k; n (configurations);
      mean (`expected_best`), mean_biased, q25, median, q75 (`best_quantile`); p_reached (the
      probability that one of the k is at its target; NaN for "final"). Empty where nothing was tuned.
    """
    rows: list[dict[str, Any]] = []
    for key, group in configurations(ends).groupby(TUNED, dropna=False, sort=False):
        if len(group) < 2:
            continue
        named = dict(zip(TUNED, key, strict=True))
        mode: Mode = "max" if group["mode"].iloc[0] == "max" else "min"
        final = group["loss"] * (1 if mode == "min" else -1)
        rows += [named | {"measure": "final"} | row for row in _curve(final, mode)]
        for row in _curve(group["steps"], "min"):
            reached = p_reached(group["steps"], row["k"])
            rows.append(named | {"measure": "steps_to_target"} | row | {"p_reached": reached})
    return frames.with_metrics(pd.DataFrame(rows, columns=CURVES), ends)


def _curve(values: ArrayLike, mode: Mode) -> Iterator[dict[str, Any]]:
    array = np.asarray(values, float)
    for k in range(1, len(array) + 1):
        yield {
            "k": k,
            "n": len(array),
            "mean": expected_best(array, k, mode),
            "mean_biased": expected_best_biased(array, k, mode),
            "q25": best_quantile(array, k, 0.25, mode),
            "median": best_quantile(array, k, 0.5, mode),
            "q75": best_quantile(array, k, 0.75, mode),
            "p_reached": np.nan,
        }
