"""Pairs of optimizers whose order on the way, or after fewer steps, is not that at the end."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis import frames
from analysis.statistics import ratio
from analysis.statistics.designs import lessons_of
from analysis.statistics.matched_quality import TINY, independent
from analysis.statistics.trials import GROUP, LOST, best_per_optimizer, merge_versions

COLUMNS = ["task", "protocol", "total_steps", "first", "second", "since"]
EARLIEST = 0.25  # of a horizon: no measurement before that is of its middle


class Order(NamedTuple):
    """Two optimizers at one place: who is ahead by more than the noise, and nobody otherwise."""

    ahead: str
    behind: str


def crossings(frame: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """Pairs of which one was ahead by more than the noise, and the other is at the end.

    A row for each pair of best configurations, of measurements (`frames.load`) and `trials.trials`:
    task, protocol, total_steps (the end's), first (ahead at the end), second (ahead before), since (the
    steps: of the middle of the same schedule, or of a shorter horizon's end). The deciding metric is
    compared; in the middle, where that is not measured there, the target's. Each order is one that a
    Welch test at 5 % sees in the logarithms of students, or of means over crowds.
    """
    best = merge_versions(best_per_optimizer(ends[ends["status"] != "unfinished"]))
    rows = []
    for key, group in best.groupby(GROUP):
        middle, end, steps = _halves(group, frame)
        found = _orders(middle, group) & {Order(b, a) for a, b in _orders(end, group)}
        rows += [(*key, order.behind, order.ahead, steps) for order in sorted(found)]
    for key, group in best[best["final"].notna()].groupby(["task", "protocol"]):
        if group["decides"].nunique() > 1:
            continue
        at = {
            int(str(steps)): _orders(_logs(own["final"]), own)
            for steps, own in group.groupby("total_steps")
        }
        rows += [(*key, *row) for row in _between(at)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _between(at: dict[int, set[Order]]) -> list[tuple[int, str, str, int]]:
    """Of orders by horizon, those that are others at the longest horizon at which they are known."""
    last: dict[Order, tuple[int, int]] = {}
    for early, late in combinations(sorted(at), 2):
        for order in sorted(at[early] & {Order(b, a) for a, b in at[late]}):
            last[order] = (late, early)
    return [(late, order.behind, order.ahead, early) for order, (late, early) in last.items()]


def _halves(group: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.Series, pd.Series, int]:
    """What is compared in the middle of a schedule and at its end, lower is better; and that middle."""
    total = int(group["total_steps"].iloc[0])
    rows = frame[frame["run_id"].isin(group["run_id"])].sort_values(["run_id", "step"])
    halves = rows[(rows["step"] <= total / 2) & (rows["step"] >= total * EARLIEST)]
    metrics = [group["decides"].iloc[0], group["target_metric"].iloc[0]]
    known = [metric for metric in metrics if halves[metric].notna().any()]
    if halves.empty or not known:
        nothing = pd.Series(np.nan, index=group.index)
        return nothing, nothing, 0
    sign = -1 if frames.metric(frame, known[0]).better == "max" else 1
    values = rows.set_index("run_id")[known[0]]
    untrained, end = values.groupby(level=0).first(), values.groupby(level=0).last()
    middle = halves.groupby("run_id")[known[0]].last()
    lost = group["status"].isin(LOST)
    at_middle = group["run_id"].map(middle).fillna(group["run_id"].map(untrained).where(lost))
    at_end = group["run_id"].map(end).mask(lost, group["run_id"].map(untrained))
    before, after = (_logs(side) if sign > 0 else -side for side in (at_middle, at_end))
    return before, after, int(halves["step"].max())


def _logs(values: pd.Series) -> pd.Series:
    return pd.Series(np.log(values.astype(float).clip(lower=TINY)))


def _orders(values: pd.Series, trials: pd.DataFrame) -> set[Order]:
    """All pairs of optimizers that are apart by more than the noise."""
    known = trials.assign(y=values, of=lessons_of(trials))
    known = known[np.isfinite(known["y"])]
    sides = {str(name): independent(own) for name, own in known.groupby("optimizer")}
    return {
        Order(a, b) if difference < 0 else Order(b, a)
        for a, b in combinations(sides, 2)
        if (difference := _apart(sides[a], sides[b]))
    }


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The difference of means where a Welch test sees one, else 0."""
    if min(len(one), len(other)) < ratio.FEWEST:
        return 0.0
    difference, error, df = ratio.welch(one, other)
    seen = abs(difference) > special.stdtrit(df, (1 + ratio.LEVEL) / 2) * error + ratio.ROUNDING
    return difference if seen else 0.0
