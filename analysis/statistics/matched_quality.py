"""Matched quality: in how many steps an optimizer ends where another ends, across horizons."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import frames
from analysis.statistics import ratio, survival
from analysis.statistics.designs import design, lessons_of
from analysis.statistics.ratio import FEWEST
from analysis.statistics.summary import estimate
from analysis.statistics.trials import GROUP, LOST, best_per_optimizer, deciding, merge_versions

COLUMNS = ["task", "protocol", "optimizer", "label", "over", "horizon", "needed", *ratio.COLUMNS]
COLUMNS += ["paired", "unit", "students", "students_over", "decides"]
TINY = 1e-12  # a metric of zero has no logarithm
ROUNDING = 1e-9  # of steps


def matched_quality(ends: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times fewer steps are needed for what the baseline has at the end of a horizon.

    The paper's sense of "Shampoo in 1200 epochs what Adam has in 4800": every trial runs to the end of
    its own schedule. Each optimizer enters with its best configuration at each horizon. The deciding
    metric at the end is interpolated between the other's horizons, linearly in log steps and log metric;
    the ratio is where the mean log distance to the baseline's is zero, the interval what a t-test of
    that distance does not reject (a Fieller interval).

    Where both share lessons at all horizons (`designs.design`), distances are of each seed, or of the
    mean of each crowd, and the test is of pairs. Otherwise those at different horizons, and of both
    optimizers, count as independent (Welch's test). Beyond the other's horizons nothing is known: the
    interval is open, and the ratio "at least" or "at most" the last. A diverged trial has the metric of
    an untrained student; an unfinished one has not ended. Tasks whose records name several deciding
    metrics are left out. Unit is what n counts: of the horizons on both sides of the estimate, and of
    the baseline's, the fewest; students and students_over: how many trials are at those of each.
    """
    ends = merge_versions(ends)
    best = best_per_optimizer(ends)
    if (named := ends["label"] == baseline).any():
        baseline = ends.loc[named, "optimizer"].iloc[0]
        best = pd.concat([best[best["optimizer"] != baseline], ends[named]])
    rows: list[dict[str, Any]] = []
    for (task, protocol), group in best.groupby(["task", "protocol"]):
        ended = group[group["final"].notna()]
        if group["decides"].nunique() > 1 or baseline not in set(ended["optimizer"]):
            continue
        logs = np.log(ended["final"].clip(lower=TINY))
        sides = dict(list(ended.assign(y=logs, of=lessons_of(ended)).groupby("optimizer")))
        bases = sides.pop(baseline).groupby("total_steps")
        named_group = {"task": task, "protocol": protocol, "over": baseline}
        for optimizer, other in sides.items():
            who = named_group | {"optimizer": optimizer, "label": optimizer}
            for horizon, base in bases:
                row = _matched(other, base, int(str(horizon)))
                if row.get("n"):
                    rows.append(who | row | {"decides": group["decides"].iloc[0]})
    return pd.DataFrame(rows, columns=COLUMNS)


def _matched(other: pd.DataFrame, base: pd.DataFrame, horizon: int) -> dict[str, Any]:
    """From ends with y (log metric) and of (lessons); empty where nothing can be interpolated."""
    if other["total_steps"].nunique() < 2:
        return {}
    shared = _shared(other, base)
    if shared:
        other, base = (side[side["of"].isin(shared)] for side in (other, base))
        found = _paired(other, base, horizon)
    else:
        found = _unpaired(other, base, horizon)
    needed = horizon / found.value
    near = other[other["total_steps"].isin(_around(other["total_steps"].unique(), needed))]
    parts = [base, *(own for _, own in near.groupby("total_steps"))]
    crowded = any(part["of"].duplicated().any() for part in parts)
    fewest = min(parts, key=lambda part: len(independent(part)))
    unit = "lesson seeds" if shared or fewest["of"].nunique() >= FEWEST else "students"
    how = {"paired": bool(shared), "unit": unit if crowded else "seeds"}
    how |= {"students": len(near), "students_over": len(base)}
    return {"horizon": horizon, "needed": needed} | found.as_columns() | how


def _shared(other: pd.DataFrame, base: pd.DataFrame) -> frozenset[str]:
    """The lessons that make pairs: those of both at all horizons; none where both are independent."""
    designs = [design(base["of"], own["of"]) for _, own in other.groupby("total_steps")]
    shared = frozenset.intersection(*(how.lessons for how in designs))
    enough = len(shared) >= FEWEST or all(how.unit == "seeds" for how in designs)
    return shared if enough and all(how.paired for how in designs) else frozenset()


def _around(horizons: NDArray[np.integer], needed: float) -> NDArray[np.integer]:
    """The horizons on both sides of a number of steps; all, where it is not known."""
    below = horizons[horizons <= needed * (1 + ROUNDING)]
    above = horizons[horizons >= needed * (1 - ROUNDING)]
    edges = {*below[below == below.max(initial=0)], *above[above == above.min(initial=2**53)]}
    return np.array([*edges] or horizons)


def _paired(other: pd.DataFrame, base: pd.DataFrame, horizon: int) -> ratio.Ratio:
    means = other.pivot_table(index="of", columns="total_steps", values="y")
    steps, curves = np.log(means.columns.to_numpy(float)), means.to_numpy(float)
    wanted = base.groupby("of")["y"].mean()[means.index].to_numpy(float)

    def distances(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        at = np.log(horizon) - theta
        return np.stack([np.interp(at, steps, curve) for curve in curves], axis=1) - wanted

    return ratio.where_zero(distances, np.log(horizon) - steps, len(curves))


def _unpaired(other: pd.DataFrame, base: pd.DataFrame, horizon: int) -> ratio.Ratio:
    cells = {int(str(steps)): independent(own) for steps, own in other.groupby("total_steps")}
    steps = np.log(np.array([*cells], float))
    return ratio.between_horizons(independent(base), [*cells.values()], np.log(horizon), steps)


def independent(trials: pd.DataFrame) -> NDArray[np.float64]:
    """Means of y over crowds (of), where there are at least three, else y of each student."""
    means = trials.groupby("of")["y"].mean()
    return (means if len(means) >= FEWEST else trials["y"]).to_numpy(float)


def finals(ends: pd.DataFrame) -> pd.DataFrame:
    """The deciding metric at the end of each optimizer's best configuration, per group.

    Columns: those of GROUP, optimizer, label, decides (the metric), median, low, high, n.
    """
    measured = ends["final"].notna().groupby(ends["task"]).transform("any")
    best = merge_versions(best_per_optimizer(ends[measured & (ends["status"] != "unfinished")]))
    values = deciding(best).mask(best["status"].isin(LOST)).fillna(np.inf)
    rows = []
    for key, own in values.groupby([best[name] for name in [*GROUP, "optimizer", "decides"]]):
        median = estimate(own)
        named = dict(zip([*GROUP, "optimizer", "decides"], key, strict=True)) | {"label": key[-2]}
        if median.n < survival.FEWEST:
            median = median._replace(low=np.nan, high=np.nan)
        rows.append(named | median._asdict())
    return frames.with_metrics(pd.DataFrame(rows), ends)
