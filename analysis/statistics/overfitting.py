"""The overfitting audit: whether reducing the training error means generalizing better, in numbers.

The claim is that of Beyer et al. 2021, "Knowledge distillation: a good teacher is patient and
consistent" (arXiv 2106.05237). Pure functions on frames (`frames.load`).
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics import survival
from analysis.statistics.summary import estimate
from analysis.statistics.trials import GROUP, LOST

Array = NDArray[np.float64]

TRIAL = ["run_id", "task", "total_steps", "protocol", "optimizer", "label", "seed", "status"]
NUMBERS = ["gap", "gap_at_quarter", "trend", "rise", "train_kl", "validation_kl"]
CORRELATION = [*GROUP, "optimizer", "n", "diverged", "spearman", "low", "high", "concordance"]
RESAMPLES = 1000
FEWEST = 8  # trials of one optimizer that make a correlation


def per_trial(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial.

    Columns: run_id, task, total_steps, protocol, optimizer, label, seed, status;

    - train_kl, validation_kl: at the last measurement;
    - gap: validation_kl / train_kl there; gap_at_quarter: at the first measurement from a quarter of
      the horizon on;
    - trend: the slope of log(gap) against log(step), by least squares over the measurements from a tenth
      of the horizon on; the gap grows by 2 ** trend with each doubling of the steps;
    - rise: validation_kl at the end / the lowest along the way: above 1 where it went up again.

    NaN where the trial did not finish, or a score is no positive number.
    """
    if frame.empty:
        return pd.DataFrame(columns=[*TRIAL, *NUMBERS])
    rows = frame.reindex(columns=[*TRIAL, "step", "train_kl", "validation_kl"])
    rows = rows.sort_values(["run_id", "step"])
    positive = rows[["train_kl", "validation_kl"]].astype(float)
    positive = positive.where((positive > 0) & (positive < np.inf))
    rows = rows.assign(gap=positive["validation_kl"] / positive["train_kl"])
    table = rows.groupby("run_id").tail(1).set_index("run_id", drop=False)
    quarter = rows[rows["step"] >= rows["total_steps"] / 4].groupby("run_id").head(1)
    lowest = positive.groupby(rows["run_id"])["validation_kl"].min()
    table = table.assign(
        gap_at_quarter=quarter.set_index("run_id")["gap"],
        trend=_trend(rows[rows["step"] >= rows["total_steps"] / 10]),
        rise=positive["validation_kl"].groupby(rows["run_id"]).tail(1).to_numpy() / lowest,
    )
    whole = table["status"] == "finished"
    table[NUMBERS] = table[NUMBERS].astype(float).where(whole, np.nan, axis=0)
    return table[[*TRIAL, *NUMBERS]].reset_index(drop=True)


def _trend(rows: pd.DataFrame) -> pd.Series:
    """The slope of log(gap) against log(step) of each run_id; NaN for fewer than two points."""
    rows = rows[rows["gap"].notna() & (rows["step"] > 0)]
    by = rows["run_id"]
    logs = rows[["step", "gap"]].astype(float).apply(np.log)
    centred = logs - logs.groupby(by).transform("mean")
    squares = (centred["step"] ** 2).groupby(by).sum()
    return (centred["step"] * centred["gap"]).groupby(by).sum() / squares.where(squares > 0)


def audit(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `per_trial` by configuration.

    A row per task, total_steps, protocol, optimizer and label. Columns: n (trials), diverged (how many
    did, or failed; the others make the numbers), and for each number its median over seeds and the ends
    of its interval (`summary.estimate`; NaN for fewer than five): gap, gap_low, gap_high, ...
    """
    keys = [*GROUP, "optimizer", "label"]
    names = [f"{name}{part}" for name in NUMBERS for part in ("", "_low", "_high")]
    rows = []
    for key, group in per_trial(frame).groupby(keys, dropna=False, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= {"n": len(group), "diverged": int(group["status"].isin(LOST).sum())}
        for name in NUMBERS:
            values = group[name].dropna()
            row[name] = values.median()
            if len(values) >= survival.FEWEST:
                _, row[f"{name}_low"], row[f"{name}_high"], _ = estimate(values)
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, "n", "diverged", *names])


def rank_correlation(frame: pd.DataFrame) -> pd.DataFrame:
    """Whether trials that fit better also generalize better: ranks of both KLs at the end.

    A row per task, total_steps and protocol (optimizer "all"), and per optimizer with 8 or more trials
    that have both. Columns: n (trials that have both), diverged (how many did, or failed, and are not
    among them); spearman (rank correlation, Spearman 1904) with low and high, its 95 % percentile
    interval from resampling trials, seeded; concordance (the share of pairs of trials that both KLs
    order the same way, from Kendall's tau-b: (1 + tau) / 2). NaN for fewer than three trials, or where
    all are the same. Trials of one configuration are similar, which the interval does not know.
    """
    trials = per_trial(frame)
    rows = []
    for key, group in trials.groupby(GROUP, dropna=False, sort=False):
        named = dict(zip(GROUP, key, strict=True))
        rows.append(named | {"optimizer": "all"} | _correlation(group))
        for optimizer, own in group.groupby("optimizer"):
            if len(own[["train_kl", "validation_kl"]].dropna()) >= FEWEST:
                rows.append(named | {"optimizer": optimizer} | _correlation(own))
    return pd.DataFrame(rows, columns=CORRELATION)


def _correlation(trials: pd.DataFrame) -> dict[str, Any]:
    both = trials[["train_kl", "validation_kl"]].dropna().to_numpy(float).T
    n = both.shape[1]
    row = {"n": n, "diverged": int(trials["status"].isin(LOST).sum())}
    if n < 3 or (both.min(axis=1) == both.max(axis=1)).any():
        return row
    index = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    low, high = np.nanquantile(spearman(both[0][index], both[1][index]), [0.025, 0.975])
    tau = stats.kendalltau(*both).statistic
    return row | {
        "spearman": float(spearman(*both)),
        "low": low,
        "high": high,
        "concordance": (1 + tau) / 2,
    }


def spearman(x: Array, y: Array) -> Array:
    """Spearman's rank correlation along the last axis: Pearson's of the ranks, ties at their mean rank.

    NaN where all values of one are the same.
    """
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    a, b = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.where(scale > 0, scale, np.nan)
