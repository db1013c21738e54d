"""Matched quality: in how many steps an optimizer ends where another ends, across horizons."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import ratio, survival
from analysis.statistics.summary import estimate
from analysis.statistics.trials import GROUP, LOST, best_per_optimizer, merge_versions

COLUMNS = ["task", "protocol", "optimizer", "label", "over", "horizon", "needed", *ratio.COLUMNS]
TINY = 1e-12  # nats: a KL of zero has no logarithm


def matched_quality(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times fewer steps are needed for what the baseline has at the end of a horizon.

    The paper's sense of "Shampoo in 1200 epochs what Adam has in 4800": every trial runs to the end of
    its own schedule. Each optimizer enters with its best configuration at each horizon. Test KL at
    the end is interpolated between the other's horizons, linearly in log steps and log KL, for each
    seed; the ratio is where its mean log distance to the baseline's KL is zero, the interval what a
    t-test of that distance over the seeds does not reject (a Fieller interval). Beyond the other's
    horizons nothing is known: the interval is open, and the ratio "at least" or "at most" the last.
    A diverged trial has the KL of an untrained student; an unfinished one has not ended.
    """
    ends = merge_versions(ends)
    best = best_per_optimizer(ends)
    if (named := ends["label"] == baseline).any():
        baseline = ends.loc[named, "optimizer"].iloc[0]
        best = pd.concat([best[best["optimizer"] != baseline], ends[named]])
    rows = []
    for (task, protocol), group in best.groupby(["task", "protocol"]):
        at_end = group.pivot_table(index=["optimizer", "seed"], columns="total_steps", values="final_kl")
        optimizers = at_end.index.get_level_values("optimizer").unique()
        if baseline not in optimizers:
            continue
        who = {"task": task, "protocol": protocol, "over": baseline}
        for optimizer in optimizers.drop(baseline):
            for horizon in map(int, at_end.columns):
                speedup = _matched(at_end.loc[optimizer], at_end.loc[baseline][horizon], horizon)
                row = who | {"optimizer": optimizer, "label": optimizer, "horizon": horizon}
                if speedup.n:
                    rows.append(row | {"needed": horizon / speedup.value} | speedup.as_columns())
    return pd.DataFrame(rows, columns=COLUMNS)


def _matched(other: pd.DataFrame, base: pd.Series, horizon: int) -> ratio.Ratio:
    """From final KLs, [seed x horizon] and [seed]; n is 0 where nothing can be interpolated."""
    other = other.dropna(axis=1, how="all").dropna().clip(lower=TINY)
    seeds = other.index.intersection(base.dropna().index)
    if other.shape[1] < 2:
        seeds = seeds[:0]
    steps = np.log(other.columns.to_numpy(float))
    curves = np.log(other.loc[seeds].to_numpy(float))
    wanted = np.log(base[seeds].clip(lower=TINY).to_numpy(float))

    def distances(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        at = np.log(horizon) - theta
        return np.stack([np.interp(at, steps, curve) for curve in curves], axis=1) - wanted

    return ratio.where_zero(distances, np.log(horizon) - steps, len(seeds))


def finals(ends: pd.DataFrame) -> pd.DataFrame:
    """Test KL at the end of each optimizer's best configuration, per group: median, low, high, n."""
    measured = ends["final_kl"].notna().groupby(ends["task"]).transform("any")
    best = merge_versions(best_per_optimizer(ends[measured & (ends["status"] != "unfinished")]))
    kl = best["test_kl"].mask(best["status"].isin(LOST)).fillna(np.inf)
    rows = []
    for key, own in kl.groupby([best[name] for name in [*GROUP, "optimizer"]]):
        median = estimate(own)
        named = dict(zip([*GROUP, "optimizer"], key, strict=True)) | {"label": key[-1]}
        if median.n < survival.FEWEST:
            median = median._replace(low=np.nan, high=np.nan)
        rows.append(named | median._asdict())
    return pd.DataFrame(rows)
