"""How right answers are where the truth is known: an optimizer against itself, slowed by a factor."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from analysis.statistics.ratio import LEVEL

KEYS = ["task", "factor"]


def cells(comparisons: pd.DataFrame) -> pd.DataFrame:
    """A row for each task and factor, and one for all ("all", missing factor).

    Args:
      comparisons: task, factor, truth (the ratio that is known), ratio with low and high (nan: the
        comparison gave none), students (of each optimizer).

    Returns:
      task, factor, n (comparisons), answered; of those that were answered: truth and estimate
      (geometric means), bias (estimate / truth - 1) with bias_error (its standard error), half_width
      (of intervals, the median, as a share), covers (how often an interval holds the truth) with
      covers_low and covers_high (95 %, Clopper and Pearson 1934), apart (how often an interval does
      not hold 1), wrong_way (of these, on the wrong side of 1), students (the mean).
    """
    rows = [
        _cell(of, str(of["task"].iloc[0]), float(of["factor"].iloc[0]))
        for _, of in comparisons.groupby(KEYS, sort=True)
    ]
    return pd.DataFrame([*rows, _cell(comparisons, "all", math.nan)])


def _cell(comparisons: pd.DataFrame, task: str, factor: float) -> dict[str, object]:
    of = comparisons[np.isfinite(comparisons["ratio"])]
    n, logs = len(of), np.log(of["ratio"] / of["truth"])
    held = int(((of["low"] <= of["truth"]) & (of["truth"] <= of["high"])).sum())
    apart = (of["low"] > 1) | (of["high"] < 1)
    right = np.sign(of["ratio"] - 1) == np.sign(of["factor"] - 1)
    interval = stats.binomtest(held, n).proportion_ci(LEVEL) if n else (math.nan, math.nan)
    return {
        "task": task,
        "factor": factor,
        "n": len(comparisons),
        "answered": n,
        "truth": float(np.exp(np.log(of["truth"]).mean())),
        "estimate": float(np.exp(np.log(of["ratio"]).mean())),
        "bias": float(np.expm1(logs.mean())),
        "bias_error": float(logs.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        "half_width": float((np.log(of["high"] / of["low"]) / 2).median()),
        "covers": held / n if n else math.nan,
        "covers_low": float(interval[0]),
        "covers_high": float(interval[1]),
        "apart": float(apart.mean()),
        "wrong_way": int((apart & ~right & (of["factor"] != 1)).sum()),
        "students": float(of["students"].mean()),
    }
