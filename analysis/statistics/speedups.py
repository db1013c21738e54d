"""Speed-ups: how many times faster than a baseline each configuration is at the target."""

import numpy as np
import pandas as pd

from analysis.statistics import ratio
from analysis.statistics.designs import design, lessons_of
from analysis.statistics.trials import GROUP, TARGET, UNITS, resolve_baseline

COLUMNS = [
    *GROUP,
    *("optimizer", "label", "over", "axis"),
    *ratio.COLUMNS,
    *("wins", "reached", "reached_over", "paired", "unit", "students", "students_over"),
]


def speedups(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times faster than the baseline each configuration is at the target, per group.

    One row per configuration and axis (steps, seconds where timed): the ratio baseline's / its, with
    its 95 % interval (statistics/ratio.py: misses are censored, not dropped), the confidence that it is
    above 1, the smallest detectable ratio, wins: on how many pairs it was first (a
    tie is half), and how many trials were at the target. Unit and paired: as in `designs.design`;
    students, students_over: how many trials of each are compared. Groups in which targets differ are
    left out.
    """
    rows = []
    baselines = resolve_baseline(ends, baseline)
    for axis in UNITS:
        for key, group in started_above_target(ends, axis).groupby(GROUP):
            if len(group[TARGET].drop_duplicates()) > 1:
                continue
            sides = {str(label): side for label, side in group.groupby("label")}
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
    base, other = (side.assign(of=lessons_of(side)) for side in (base, other))
    how = design(base["of"], other["of"])
    base, other = (side[side["of"].isin(how.lessons)] for side in (base, other))
    theirs, mine = (_times(side, alone=how.unit == "students") for side in (base, other))
    speedup = ratio.paired(theirs, mine) if how.paired else ratio.unpaired(theirs, mine)
    return speedup.as_columns() | {
        "wins": _wins(base, other) if how.paired else np.nan,
        "reached": int(np.isfinite(mine.reached).sum()),
        "reached_over": int(np.isfinite(theirs.reached).sum()),
        "paired": how.paired,
        "unit": how.unit,
        "students": len(other),
        "students_over": len(base),
    }


def _times(side: pd.DataFrame, *, alone: bool) -> ratio.Times:
    """Of trials, with the crowds that they are of, or each alone."""
    reached, watched, cadence = side[["reached", "watched", "cadence"]].to_numpy(float).T
    return ratio.Times(reached, watched, cadence, None if alone else side["of"].to_numpy(str))


def _wins(base: pd.DataFrame, other: pd.DataFrame) -> float:
    """On how many pairs one was at the target before the other, by medians; a tie is half."""
    theirs, mine = (
        side["reached"].fillna(np.inf).groupby(side["of"]).median() for side in (base, other)
    )
    return float((mine < theirs).sum() + (mine == theirs).sum() / 2)
