"""Two folders of records, before and after a change to an optimizer: what changed, with intervals."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import frames
from analysis.output import checks, markdown, tables
from analysis.statistics import ratio, survival, trials
from analysis.statistics.matched_quality import TINY
from analysis.statistics.ratio import Ratio, Times
from analysis.statistics.speedups import started_above_target
from analysis.statistics.trials import UNITS

# What identifies a configuration on both sides: not its source, which is what changed.
SAME = ["task_fingerprint", "protocol", "total_steps", "optimizer", "start", "sharing"]
STUDENT = ["lessons", "seed"]  # what makes two of its trials a pair
RACE = ["reached", "watched", "cadence"]
COLUMNS = ["task", "optimizer", "of", "before", "after", "after / before", "n", "verdict"]


class Side(NamedTuple):
    """One of the two folders."""

    records: frames.Folder
    ends: pd.DataFrame


def read(folder: Path) -> Side:
    """A folder's records, with the names of optimizers that the records have."""
    records = frames.read(folder)
    if records.frame.empty:
        return Side(records, pd.DataFrame())
    ends = trials.trials(records.frame)
    return Side(records, ends.assign(optimizer=ends["optimizer_name"]))


def report(before: Side, after: Side) -> str:
    """What changed, as Markdown for a pull request. Neither side is empty."""
    table, unmatched = changes(before.ends, after.ends)
    lines = ["## Before and after", ""]
    if len(table):
        lines += [_introduction(table), "", markdown.table(table)]
    else:
        lines += ["Nothing to compare: no configuration is in both folders."]
    if unmatched:
        lines += ["", *(f"- {line}" for line in unmatched)]
    for name, side in (("before", before), ("after", after)):
        lines += [f"- {name}: {markdown.escape(c)}" for c in checks.of_records(side.records)]
    return "\n".join(lines)


def _introduction(table: pd.DataFrame) -> str:
    """How many comparisons show a change, and how to read them."""
    changed = table["verdict"].isin(["better", "worse"]).sum()
    compared = changed + (table["verdict"] == "no change seen").sum()
    return (
        f"{changed} of {compared} comparisons show a change; if nothing had changed, about "
        f"{0.05 * compared:.1f} would show one by chance (those of one configuration go together). "
        "Ratios are after / before, paired by seed, with 95 % intervals; below 1 is better. Seconds "
        "of two occasions differ with the machine by more than their intervals say: "
        "benchmarks/race.py measures them side by side."
    )


def changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row per configuration and quantity, from `trials.trials`; and what has no counterpart.

    Configurations are the same where task (by fingerprint), protocol, horizon, optimizer's name and
    hyperparameters are. Where an optimizer has one that is left over on each side, these are compared
    too (a default changed, or a hyperparameter came), which a line says.
    """
    rows: list[dict[str, Any]] = []
    unmatched = []
    sides = [dict(list(side.groupby(SAME))) for side in (before, after)]
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        groups = [side.get(key) for side in sides]
        pairs, left = _matched(*groups)
        unmatched += left
        for old, new in pairs:
            if any(side.duplicated(STUDENT).any() for side in (old, new)):
                unmatched.append(
                    f"{_name(new)}: not compared, a side has several versions of its source."
                )
            else:
                rows += _compare(old, new)
    return pd.DataFrame(rows, columns=COLUMNS), unmatched


def _matched(
    before: pd.DataFrame | None, after: pd.DataFrame | None
) -> tuple[list[tuple[pd.DataFrame, pd.DataFrame]], list[str]]:
    """Pairs of the same hyperparameters, then the one that is left over on each side."""
    olds, news = (
        {} if side is None else {str(hp): of for hp, of in side.groupby("hyperparameters")}
        for side in (before, after)
    )
    pairs = [(olds.pop(hp), news.pop(hp)) for hp in [*olds] if hp in news]
    if len(olds) == len(news) == 1:
        (old, was), (new, now) = olds.popitem(), news.popitem()
        changed = f"its hyperparameters changed, {_differences(old, new)}"
        return [*pairs, (was, now)], [f"{_name(was)}: compared although {changed}."]
    left = [f"{_name(of)}: before only ({_words(hp)})." for hp, of in olds.items()]
    return pairs, left + [f"{_name(of)}: after only ({_words(hp)})." for hp, of in news.items()]


def _compare(old: pd.DataFrame, new: pd.DataFrame) -> list[dict[str, Any]]:
    named = {"task": _where(old)}
    named |= {"optimizer": new["label"].iloc[0]}
    old, new = (side.set_index(STUDENT) for side in (old, new))
    seeds = old.index.intersection(new.index)
    if seeds.empty:
        return [named | dict.fromkeys(COLUMNS[2:7], "-") | {"verdict": "no seed is in both"}]
    old, new = old.loc[seeds], new.loc[seeds]
    if (old["run_id"] == new["run_id"]).all() and old["test_kl"].equals(new["test_kl"]):
        return [named | dict.fromkeys(COLUMNS[2:6], "-") | {"n": len(seeds), "verdict": "the same run"}]
    return [named | row for row in (_final(old, new), *_to_target(old, new), _per_step(old, new)) if row]


def _final(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, Any] | None:
    before, after = (side["final"].clip(lower=TINY) for side in (old, new))
    metrics = {*old["decides"], *new["decides"]}
    if (after / before).isna().all() or len(metrics) > 1:  # none has ended, or with other metrics
        return None
    change = ratio.geometric_mean(after / before)
    return _row(
        f"{frames.metric(new, metrics.pop()).label} at the end",
        f"{before.median():.4g}",
        f"{after.median():.4g}",
        change,
    )


def _to_target(old: pd.DataFrame, new: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for axis in UNITS:
        raced = [started_above_target(side, axis)[RACE] for side in (old, new)]
        seeds = raced[0].index.intersection(raced[1].index)
        sides = [Times(*side.loc[seeds].to_numpy(float).T) for side in raced]
        if len(seeds):
            before, after = (str(survival.median(side.reached, side.watched)) for side in sides)
            rows.append(_row(f"{axis} to the target", before, after, ratio.paired(*sides).inverse()))
    return rows


def _per_step(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, Any] | None:
    per_step = [
        1000 * side["train_seconds"] / side["step"].where(side["step"] > 0) for side in (old, new)
    ]
    if (per_step[1] / per_step[0]).isna().all():
        return None
    same_place = set(old["host"]) == set(new["host"])
    of = "ms per step" if same_place else "ms per step (other machines)"
    before, after = (f"{ms.median():.4g}" for ms in per_step)
    return _row(of, before, after, ratio.geometric_mean(per_step[1] / per_step[0]))


def _row(of: str, before: str, after: str, change: Ratio) -> dict[str, Any]:
    verdict = "no change seen"
    if np.isnan(change.low):
        verdict = "too few seeds"
    elif change.low == 0 and change.high == np.inf:
        verdict = "cannot tell"
    elif change.high < 1 or change.low > 1:
        verdict = "better" if change.high < 1 else "worse"
    of_both = {"of": of, "before": before, "after": after}
    return of_both | {"after / before": str(change), "n": change.n, "verdict": verdict}


def _name(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    return markdown.escape(f"{first['optimizer']} on {_where(group)}")


def _where(group: pd.DataFrame) -> str:
    task, steps, protocol = group[["task", "total_steps", "protocol"]].iloc[0]
    return f"{task}, {steps:,} steps, {protocol}"


def _words(hyperparameters: str) -> str:
    return markdown.escape(tables.words(hyperparameters))


def _differences(old: str, new: str) -> str:
    was, now = json.loads(old), json.loads(new)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return markdown.escape(
        "; ".join(f"{n} {was.get(n, 'absent')} -> {now.get(n, 'absent')}" for n in names)
    )
