"""A comparison in a sentence for each optimizer: at the ends of schedules first, then to the target."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis import frames
from analysis.output.sections import workloads
from analysis.statistics import ratio, survival
from analysis.statistics.trials import GROUP

MOST = 12  # sentences of a workload; the others are in the table


def headlines(best: pd.DataFrame, speedups: pd.DataFrame, matched: pd.DataFrame) -> Iterator[str]:
    """One sentence for each optimizer at matched quality, per task; and one per workload to the target.

    From `trials.best_per_optimizer`, `speedups.speedups` and `matched_quality.matched_quality`.
    """
    yield from _at_matched_quality(matched)
    several = len(best[GROUP].drop_duplicates()) > 1
    names = best.drop_duplicates("label").set_index("label")["optimizer"]
    for workload in workloads(best):
        where = f" ({workload.title})" if several else ""
        trials = workload.rows(best)
        target = target_of(trials)
        own = workload.rows(speedups[speedups["axis"] == "steps"])
        own = own.sort_values("speedup", ascending=False)
        sentences = [_sentence(row.replace(names), target) + where + "." for _, row in own.iterrows()]
        yield from sentences[:MOST]
        if len(sentences) > MOST:
            yield f"{len(sentences) - MOST} more optimizers are in the tables{where}."
        if not sentences:
            for optimizer, of in trials.groupby("optimizer"):
                median = survival.median(of["steps_to_target"], of["steps_watched"])
                yield f"{optimizer}: steps to {target}: {median}, n = {len(of)}{where}."


def _at_matched_quality(matched: pd.DataFrame) -> Iterator[str]:
    """Of each optimizer, at the end of the baseline's horizon at which most of its trials ended.

    Of several the longest; horizons at which the ratio is only a bound come last.
    """
    several = len(matched[["task", "protocol"]].drop_duplicates()) > 1
    known = matched[matched["speedup"].notna()]
    known = known.assign(bounded=known["bound"] == "")
    known = known.sort_values(["bounded", "students_over", "horizon"], ascending=False, kind="stable")
    for (task, protocol), own in known.groupby(["task", "protocol"]):
        where = f" ({task}, {protocol})" if several else ""
        first = own.drop_duplicates("optimizer").sort_values("speedup", ascending=False)
        for _, row in first[:MOST].iterrows():
            over, metric = row["over"], frames.metric(matched, row["decides"]).label
            quality = f"matched quality ({over}'s {metric} at the end of {row['horizon']:,} steps)"
            needs = f"{row['label']} needs {_share(row)} of {over}'s steps at {quality}"
            yield f"{needs}, {_count(row)}; {_confidence(row)}{where}."
        if len(first) > MOST:
            yield f"{len(first) - MOST} more optimizers at matched quality are in the table{where}."


def _share(row: pd.Series) -> str:
    """Of the baseline's steps, with its interval: such as 0.31x [0.28, 0.35]."""
    inverse = ratio.Ratio.of(row).inverse()
    value, bracket, interval = format(inverse, ".2f" if inverse.value > 0.1 else ".2g").partition(" [")
    return f"{value}x{bracket}{interval}"


def _count(row: pd.Series) -> str:
    """What the comparison is made of: such as n = 6 lesson seeds, 48 students."""
    of = {"seeds": "", "students": " students that share lessons"}
    crowds = f" lesson seeds, {row['students']} students"
    return f"n = {row['n']}{of.get(row['unit'], crowds)}{'' if row['paired'] else ', unpaired'}"


def _confidence(row: pd.Series) -> str:
    """What the comparison could have seen, and how sure it is."""
    if row["n"] < ratio.FEWEST:
        return "no interval"
    smallest = row["smallest"]
    digits = ".3f" if smallest < 1.1 else ".2f" if smallest < 10 else ".3g"
    seen = "" if np.isnan(smallest) else f"smallest detectable ratio {smallest:{digits}}; "
    return f"{seen}P(faster) {_probability(row['p_faster'])}"


def _sentence(row: pd.Series, target: str) -> str:
    """Such as: shampoo reaches the target in 0.31x [0.28, 0.35] of adam's steps, n = 5; P = 0.99."""
    speedup = ratio.Ratio.of(row)
    mine, theirs, n = row["label"], row["over"], speedup.n
    counts = f"{mine} {row['reached']}, {theirs} {row['reached_over']}"
    if not row["reached"] + row["reached_over"]:
        return f"{mine} and {theirs}: neither reaches {target}, n = {n}"
    if np.isnan(speedup.value):
        reach = f"seeds that reach {target}: {counts}, n = {n}"
        return f"{mine} and {theirs}: the ratio cannot be estimated; {reach}"
    reaches = f"reaches {target} in" if row["reached"] else f"never reaches {target}: it needs"
    steps = f"{_share(row)} of {theirs}'s steps"
    missed = f"; seeds that reach it: {counts}" if _any_missed(row) else ""
    return f"{mine} {reaches} {steps}, {_count(row)}; {_confidence(row)}{missed}"


def _any_missed(row: pd.Series) -> bool:
    return bool(row["reached"] < row["students"] or row["reached_over"] < row["students_over"])


def _probability(p: float) -> str:
    return "> 0.999" if p > 0.999 else "< 0.001" if p < 0.001 else f"= {p:.3f}"


def target_of(ends: pd.DataFrame) -> str:
    """Such as: validation_kl <= 0.05."""
    sign = "<=" if ends["target_mode"].iloc[0] == "min" else ">="
    return f"{ends['target_metric'].iloc[0]} {sign} {ends['target_value'].iloc[0]:g}"
