"""Statistics of a race: ratios paired by seed, with intervals; pure functions on frames."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import frames
from analysis.statistics import ratio, trials
from analysis.statistics.trials import UNITS
from testbed import records

QUANTITIES = ("seconds_to_target", "steps_to_target", "seconds_per_step")


def measurements(folder: Path, lanes: Sequence[str], run_ids: Collection[str]) -> pd.DataFrame:
    """Measurements of a race's trials as in `frames.load`, with the lane as `label`."""
    parts = []
    for lane in lanes:
        frame, _ = frames.load(folder / lane)
        parts.append(frame[frame["run_id"].isin(list(run_ids))].assign(label=lane))
    return frames.with_metrics(pd.concat(parts, ignore_index=True), parts[0])


def resumed_seeds(paths: Sequence[Path]) -> list[int]:
    """Seeds of the records whose trials were interrupted and resumed."""
    trials_of = [records.read(path) for path in paths]
    return sorted({r.header["seed"] for r in trials_of if not r.end or r.end["resumed"]})


def paused_seeds(paths: Sequence[Path]) -> list[int]:
    """Seeds of the records whose processes were stopped as they trained: they have no seconds."""
    ended = [r for r in map(records.read, paths) if r.end]
    return sorted({r.header["seed"] for r in ended if r.end and r.end["ledger"].get("paused_s")})


def pairs(frame: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row per lane and seed, from measurements whose `label` is the lane.

    Columns: lane, seed, status, steps and seconds (all of the trial), steps_watched and
    seconds_watched (`trials.trials`), metric (the target's, at the end), steps_to_target,
    seconds_to_target (NaN: never), seconds_per_step; for each of the last three, its `ratio_of_...` to
    the baseline's on that seed; and bound. Where one of the two was never at the target, the ratio to
    target counts its whole trial, and bound says what the ratio then is: "at least" or "at most" that.
    Where neither was, it is NaN, and bound "none".
    """
    # Rivals may have the same run_id: their lane is what differs.
    ends = trials.trials(frame.assign(run_id=frame["label"] + "/" + frame["run_id"]))
    metric = ends["target_metric"].iloc[0]
    table = pd.DataFrame(
        {
            "lane": ends["label"],
            "seed": ends["seed"],
            "status": ends["status"],
            "steps": ends["step"],
            "seconds": ends["train_seconds"],
            **{f"{axis}_watched": ends[f"{axis}_watched"] for axis in UNITS},
            "metric": ends[metric],
            "steps_to_target": ends["steps_to_target"],
            "seconds_to_target": ends["seconds_to_target"],
            "seconds_per_step": ends["train_seconds"] / ends["step"].where(ends["step"] > 0),
        }
    ).astype({"steps_to_target": float, "seconds_to_target": float})
    reached = table["steps_to_target"].notna()
    counted = table.assign(
        steps_to_target=table["steps_to_target"].fillna(table["steps_watched"]),
        seconds_to_target=table["seconds_to_target"].fillna(table["seconds_watched"]),
        reached=reached,
    )
    base = counted[counted["lane"] == baseline].set_index("seed")
    base_reached = table["seed"].map(base["reached"])
    for name in QUANTITIES:
        table[f"ratio_of_{name}"] = counted[name] / table["seed"].map(base[name])
        if name.endswith("_to_target"):
            table.loc[~(reached | base_reached), f"ratio_of_{name}"] = np.nan
    table["bound"] = np.select(
        [reached & base_reached, base_reached, reached], ["", "at least", "at most"], "none"
    )
    lanes = list(dict.fromkeys(frame["label"]))
    table["lane"] = pd.Categorical(table["lane"], lanes)
    return table.sort_values(["lane", "seed"], ignore_index=True).astype({"lane": str})


def standings(table: pd.DataFrame) -> pd.DataFrame:
    """One row per lane, from `pairs`: medians over seeds; seeds never at the target count as later."""
    rows = []
    for lane, group in table.groupby("lane", sort=False):
        reached = group["steps_to_target"].notna()
        timed = group[group["seconds_watched"].notna()]
        steps = group["steps_to_target"].fillna(np.inf).median()
        seconds = timed["seconds_to_target"].fillna(np.inf).median()
        never = "not reached"
        rows.append(
            {
                "optimizer": lane,
                "reached": f"{reached.sum()} of {len(group)}",
                "steps to target": never if np.isinf(steps) else f"{steps:.0f}",
                "seconds to target": never if np.isinf(seconds) else f"{seconds:.2f}",
                "ms per step": f"{1000 * group['seconds_per_step'].median():.3f}",
                "at the end": f"{group['metric'].median():.4f}",
                "diverged": str((group["status"] == "diverged").sum()),
            }
        )
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame, lane: str, baseline: str, target: str) -> str:
    """How a lane did against the baseline, from `pairs`: below 1 it is faster; misses are censored."""
    group, base = (table[table["lane"] == name].set_index("seed") for name in (lane, baseline))
    seeds = group.index.intersection(base.index)
    group, base = group.loc[seeds], base.loc[seeds]
    per_step = ratio.geometric_mean(group["ratio_of_seconds_per_step"])
    seconds, steps = (to_target(group, base, axis) for axis in ("seconds", "steps"))
    text = f"{lane}: neither was at {target}"
    if np.isfinite(steps.value):
        text = f"{lane}: {seconds} of {baseline}'s seconds to {target}, {steps} of its steps"
    text += f", {per_step} of its seconds per step; n = {len(group)}"
    text += ", no interval" if len(group) < ratio.FEWEST else ""
    for name, side in ((baseline, base), (lane, group)):
        if missed := int(side["steps_to_target"].isna().sum()):
            text += f"; {name} missed it on {missed}"
    return text


def to_target(group: pd.DataFrame, base: pd.DataFrame, axis: str) -> ratio.Ratio:
    """A lane's steps or seconds to the target / the baseline's; rows of `pairs`, of the same seeds.

    To the measurement that first saw it at the target, without what the cadence allows: all lanes are
    measured at the same steps, and the seconds up to those are what a race compares. Seconds are of the
    seeds that were timed in both.
    """
    watched = f"{axis}_watched"
    known = (group[watched].notna() & base[watched].notna()).to_numpy()
    group, base = group[known], base[known]
    times = (
        ratio.Times(*(side[f"{axis}_{what}"].to_numpy(float) for what in ("to_target", "watched")))
        for side in (base, group)
    )
    return ratio.paired(*times).inverse()
