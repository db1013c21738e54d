"""Medians over seeds with intervals, and the table of all configurations."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import frames
from analysis.frames import CONFIGURATION
from analysis.statistics import survival
from analysis.statistics.survival import FEWEST
from analysis.statistics.trials import LOST, UNITS
from testbed.metrics import Metric, in_order

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A median over n seeds with its 95 % percentile-bootstrap interval (Efron 1979).

    Of five it is about their range, which covers the median in 93.75 %; fewer have none.
    """

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.median):
            return "-"
        if self.n < FEWEST:
            return f"{self.median:.4g}"
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


def estimate(values: ArrayLike) -> Estimate:
    """The median of independent values, with its interval; resampling is seeded."""
    array = np.asarray(values, float)
    if not len(array):
        return Estimate(np.nan, np.nan, np.nan, 0)
    medians = np.median(_resample(array), axis=1)
    # "nearest": infinite values, which stand for misses, have no mean with their neighbours.
    low, high = np.quantile(medians, [0.025, 0.975], method="nearest")
    return Estimate(float(np.median(array)), float(low), float(high), len(array))


def _resample(array: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    return array[index]


def summary(ends: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration, from `trials`: medians over seeds with intervals, as text.

    In each task and horizon those with most seeds come first, of these the best on validation data.

    Steps and seconds to the target are Kaplan-Meier medians: seeds that never reach it are
    later than all others, and counted.
    """
    rows = []
    metrics = reported(ends)
    for key, group in ends.groupby(CONFIGURATION, sort=False):
        named = dict(zip(CONFIGURATION, key, strict=True))
        reached = group["steps_to_target"].notna()
        row = {
            "task": named["task"],
            "horizon": named["total_steps"],
            "label": group["label"].iloc[0],
            "n": len(group),
            "score": group["score"].median(),
            "diverged": int(group["status"].isin(LOST).sum()),
        }
        ended = group[group["status"] != "unfinished"]
        for metric in metrics:
            values = ended[metric.name].mask(ended["status"].isin(LOST)).fillna(metric.worst)
            row[metric.name] = str(estimate(values))
        row["reached"] = f"{reached.sum()} of {len(group)}"
        for axis in UNITS:
            known = group[group[f"{axis}_watched"].notna()]  # untimed ones have no seconds
            median = survival.median(known[f"{axis}_to_target"], known[f"{axis}_watched"])
            row[f"{axis}_to_target"] = str(median)
        rows.append(row)
    order = ["task", "horizon", "n", "score"]
    table = pd.DataFrame(rows).sort_values(order, ascending=[True, True, False, True])
    return frames.with_metrics(table.drop(columns="score").reset_index(drop=True), ends)


def reported(ends: pd.DataFrame) -> list[Metric]:
    """The metrics of `trials` that tables show: held-out KL, those of the targets, all of test data."""
    measured = [name for name in frames.metrics_of(ends) if ends[name].notna().any()]
    known = [frames.metric(ends, name) for name in in_order(measured)]
    shown = {"validation_kl", *ends["target_metric"]}
    return [
        metric
        for metric in known
        if metric.name in shown or (metric.name.startswith("test_") and metric.better != "none")
    ]
