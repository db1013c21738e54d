"""Warnings: what a reader should know before believing a comparison, each in one sentence."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import Folder
from analysis.statistics import crossings, edges
from analysis.statistics.designs import lessons_of
from analysis.statistics.trials import GROUP, TARGET, best_per_optimizer, score, worse_than_at_start
from testbed.records import ReadError

EARLY = 0.8  # of the schedule: a target met before that is met by a schedule meant for more steps
MOST = 20  # damaged files that are named one by one
MOST_NAMED = 4  # of other things in one sentence


def warnings(records: Folder, ends: pd.DataFrame) -> list[str]:
    """All that apply to a folder of records; `ends` is `trials.trials` of it."""
    return [
        *of_records(records),
        *_worse(records.frame),
        *_seeds(ends),
        *_budgets(records.runs),
        *_early_targets(ends),
        *_lost_targets(ends),
        *_crossings(records.frame, ends),
        *_edges(ends),
    ]


def of_records(records: Folder) -> list[str]:
    """Those about the records themselves: damage, versions, devices, code, how runs ended."""
    return [
        *_damage(records),
        *_versions(records.runs),
        *_devices(records.runs),
        *_code(records.runs),
        *_endings(records.runs),
        *_failed_roots(records.runs),
    ]


def _damage(records: Folder) -> Iterator[str]:
    of_file: dict[Path, list[ReadError]] = {}
    for error in records.errors:
        of_file.setdefault(error.path, []).append(error)
    for path, (first, *more) in list(of_file.items())[:MOST]:
        line = f", line {first.line}" if first.line else ""
        rest = f" (and {len(more)} more faults)" if more else ""
        yield f"Not used: {path}{line}: {first.reason}{rest}."
    if (left := len(of_file) - MOST) > 0:
        yield f"Not used: {left} more files or parts of them, named on the command line."


def _versions(runs: pd.DataFrame) -> Iterator[str]:
    for task, count in runs.groupby("task_name")["task"].nunique().items():
        if count > 1:
            yield (
                f"Mixed task fingerprints: {task} is there in {count} versions (other data, teacher, "
                "protocol constants or precision). They are reported apart; do not compare across them."
            )
    for optimizer, count in runs.groupby("optimizer_name")["optimizer"].nunique().items():
        if count > 1:
            yield f"{optimizer} has {count} versions of its source, named with a piece of a checksum."
    for key, group in runs.groupby(GROUP):
        if len(group[TARGET].drop_duplicates()) > 1:
            yield f"Mixed targets: the runs of {_named(key)} have several; they have no speed-ups."
    for (task, protocol), group in runs.groupby(["task", "protocol"]):
        if len(metrics := sorted(group["decides"].unique())) > 1:
            yield (
                f"Mixed deciding metrics: the runs of {task} ({protocol}) name {' and '.join(metrics)}; "
                "they have no matched quality."
            )


def _devices(runs: pd.DataFrame) -> Iterator[str]:
    timed = runs[runs["timed"]]
    for key, group in timed.groupby(GROUP):
        places = (group["device"] + " (" + group["host"] + ")").value_counts()
        if len(places) > 1:
            named = "; ".join(f"{place}: {n}" for place, n in places.items())
            yield (
                f"Mixed devices: the timed runs of {_named(key)} are from {len(places)} ({named}). "
                "Compare their steps, not their seconds."
            )
    if batched := int((~runs["timed"] & ~runs["paused"]).sum()):
        yield f"{batched} of {len(runs)} runs were batched: they have no seconds of their own."
    if n := int(runs["paused"].sum()):
        yield (
            f"{n} of {len(runs)} runs were stopped for a while as they trained: their seconds are not "
            "compared, their steps are."
        )


def _seeds(ends: pd.DataFrame) -> Iterator[str]:
    for key, group in best_per_optimizer(ends).groupby(GROUP):
        seeds = {str(name): frozenset(lessons_of(of)) for name, of in group.groupby("optimizer")}
        if len(set(seeds.values())) > 1:
            named = "; ".join(f"{name} {_ranges(of)}" for name, of in seeds.items())
            kind = "lesson seeds" if (group["sharing"] == "shared").any() else "seeds"
            yield (
                f"Unpaired {kind}: in {_named(key)} the optimizers have different ones ({named}). "
                "Ratios are of the seeds that both have, or, where those are fewer than three, unpaired."
            )
        counts = group["optimizer"].value_counts(sort=False)
        if alone := [name for name in seeds if counts[name] == 1]:
            yield f"One seed only, hence no interval: {', '.join(alone)} in {_named(key)}."
        if crowds := [name for name, of in seeds.items() if counts[name] > len(of) == 1]:
            yield (
                f"One lesson seed only: {', '.join(crowds)} in {_named(key)}. Intervals are about first "
                "weights; what other lessons would change is not in them."
            )
        if n := int((group["steps_to_target"] <= 0).sum()):
            yield (
                f"{n} of {len(group)} trials of {_named(key)} were at the target before their first "
                "step; ratios are without them."
            )


def _budgets(runs: pd.DataFrame) -> Iterator[str]:
    for key, group in runs.groupby(GROUP):
        tried = group.groupby("optimizer")["hyperparameters"].nunique()
        if tried.nunique() > 1:
            named = ", ".join(f"{name} {count}" for name, count in tried.items())
            yield (
                f"Different tuning budgets: configurations that are recorded here for {_named(key)}: "
                f"{named}. More configurations tried means a more optimistic best."
            )


def _early_targets(ends: pd.DataFrame) -> Iterator[str]:
    for key, group in ends.groupby(GROUP):
        shares = (group["steps_to_target"] / group["total_steps"]).fillna(np.inf)
        shares = shares.groupby(group["optimizer"]).median()
        early = shares[shares < EARLY].sort_values()
        if len(early):
            named = ", ".join(f"{name} at {share:.0%}" for name, share in early.items())
            yield (
                f"Target met before the schedule's end in {_named(key)}: {named} of the steps. A "
                "schedule for fewer steps may reach it sooner; matched quality does not depend on it."
            )


def _lost_targets(ends: pd.DataFrame) -> Iterator[str]:
    for key, group in ends[ends["status"] == "finished"].groupby(GROUP):
        reached = group[group["steps_to_target"].notna()]
        limit = reached["target_value"] * np.where(reached["target_mode"] == "min", 1, -1)
        lost = reached[~(score(reached) <= limit)]
        if len(lost):
            trials, counts = Counter(group["label"]), Counter(lost["label"])
            named = [f"{label} on {n} of {trials[label]}" for label, n in counts.most_common(MOST_NAMED)]
            yield (
                f"Target reached and lost again in {_named(key)}: {_some(named, len(counts))}. It "
                "counts as reached at the first time; the end of the schedule says what was kept."
            )


def _crossings(frame: pd.DataFrame, ends: pd.DataFrame) -> Iterator[str]:
    for key, group in crossings.crossings(frame, ends).groupby(GROUP):
        named = [
            f"{row['first']} is ahead of {row['second']} at the end, and was behind after "
            f"{row['since']:,} steps"
            for _, row in group[:MOST_NAMED].iterrows()
        ]
        yield (
            f"Curves cross in {_named(key)}: {_some(named, len(group))}. Who is ahead depends on the "
            "number of steps; a target on the way compares something else than the end."
        )


def _edges(ends: pd.DataFrame) -> Iterator[str]:
    for key, group in edges.edges(ends).groupby(GROUP):
        named = [
            f"{row['optimizer']} {row['hyperparameter']}={row['value']:g}, the {row['edge']} of "
            f"{row['tried']}"
            for _, row in group[:MOST_NAMED].iterrows()
        ]
        yield (
            f"The best configuration is at the edge of what was tried in {_named(key)}: "
            f"{_some(named, len(group))}. A better one may be beyond."
        )


def _some(named: list[str], count: int) -> str:
    """The first of several, and how many more there are."""
    return "; ".join(named) + (f"; and {count - len(named)} more" if count > len(named) else "")


def _code(runs: pd.DataFrame) -> Iterator[str]:
    if dirty := int(runs["dirty"].sum()):
        yield (
            f"Dirty git tree: {dirty} of {len(runs)} runs were made with uncommitted changes, so their "
            "commit does not say what ran."
        )
    if (commits := runs.loc[runs["commit"] != "", "commit"].nunique()) > 1:
        yield f"The runs are of {commits} commits."
    if (versions := runs["versions"].nunique()) > 1:
        yield f"The runs are of {versions} sets of package versions; see the provenance."


def _endings(runs: pd.DataFrame) -> Iterator[str]:
    counts = runs["status"].value_counts()
    if n := counts.get("unfinished", 0):
        yield f"{n} of {len(runs)} runs are unfinished: what they did not reach yet is censored there."
    if n := counts.get("diverged", 0):
        yield f"{n} of {len(runs)} runs diverged: they count as worse than all others, and as misses."
    if n := counts.get("failed", 0):
        yield f"{n} of {len(runs)} runs failed with an error: {', '.join(_reasons(runs))}."
    if n := int((runs["timed"] & runs["resumed"]).sum()):
        yield f"{n} timed runs were interrupted and resumed: their seconds are of several occasions."


def _worse(frame: pd.DataFrame) -> Iterator[str]:
    worse = worse_than_at_start(frame)
    if len(worse):
        named = ", ".join(f"{label}: {n}" for label, n in worse["label"].value_counts().items())
        yield (
            f"{len(worse)} runs finished worse than they started, by their target's metric ({named}). "
            "They count as they ended; a smaller learning rate may help."
        )


def _failed_roots(runs: pd.DataFrame) -> Iterator[str]:
    """Of optimizers that count the inverse roots that failed (`failed_roots`)."""
    failed = runs.reindex(columns=["count_failed_roots"])["count_failed_roots"]
    if n := int((failed > 0).sum()):
        of_each = failed.groupby(runs["label"]).sum()
        named = ", ".join(f"{label}: {count:.0f}" for label, count in of_each[of_each > 0].items())
        yield (
            f"{n} of {len(runs)} runs had inverse roots that failed ({named}): older ones, at first "
            "identities, were used in their place."
        )


def _reasons(runs: pd.DataFrame) -> list[str]:
    return sorted(set(runs.loc[runs["status"] == "failed", "reason"].str[:80]))[:3]


def _named(key: Any) -> str:
    task, protocol, steps = key
    return f"{task} ({protocol}, {steps:,} steps)"


def _ranges(seeds: frozenset[str]) -> str:
    """Such as 0-4, 7."""
    if not all(re.fullmatch(r"-?\d+", seed) for seed in seeds):
        return ", ".join(sorted(seeds)[:5])
    parts: list[list[int]] = []
    for seed in sorted(map(int, seeds)):
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    texts = [f"{low}-{high}" if low < high else f"{low}" for low, high in parts[:5]]
    return ", ".join(texts) + (", …" if len(parts) > 5 else "")
