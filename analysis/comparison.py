"""Statistics of comparison: pure functions on frames (`frames.load`)."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import frames, ratio, survival
from analysis.frames import CONFIGURATION
from analysis.survival import FEWEST
from testbed.metrics import Metric, in_order

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A median over n seeds with its 95 % percentile-bootstrap interval (Efron 1979).

    Of five it is about their range, which covers the median in 93.75 %; of fewer none is told.
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


GROUP = ["task", "protocol", "total_steps"]
AXES = ("steps", "seconds")
LOST = ("diverged", "failed")  # how a trial ends that has no result
TARGET = ["target_metric", "target_mode", "target_value"]
RATIO = ["speedup", "low", "high", "bound", "p_faster", "n"]
WHO = ["task", "protocol", "optimizer", "label", "over"]
SPEEDUPS = [*GROUP, *WHO[2:], "axis", *RATIO, "wins", "reached", "reached_over", "paired"]
MATCHED = [*WHO, "horizon", "needed", *RATIO]
TINY = 1e-12  # nats: a KL of zero has no logarithm


def trials(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its last measurement, and when it first was at its target.

    Adds, for steps and for seconds (NaN where trials are not timed), <axis>_to_target, those of the
    first measurement that is at least as good as the target, NaN where none is (it is censored, not
    missing); <axis>_cadence, since the measurement before that one; and <axis>_watched, for how long
    the trial could have got there: its horizon, also where it was lost (LOST), since it never will; of
    an unfinished trial what it has run. Adds score, the target's metric on validation data at the end,
    better when lower, inf where it was lost, NaN where it is unfinished; and final_kl, test KL at the
    end, that of an untrained student where it was lost, NaN where it is unfinished.
    """
    ordered = frame.sort_values(["run_id", "step"])
    by = ordered.groupby("run_id")
    last = by.tail(1).reset_index(drop=True)  # `last()` would pass over NaNs
    good = pd.Series(False, index=ordered.index)
    for (metric, mode, value), group in ordered.groupby(TARGET):
        sign = 1 if mode == "min" else -1
        good[group.index] = sign * group[metric] <= sign * float(str(value))
    clocks = ordered[["step", "train_seconds"]]
    since = clocks - clocks.groupby(ordered["run_id"]).shift()
    first = pd.concat([ordered["run_id"], clocks, since], axis=1)[good].groupby("run_id").head(1)
    first.columns = pd.Index(
        ["run_id", *(f"{axis}_{w}" for w in ("to_target", "cadence") for axis in AXES)]
    )
    ends = last.merge(first, on="run_id", how="left")
    ended = ends["status"] != "unfinished"
    ends["steps_watched"] = ends["total_steps"].where(ended, ends["step"])
    ends["seconds_watched"] = ends["steps_watched"] * _seconds_per_step(ends)
    ends["score"] = score(ends)
    untrained = ends["run_id"].map(by["test_kl"].first())
    ends["final_kl"] = ends["test_kl"].mask(ends["status"].isin(LOST), untrained).where(ended)
    return frames.with_metrics(ends, frame)


def _seconds_per_step(ends: pd.DataFrame) -> pd.Series:
    """Of each timed trial; of one that was lost at once, what its configuration's others take."""
    own = ends["train_seconds"] / ends["step"].where(ends["step"] > 0)
    for columns in ([*GROUP, "label"], GROUP):
        own = own.fillna(own.groupby([ends[name] for name in columns]).transform("median"))
    return own.where(ends["timed"])


def score(ends: pd.DataFrame) -> pd.Series:
    """The target's metric on validation data, better when lower; inf: lost, NaN: unfinished."""
    scores = pd.Series(np.nan, index=ends.index)
    for (metric, mode), group in ends.groupby(["target_metric", "target_mode"]):
        scores[group.index] = group[metric] * (1 if mode == "min" else -1)
    scores = scores.fillna(np.inf).mask(ends["status"].isin(LOST), np.inf)
    return scores.where(ends["status"] != "unfinished")


def chosen(ends: pd.DataFrame) -> pd.DataFrame:
    """Of `trials`, those of each optimizer's best configuration in each group, on validation data.

    The best has the lowest median score over seeds, among the configurations with most seeds that have
    ended: one lucky seed of a search is no match for what was run on five.
    """
    by = ends.groupby([*GROUP, "optimizer", "label"])["score"]
    scores = by.agg(["count", "median"]).reset_index()
    scores = scores.sort_values(["count", "median"], ascending=[False, True], kind="stable")
    best = scores.drop_duplicates([*GROUP, "optimizer"])
    return ends.merge(best[[*GROUP, "optimizer", "label"]])


def resolve(ends: pd.DataFrame, baseline: str) -> dict[tuple[str, str, int], str]:
    """Per group, the label that a baseline's name stands for: itself, or that optimizer's best.

    The best on validation data (`chosen`), so that nobody looks fast for having run beside a badly tuned
    baseline; also among versions of its source. Groups without the baseline are left out.
    """
    named = ends[ends["label"] == baseline]
    best = chosen(ends[ends["optimizer_name"] == baseline].assign(optimizer=baseline))
    return {
        (str(row["task"]), str(row["protocol"]), int(row["total_steps"])): str(row["label"])
        for side in (best, named)
        for _, row in side.drop_duplicates(GROUP).iterrows()
    }


def across(ends: pd.DataFrame) -> pd.DataFrame:
    """Trials with one name for an optimizer whose versions never meet in a group."""
    names = ends["optimizer_name"]
    meet = ends.groupby([*GROUP, "optimizer_name"])["optimizer"].transform("nunique") > 1
    return ends.assign(optimizer=names.mask(names.isin(names[meet]), ends["optimizer"]))


def summary(ends: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration, from `trials`: medians over seeds with intervals, as text.

    In each task and horizon those with most seeds come first, of these the best on validation data.

    Steps and seconds to the target are Kaplan-Meier medians: seeds that never were there are later than
    all others, and counted.
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
        for axis in AXES:
            known = group[group[f"{axis}_watched"].notna()]  # untimed ones have no seconds
            median = survival.median(known[f"{axis}_to_target"], known[f"{axis}_watched"])
            row[f"{axis}_to_target"] = str(median)
        rows.append(row)
    order = ["task", "horizon", "n", "score"]
    table = pd.DataFrame(rows).sort_values(order, ascending=[True, True, False, True])
    return frames.with_metrics(table.drop(columns="score").reset_index(drop=True), ends)


def reported(ends: pd.DataFrame) -> list[Metric]:
    """The metrics of `trials` that tables show: held-out KL, those of the targets, all of test data."""
    known = [frames.metric(ends, name) for name in in_order(frames.metrics_of(ends))]
    shown = {"validation_kl", *ends["target_metric"]}
    return [
        metric
        for metric in known
        if metric.name in shown or (metric.name.startswith("test_") and metric.better != "none")
    ]


def speedups(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times faster than the baseline each configuration is at the target, per group.

    One row per configuration and axis (steps, seconds where timed): the ratio baseline's / its, with
    its 95 % interval (analysis/ratio.py: misses are censored, not dropped), the confidence that it is
    above 1, wins: on how many seeds it was first (a tie is half), and how many were at the target.
    Paired by seed where at least three seeds are shared, or all; `paired` tells. Groups in which
    targets differ are left out.
    """
    rows = []
    baselines = resolve(ends, baseline)
    for axis in AXES:
        for key, group in raced(ends, axis).groupby(GROUP):
            if len(group[TARGET].drop_duplicates()) > 1:
                continue
            sides = {str(label): side.set_index("seed") for label, side in group.groupby("label")}
            over = baselines.get((str(key[0]), str(key[1]), int(str(key[2]))), "")
            if over not in sides:
                continue
            base = sides.pop(over)
            for label, other in sides.items():
                who = {"optimizer": other["optimizer"].iloc[0], "label": label, "over": over}
                named = dict(zip(GROUP, key, strict=True)) | who | {"axis": axis}
                rows.append(named | _speedup(base, other))
    return pd.DataFrame(rows, columns=SPEEDUPS)


def raced(ends: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Trials with reached, watched and cadence of an axis, as `ratio.Times` has them.

    Without those that were at the target before their first step, and ran no race, or were not timed.
    """
    names = {"to_target": "reached", "watched": "watched", "cadence": "cadence"}
    times = ends.rename(columns={f"{axis}_{name}": of for name, of in names.items()})
    return times[(times["reached"].isna() | (times["reached"] > 0)) & (times["watched"] > 0)]


def _speedup(base: pd.DataFrame, other: pd.DataFrame) -> dict[str, object]:
    seeds = base.index.intersection(other.index)
    paired = len(seeds) >= ratio.FEWEST or len(seeds) == len(base) == len(other)
    if paired:
        base, other = base.loc[seeds], other.loc[seeds]
    theirs, mine = (
        ratio.Times(*side[["reached", "watched", "cadence"]].to_numpy(float).T) for side in (base, other)
    )
    found = ratio.paired(theirs, mine) if paired else ratio.unpaired(theirs, mine)
    return _columns(found) | {
        "wins": _wins(mine.reached, theirs.reached) if paired else np.nan,
        "reached": int(np.isfinite(mine.reached).sum()),
        "reached_over": int(np.isfinite(theirs.reached).sum()),
        "paired": paired,
    }


def _wins(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """On how many seeds one was at the target before the other; a tie is half."""
    mine, theirs = np.nan_to_num(mine, nan=np.inf), np.nan_to_num(theirs, nan=np.inf)
    return float((mine < theirs).sum() + (mine == theirs).sum() / 2)


def matched_quality(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times fewer steps are needed for what the baseline has at the end of a horizon.

    The paper's sense of "Shampoo in 1200 epochs what Adam has in 4800": every trial runs to the end of
    its own schedule. Each optimizer is there with its best configuration at each horizon. Test KL at
    the end is interpolated between the other's horizons, linearly in log steps and log KL, for each
    seed; the ratio is where its mean log distance to the baseline's KL is zero, the interval what a
    t-test of that distance over the seeds does not reject (a Fieller interval). Beyond the other's
    horizons nothing is said: there the interval is open, and the ratio "at least" or "at most" the last.
    A diverged trial has the KL of an untrained student; an unfinished one has not ended.
    """
    ends = across(ends)
    best = chosen(ends)
    if (named := ends["label"] == baseline).any():
        baseline = ends.loc[named, "optimizer"].iloc[0]
        best = pd.concat([best[best["optimizer"] != baseline], ends[named]])
    rows = []
    for (task, protocol), group in best.groupby(["task", "protocol"]):
        finals = group.pivot_table(index=["optimizer", "seed"], columns="total_steps", values="final_kl")
        optimizers = finals.index.get_level_values("optimizer").unique()
        if baseline not in optimizers:
            continue
        who = {"task": task, "protocol": protocol, "over": baseline}
        for optimizer in optimizers.drop(baseline):
            for horizon in map(int, finals.columns):
                found = _matched(finals.loc[optimizer], finals.loc[baseline][horizon], horizon)
                row = who | {"optimizer": optimizer, "label": optimizer, "horizon": horizon}
                rows += [row | {"needed": horizon / found.value} | _columns(found)] if found.n else []
    return pd.DataFrame(rows, columns=MATCHED)


def _columns(found: ratio.Ratio) -> dict[str, object]:
    return dict(zip(RATIO, (*found[:3], found.bound, found.p_above_1, found.n), strict=True))


def _matched(other: pd.DataFrame, base: pd.Series, horizon: int) -> ratio.Ratio:
    """From final KLs, [seed x horizon] and [seed]; n is 0 where nothing can be interpolated."""
    other = other.dropna(axis=1, how="all").dropna().clip(lower=TINY)
    seeds = other.index.intersection(base.dropna().index)
    if other.shape[1] < 2:
        seeds = seeds[:0]
    steps = np.log(other.columns.to_numpy(float))
    curves, wanted = (
        np.log(other.loc[seeds].to_numpy(float)),
        np.log(base[seeds].clip(lower=TINY).to_numpy(float)),
    )

    def distances(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        at = np.log(horizon) - theta
        return np.stack([np.interp(at, steps, curve) for curve in curves], axis=1) - wanted

    return ratio.where_zero(distances, np.log(horizon) - steps, len(seeds))
