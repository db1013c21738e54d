"""A comparison in a sentence for each optimizer."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.output.sections import workloads
from analysis.statistics import ratio, survival
from analysis.statistics.trials import GROUP

MOST = 12  # sentences of a workload; the others are in the table


def headlines(best: pd.DataFrame, speedups: pd.DataFrame) -> Iterator[str]:
    """One sentence for each optimizer of `trials.best_per_optimizer`, per workload."""
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
    inverse = speedup.inverse()
    value, bracket, interval = format(inverse, ".2f" if inverse.value > 0.1 else ".2g").partition(" [")
    reaches = f"reaches {target} in" if row["reached"] else f"never reaches {target}: it needs"
    steps = f"{value}x{bracket}{interval} of {theirs}'s steps"
    p = f"P(faster) {_probability(speedup.p_above_1)}" if n >= ratio.FEWEST else "no interval"
    missed = f"; seeds that reach it: {counts}" if row["paired"] and _any_missed(row) else ""
    return f"{mine} {reaches} {steps}, n = {n}{'' if row['paired'] else ', unpaired'}; {p}{missed}"


def _any_missed(row: pd.Series) -> bool:
    return bool(min(row["reached"], row["reached_over"]) < row["n"])


def _probability(p: float) -> str:
    return "> 0.999" if p > 0.999 else "< 0.001" if p < 0.001 else f"= {p:.3f}"


def target_of(ends: pd.DataFrame) -> str:
    """Such as: validation_kl <= 0.05."""
    sign = "<=" if ends["target_mode"].iloc[0] == "min" else ">="
    return f"{ends['target_metric'].iloc[0]} {sign} {ends['target_value'].iloc[0]:g}"
