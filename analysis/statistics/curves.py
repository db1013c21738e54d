"""Curves of configurations: medians and quartiles over their seeds at each measured step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import frames
from analysis.statistics.trials import GROUP, LOST
from testbed.metrics import Metric, in_order

LINE = [*GROUP, "optimizer", "label"]
# Columns beside those of metrics, which may be called anything but this.
GROUP_ID, LINE_ID, TRIAL_ID, HORIZON = " group", " line", " trial", " horizon"
LAST, WHOLE, OWN, REACH = " last", " whole", " own", " reach"


class Target(NamedTuple):
    """What trials are to reach; mode is min or max."""

    metric: str
    value: float
    mode: str


def target(frame: pd.DataFrame) -> Target:
    """The target of a frame's first row."""
    row = frame.iloc[0]
    return Target(str(row["target_metric"]), float(row["target_value"]), str(row["target_mode"]))


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and step, from measurements (`frames.load`).

    Columns: those of LINE; step; epoch and train_seconds (medians of those that have them, else NaN);
    n, the number of seeds; and for each metric m of the frame (`frames.metrics_of`): m, its median,
    m_low and m_high, its quartiles.

    From its last finite measurement on, a trial that diverged or failed counts as worse than all others
    (`Metric.worst`: infinite KL, minus infinite share) at every step of its configuration: so a median
    is infinite where half of the seeds are lost. Where no way is better, such a trial is absent instead.
    A configuration of which all are lost goes on like that at the steps of its group, and to the
    horizon, where no trial may have been. A trial that has not ended is absent after its last step.
    """
    metrics = [frames.metric(frame, name) for name in frames.metrics_of(frame)]
    rows = pd.DataFrame(
        {
            GROUP_ID: frame.groupby(GROUP, sort=False, dropna=False).ngroup(),
            LINE_ID: frame.groupby(LINE, sort=False, dropna=False).ngroup(),
            TRIAL_ID: frame.groupby(["label", "run_id"], sort=False).ngroup(),
            HORIZON: frame["total_steps"],
        }
    ).join(frame.reindex(columns=[*frames.CLOCKS, *(metric.name for metric in metrics)]).astype(float))
    names = frame[LINE].assign(**{LINE_ID: rows[LINE_ID]}).drop_duplicates(LINE_ID).set_index(LINE_ID)
    rows = _with_the_lost(rows, frame["status"].isin(LOST), metrics)
    points = rows.groupby([LINE_ID, "step"])
    place = points.ngroup().to_numpy()
    table = points.size().rename("n").reset_index()
    for column in ("epoch", "train_seconds"):
        table[column] = _quartiles(rows[column].to_numpy(), place, len(table))[1]
    quartiles: dict[str, NDArray[np.float64]] = {}
    for metric in metrics:
        low, middle, high = _quartiles(rows[metric.name].to_numpy(), place, len(table))
        quartiles |= {metric.name: middle, f"{metric.name}_low": low, f"{metric.name}_high": high}
    table = table.join(names, on=LINE_ID).astype({"step": int})
    table = table[[*LINE, *frames.CLOCKS, "n"]].assign(**quartiles)
    return frames.with_metrics(table.sort_values([*LINE, "step"], ignore_index=True), frame)


def measured(table: pd.DataFrame) -> list[Metric]:
    """The metrics of a table of curves that have a value, in a reader's order."""
    known = [str(name) for name in table if f"{name}_low" in table and table[name].notna().any()]
    return [frames.metric(table, name) for name in in_order(known)]


def _with_the_lost(rows: pd.DataFrame, lost: pd.Series, metrics: Sequence[Metric]) -> pd.DataFrame:
    """The rows, with the worst values in place of what lost trials have not measured."""
    names = [metric.name for metric in metrics]
    present = rows[names].notna().groupby(rows[GROUP_ID]).transform("any")
    present |= ~present.any(axis=1).to_numpy()[:, None]  # of a group that measured nothing, all
    worst = np.where(present, [metric.worst for metric in metrics], np.nan)
    last = rows["step"].where(_finite(rows, present, metrics))
    last = last.groupby(rows[TRIAL_ID]).transform("max")
    first = rows.groupby(TRIAL_ID)["step"].transform("min")
    never = lost & last.isna()
    rows[names] = np.where(never.to_numpy()[:, None], worst, rows[names])
    # The step at which a trial broke down is often one at which no other was measured.
    last = last.fillna(first)
    kept = rows[~lost | (rows["step"] <= last)]
    whole = lost.groupby(rows[LINE_ID]).transform("all")
    ended = rows.assign(**{LAST: last, WHOLE: whole})[lost]
    ended[names] = worst[lost]
    ended = ended.drop_duplicates(TRIAL_ID)
    if ended.empty:
        return kept
    return pd.concat([kept, _after(kept, ended, names)], ignore_index=True)


def _finite(rows: pd.DataFrame, present: pd.DataFrame, metrics: Sequence[Metric]) -> pd.Series:
    """Whether all of a measurement is finite of the metrics that have a direction.

    Of these, the ones that the trial ever measured count: a KL says that a trial broke down, where
    accuracies stay finite. A trial that measured none of those that its group did broke down at once.
    """
    directed = [metric.name for metric in metrics if metric.better != "none"]
    known = rows[directed].notna()
    measured = known.groupby(rows[TRIAL_ID]).transform("any")
    broke_at_once = present[directed].any(axis=1) & ~measured.any(axis=1)
    return (known | ~measured).all(axis=1) & ~broke_at_once


def _after(kept: pd.DataFrame, ended: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Rows of the trials that ended early, with the worst values that they have, at later steps."""
    ended = ended[[GROUP_ID, LINE_ID, TRIAL_ID, HORIZON, LAST, WHOLE, *names]]
    own = kept[[LINE_ID, "step"]].drop_duplicates().assign(**{OWN: True})
    horizons = ended[[GROUP_ID]].assign(step=ended[HORIZON])
    steps = pd.concat([kept[[GROUP_ID, "step"]], horizons]).drop_duplicates()
    reach = kept.groupby(LINE_ID)["step"].max().rename(REACH)
    after = ended.join(reach, on=LINE_ID).merge(steps, on=GROUP_ID)
    after = after[after["step"] > after[LAST]].merge(own, on=[LINE_ID, "step"], how="left")
    after = after[after[OWN].notna() | (after[WHOLE] & (after["step"] > after[REACH]))]
    epochs = kept.groupby([GROUP_ID, "step"])["epoch"].median()
    return after.join(epochs, on=[GROUP_ID, "step"]).assign(train_seconds=np.nan)[kept.columns]


def _quartiles(
    values: NDArray[np.float64], place: NDArray[np.integer], places: int
) -> NDArray[np.float64]:
    """(3, places): the quartiles of the values at each place, NaNs left out; linear as in NumPy.

    Unlike NumPy's, defined next to infinite values: whatever lies between one and a finite value is
    infinite.
    """
    known = ~np.isnan(values)
    values, place = values[known], place[known]
    values = np.append(values[np.lexsort((values, place))], np.nan)  # a place of none is at its end
    counts = np.bincount(place, minlength=places)
    starts = np.cumsum(counts) - counts
    quartiles = np.full((3, places), np.nan)
    some = counts > 0
    for row, share in zip(quartiles, (0.25, 0.5, 0.75), strict=True):
        at = share * (counts[some] - 1)
        below, above = (values[starts[some] + edge(at).astype(int)] for edge in (np.floor, np.ceil))
        with np.errstate(invalid="ignore"):
            mixed = below + at % 1 * (above - below)
        row[some] = np.where(np.isnan(mixed), below, mixed)  # 0 * inf, inf - inf
    return quartiles
