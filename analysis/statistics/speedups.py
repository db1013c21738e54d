"""Speed-ups: how many times faster than a baseline each configuration is at the target."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import ratio
from analysis.statistics.trials import GROUP, TARGET, UNITS, resolve_baseline

COLUMNS = [
    *GROUP,
    *("optimizer", "label", "over", "axis"),
    *ratio.COLUMNS,
    *("wins", "reached", "reached_over", "paired"),
]


def speedups(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times faster than the baseline each configuration is at the target, per group.

    One row per configuration and axis (steps, seconds where timed): the ratio baseline's / its, with
    its 95 % interval (statistics/ratio.py: misses are censored, not dropped), the confidence that it is
    above 1, wins: on how many seeds it was first (a tie is half), and how many were at the target.
    Paired by seed where at least three seeds are shared, or all (the column `paired`). Groups in which
    targets differ are left out.
    """
    rows = []
    baselines = resolve_baseline(ends, baseline)
    for axis in UNITS:
        for key, group in started_above_target(ends, axis).groupby(GROUP):
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
    return pd.DataFrame(rows, columns=COLUMNS)


def started_above_target(ends: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Trials with reached, watched and cadence of an axis, as `ratio.Times` has them.

    Without those that were at the target before their first step, and those that were not timed.
    """
    names = {"to_target": "reached", "watched": "watched", "cadence": "cadence"}
    times = ends.rename(columns={f"{axis}_{name}": of for name, of in names.items()})
    return times[(times["reached"].isna() | (times["reached"] > 0)) & (times["watched"] > 0)]


def _speedup(base: pd.DataFrame, other: pd.DataFrame) -> dict[str, object]:
    seeds = base.index.intersection(other.index)
    paired = len(seeds) >= ratio.FEWEST or len(seeds) == len(base) == len(other)
    if paired:
        base, other = base.loc[seeds], other.loc[seeds]
    theirs, mine = _times(base), _times(other)
    speedup = ratio.paired(theirs, mine) if paired else ratio.unpaired(theirs, mine)
    return speedup.as_columns() | {
        "wins": _wins(mine.reached, theirs.reached) if paired else np.nan,
        "reached": int(np.isfinite(mine.reached).sum()),
        "reached_over": int(np.isfinite(theirs.reached).sum()),
        "paired": paired,
    }


def _times(side: pd.DataFrame) -> ratio.Times:
    return ratio.Times(*side[["reached", "watched", "cadence"]].to_numpy(float).T)


def _wins(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """On how many seeds one was at the target before the other; a tie is half."""
    mine, theirs = np.nan_to_num(mine, nan=np.inf), np.nan_to_num(theirs, nan=np.inf)
    return float((mine < theirs).sum() + (mine == theirs).sum() / 2)
