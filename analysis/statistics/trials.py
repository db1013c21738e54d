"""One row per trial: when it was at its target, and how it ended; which of them stand for an optimizer.

Pure functions on frames (`frames.load`).
"""

import numpy as np
import pandas as pd

from analysis import frames

GROUP = ["task", "protocol", "total_steps"]
UNITS = ("steps", "seconds")  # of times to a target
LOST = ("diverged", "failed")  # how a trial ends that has no result
TARGET = ["target_metric", "target_mode", "target_value"]


def trials(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its last measurement, and when it first was at its target.

    Adds, for steps and for seconds (NaN where trials are not timed), <axis>_to_target, those of the
    first measurement that is at least as good as the target, NaN where none is (it is censored, not
    missing); <axis>_cadence, since the measurement before that one; and <axis>_watched, for how long
    the trial could have reached it: its horizon, also where it was lost (LOST), since it never will; of
    an unfinished trial what it has run. Adds score, the target's metric on validation data at the end,
    better when lower, inf where it was lost, NaN where it is unfinished; and final, the deciding metric
    (`decides`) at the end, that of an untrained student where it was lost, NaN where it is unfinished.
    """
    ordered = frame.sort_values(["run_id", "step"])
    last = ordered.groupby("run_id").tail(1).reset_index(drop=True)  # `last()` would pass over NaNs
    good = pd.Series(False, index=ordered.index)
    for (metric, mode, value), group in ordered.groupby(TARGET):
        sign = 1 if mode == "min" else -1
        good[group.index] = sign * group[metric] <= sign * float(str(value))
    clocks = ordered[["step", "train_seconds"]]
    since = clocks - clocks.groupby(ordered["run_id"]).shift()
    first = pd.concat([ordered["run_id"], clocks, since], axis=1)[good].groupby("run_id").head(1)
    first.columns = pd.Index(
        ["run_id", *(f"{axis}_{w}" for w in ("to_target", "cadence") for axis in UNITS)]
    )
    ends = last.merge(first, on="run_id", how="left")
    ended = ends["status"] != "unfinished"
    ends["steps_watched"] = ends["total_steps"].where(ended, ends["step"])
    ends["seconds_watched"] = ends["steps_watched"] * _seconds_per_step(ends)
    ends["score"] = score(ends)
    untrained = ends["run_id"].map(deciding(ordered).groupby(ordered["run_id"]).first())
    ends["final"] = deciding(ends).mask(ends["status"].isin(LOST), untrained).where(ended)
    return frames.with_metrics(ends, frame)


def deciding(rows: pd.DataFrame) -> pd.Series:
    """The deciding metric of each measurement."""
    values = pd.Series(np.nan, index=rows.index)
    for metric, own in rows.groupby("decides"):
        values[own.index] = own[metric]
    return values


def _seconds_per_step(ends: pd.DataFrame) -> pd.Series:
    """Of each timed trial; of one that was lost at once, what its configuration's others take."""
    seconds = ends["train_seconds"] / ends["step"].where(ends["step"] > 0)
    for columns in ([*GROUP, "label"], GROUP):
        of_others = seconds.groupby([ends[name] for name in columns]).transform("median")
        seconds = seconds.fillna(of_others)
    return seconds.where(ends["timed"])


def score(ends: pd.DataFrame) -> pd.Series:
    """The target's metric on validation data, better when lower; inf: lost, NaN: unfinished."""
    scores = pd.Series(np.nan, index=ends.index)
    for (metric, mode), group in ends.groupby(["target_metric", "target_mode"]):
        scores[group.index] = group[metric] * (1 if mode == "min" else -1)
    scores = scores.fillna(np.inf).mask(ends["status"].isin(LOST), np.inf)
    return scores.where(ends["status"] != "unfinished")


def worse_than_at_start(frame: pd.DataFrame) -> pd.DataFrame:
    """The last measurements of finished trials whose target's metric is worse than at their start.

    One that is not a number is worse than any.
    """
    ordered = frame[frame["status"] == "finished"].sort_values(["run_id", "step"])
    first, last = (of(1) for of in (ordered.groupby("run_id").head, ordered.groupby("run_id").tail))
    began = last["run_id"].map(score(first).set_axis(first["run_id"])).astype(float)
    return last[np.isfinite(began) & (score(last) > began)]


def best_per_optimizer(ends: pd.DataFrame) -> pd.DataFrame:
    """Of `trials`, those of each optimizer's best configuration in each group, on validation data.

    The best has the lowest median score over seeds, among the configurations with most seeds that have
    ended: one lucky seed of a search is no match for what was run on five.
    """
    by = ends.groupby([*GROUP, "optimizer", "label"])["score"]
    scores = by.agg(["count", "median"]).reset_index()
    scores = scores.sort_values(["count", "median"], ascending=[False, True], kind="stable")
    best = scores.drop_duplicates([*GROUP, "optimizer"])
    return frames.with_metrics(ends.merge(best[[*GROUP, "optimizer", "label"]]), ends)


def resolve_baseline(ends: pd.DataFrame, baseline: str) -> dict[tuple[str, str, int], str]:
    """Per group, the label that a baseline's name stands for: itself, or that optimizer's best.

    The best on validation data (`best_per_optimizer`), so that no optimizer looks fast beside a badly
    tuned baseline; also among versions of its source. Groups without the baseline are left out.
    """
    named = ends[ends["label"] == baseline]
    best = best_per_optimizer(ends[ends["optimizer_name"] == baseline].assign(optimizer=baseline))
    return {
        (str(row["task"]), str(row["protocol"]), int(row["total_steps"])): str(row["label"])
        for side in (best, named)
        for _, row in side.drop_duplicates(GROUP).iterrows()
    }


def merge_versions(ends: pd.DataFrame) -> pd.DataFrame:
    """Trials with one name for an optimizer whose versions never meet in a group."""
    names = ends["optimizer_name"]
    meet = ends.groupby([*GROUP, "optimizer_name"])["optimizer"].transform("nunique") > 1
    return ends.assign(optimizer=names.mask(names.isin(names[meet]), ends["optimizer"]))
