"""Statistics of comparison: pure functions on frames (`frames.load`)."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.frames import CONFIGURATION

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A median over n seeds with its 95 % percentile-bootstrap interval (Efron 1979)."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.median):
            return "-"
        if self.n < 3:  # too few for an interval
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


def trials(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its last measurement, and when it first was at its target.

    Adds steps_to_target and seconds_to_target: those of the first measurement that is at least as
    good as the target, NaN where none is (it is censored, not missing).
    """
    last = frame.sort_values("step").groupby("run_id", as_index=False).last()
    good = pd.Series(False, index=frame.index)
    for (metric, mode), group in frame.groupby(["target_metric", "target_mode"]):
        sign = 1 if mode == "min" else -1
        good[group.index] = sign * group[metric] <= sign * group["target_value"]
    first = frame[good].sort_values("step").groupby("run_id")[["step", "train_seconds"]].first()
    first.columns = pd.Index(["steps_to_target", "seconds_to_target"])
    return last.merge(first, left_on="run_id", right_index=True, how="left")


def resolve(ends: pd.DataFrame, baseline: str) -> str:
    """The label that a baseline's name stands for: itself, or that optimizer's best on validation data.

    The best, so that nobody looks fast for having run beside a badly tuned baseline.
    """
    if (ends["label"] == baseline).any() or not (ends["optimizer"] == baseline).any():
        return baseline
    own = ends[ends["optimizer"] == baseline]
    sign = 1 if own["target_mode"].iloc[0] == "min" else -1
    scores = sign * own[own["target_metric"].iloc[0]]
    return str(scores.fillna(np.inf).groupby(own["label"]).median().idxmin())


def summary(ends: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration, from `trials`: medians over seeds with intervals, as text.

    Medians of steps and seconds to the target count seeds that never were there as later than all
    others, and are given only where more than half of the seeds were.
    """
    rows = []
    for key, group in ends.groupby(CONFIGURATION, sort=False):
        named = dict(zip(CONFIGURATION, key, strict=True))
        reached = group["steps_to_target"].notna()
        row = {
            "task": named["task"],
            "horizon": named["total_steps"],
            "label": group["label"].iloc[0],
            "n": len(group),
            "diverged": int((group["status"] == "diverged").sum()),
        }
        for metric in ("validation_kl", "test_kl", "test_agreement", "test_accuracy"):
            finished = group[metric].where(group["status"] != "diverged")
            row[metric] = str(estimate(finished.fillna(np.inf)))
        row["reached"] = f"{reached.sum()} of {len(group)}"
        for column in ("steps_to_target", "seconds_to_target"):
            most = reached.mean() > 0.5
            if (group[column].notna() != reached).any():  # some were not timed
                row[column] = "-"
            else:
                row[column] = str(_censored(group[column])) if most else "not reached"
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.sort_values(["task", "horizon", "label"], ignore_index=True)


def _censored(values: pd.Series) -> Estimate:
    return estimate(values.fillna(np.inf))


def speedups(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times fewer steps to the target each configuration needs than the baseline's label.

    Paired by seed: the median over seeds of baseline's steps / its steps, with interval, within one
    task and horizon. Seeds where either was never at the target are counted, not used.
    """
    rows = []
    for (task, horizon), group in ends.groupby(["task", "total_steps"]):
        base = group[group["label"] == baseline]
        for label, other in group[group["label"] != baseline].groupby("label"):
            pairs = base.merge(other, on="seed", suffixes=("", "_other"))
            both = pairs.dropna(subset=["steps_to_target", "steps_to_target_other"])
            if pairs.empty:
                continue
            rows.append(
                {
                    "task": task,
                    "horizon": horizon,
                    "label": label,
                    "over": baseline,
                    "speed-up in steps": str(
                        estimate(both["steps_to_target"] / both["steps_to_target_other"])
                    ),
                    "speed-up in seconds": str(
                        estimate(both["seconds_to_target"] / both["seconds_to_target_other"])
                    ),
                    "pairs": f"{len(both)} of {len(pairs)}",
                }
            )
    return pd.DataFrame(rows)


def matched_quality(ends: pd.DataFrame, baseline: str, metric: str) -> pd.DataFrame:
    """How many times fewer steps are needed for what the baseline has at the end of a horizon.

    The paper's sense of "Shampoo in 1200 epochs what Adam has in 4800": every trial runs to the end of
    its own schedule. For each seed, the steps at which the other optimizer would end where the baseline
    ends are interpolated between its horizons, linearly in log steps and log metric (which is
    better when lower). Median over seeds, with interval. Where the baseline's value lies outside the
    other's range, that end of the range bounds the ratio: such seeds enter with their bound and are
    counted, and where they are the most, only the bound is told.
    """
    rows = []
    for task, of_task in ends.groupby("task"):
        finals = of_task.pivot_table(index=["label", "seed"], columns="total_steps", values=metric)
        if baseline not in finals.index.get_level_values("label"):
            continue
        for label in finals.index.get_level_values("label").unique().drop(baseline):
            for horizon in map(int, finals.columns):
                matched = _matched(finals.loc[label], finals.loc[baseline][horizon], horizon)
                if not matched:
                    continue
                ratios = [ratio for ratio, _ in matched]
                told = str(estimate(ratios))
                bounds = [bound for _, bound in matched if bound]
                if 2 * len(bounds) > len(matched):
                    told = f"{max(bounds, key=bounds.count)} {np.median(ratios):.4g}"
                rows.append(
                    {
                        "task": task,
                        "label": label,
                        "for": f"{baseline} at {horizon:,} steps",
                        "speed-up in steps": told,
                        "n": len(matched),
                        "bounds": len(bounds),
                    }
                )
    return pd.DataFrame(rows)


def _matched(other: pd.DataFrame, base: pd.Series, horizon: int) -> list[tuple[float, str]]:
    """For each shared seed, the ratio and what it is: "", "at least" or "at most" that.

    Empty where the other has fewer than two horizons to interpolate between.
    """
    other, base = other.dropna(axis=1), base.dropna()
    if other.shape[1] < 2:
        return []
    steps = np.log(other.columns.to_numpy(float))
    matched = []
    for seed in other.index.intersection(base.index):
        reached, wanted = np.log(other.loc[seed].to_numpy(float)), np.log(base[seed])
        bound = "at least" if wanted > reached.max() else "at most" if wanted < reached.min() else ""
        # np.interp wants ascending abscissae: the metric falls as steps grow.
        needed = np.exp(np.interp(-wanted, -reached, steps))
        matched.append((horizon / float(needed), bound))
    return matched
