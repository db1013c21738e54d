"""The held-out metric around the best learning rate; pure functions on frames (`trials.trials`)."""

import json

import numpy as np
import pandas as pd

from analysis import frames
from analysis.frames import number
from analysis.statistics.tuning import TUNED, configurations

POINTS = [*TUNED, "learning_rate", "relative", "metric", "loss_ratio", "n", "diverged"]
WIDTHS = [*TUNED, "learning_rate", "low", "high", "factor", "at_edge", "points"]
BINS_PER_DECADE = 3
TOLERANCE = 1.1  # of the loss over the best


def sensitivity(ends: pd.DataFrame) -> pd.DataFrame:
    """The held-out metric of each configuration against its learning rate.

    Of every task, horizon, protocol and optimizer for which three or more learning rates were tried (the
    hyperparameter `learning_rate`), where the metric is not negative: otherwise ratios mean nothing. In
    a random search the other hyperparameters vary too: points scatter above their lower envelope, and
    it is the envelope that shows the effect of the learning rate (`width`).

    Args:
      ends: from `trials.trials`.

    Returns:
      A row per configuration, by learning rate. Columns task, total_steps, protocol, optimizer;
      learning_rate; relative (over the best configuration's; NaN where all diverged); metric (the
      target's, on validation data, at the end: median over seeds; infinite, the worst, where half or
      more diverged); loss_ratio (metric / best, or best / metric where more is better: 1 is best,
      larger is worse, inf diverged); n (seeds); diverged (how many of them did).
    """
    table = configurations(ends)
    rates = [number(json.loads(text).get("learning_rate")) for text in table["hyperparameters"]]
    table["learning_rate"] = np.array(rates, float)
    table = table[table["learning_rate"] > 0]
    parts = [
        _points(group)
        for _, group in table.groupby(TUNED, dropna=False, sort=False)
        if group["learning_rate"].nunique() >= 3 and _is_positive(group)
    ]
    points = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=POINTS)
    return frames.with_metrics(points, ends)


def _is_positive(group: pd.DataFrame) -> bool:
    """Whether ratios of the metric mean something: it is never negative."""
    metric = group["loss"] * (1 if group["mode"].iloc[0] == "min" else -1)
    return bool((metric[np.isfinite(metric)] >= 0).all())


def _points(group: pd.DataFrame) -> pd.DataFrame:
    lowest = group["loss"].min()
    if group["mode"].iloc[0] == "max":
        metric = -group["loss"]
        ratio = -lowest / metric.where(np.isfinite(metric))
    else:
        metric = group["loss"]
        ratio = metric.where(np.isfinite(metric)) / lowest
    ratio = ratio.mask(group["loss"] == lowest, 1.0).where(np.isfinite(metric)).fillna(np.inf)
    rate = group["learning_rate"].astype(float)
    points = group.assign(
        learning_rate=rate,
        relative=rate / (rate.iloc[int(group["loss"].argmin())] if np.isfinite(lowest) else np.nan),
        metric=metric,
        loss_ratio=ratio,
    )
    return points[POINTS].sort_values("learning_rate")


def width(points: pd.DataFrame) -> pd.DataFrame:
    """How far the learning rate may be off, from `sensitivity`.

    Other hyperparameters vary too in a random search, so it is the lower envelope that counts: the best
    point of each bin of a third of a decade of learning rate, the first centred on the best point. From
    there the range goes both ways, over the bins in which something was tried, as long as the envelope
    is within 10 % of the best.

    Returns:
      A row per task, total_steps, protocol and optimizer: learning_rate (the best), low and high (the
      range), factor (high / low), at_edge (the best is the smallest or the largest that was tried, so
      that the range is only a bound), points (how many). NaN where all diverged.
    """
    rows = []
    for key, group in points.groupby(TUNED, dropna=False, sort=False):
        row = dict(zip(TUNED, key, strict=True)) | {"points": len(group), "at_edge": False}
        rates = group["learning_rate"].to_numpy(float)
        ratio = group["loss_ratio"].to_numpy(float)
        if np.isfinite(ratio).any():
            best = rates[ratio.argmin()]
            low, high = _range(rates / best, ratio)
            row |= {"learning_rate": best, "low": low * best, "high": high * best}
            row |= {"factor": high / low, "at_edge": best in (rates.min(), rates.max())}
        rows.append(row)
    return pd.DataFrame(rows, columns=WIDTHS)


def _range(relative: np.ndarray, ratio: np.ndarray) -> tuple[float, float]:
    """The learning rates, over the best, that bound the good stretch of the envelope around it."""
    bins = np.round(BINS_PER_DECADE * np.log10(relative)).astype(int)
    order = np.lexsort([ratio, bins])
    envelope = order[np.unique(bins[order], return_index=True)[1]]  # the best of each bin, by bin
    good = ratio[envelope] <= TOLERANCE
    centre = int(np.flatnonzero(bins[envelope] == 0)[0])
    first = last = centre
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(good) - 1 and good[last + 1]:
        last += 1
    return float(relative[envelope[first]]), float(relative[envelope[last]])
