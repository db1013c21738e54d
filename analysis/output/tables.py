"""Tables for people: estimates with intervals, runs, provenance, curves that are not too many."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import frames
from analysis.statistics.ratio import Ratio
from analysis.statistics.summary import reported
from analysis.statistics.trials import GROUP

POINTS = 200, 40_000  # of a curve in the page, and of all curves in it
# Left out where all rows are the same.
GIVEN = (
    "task",
    "protocol",
    "total_steps",
    "horizon",
    "over",
    "axis",
    "paired",
    "unit",
    "decides",
    "measure",
)
TITLES = {
    "total_steps": "horizon",
    "p_faster": "P(faster)",
    "speedup": "speed-up",
    "reached_over": "baseline reached",
    "gap": "held-out / training KL",
    "gap_at_quarter": "at a quarter",
    "steps_to_target": "steps to target",
    "seconds_to_target": "seconds to target",
    "mean_biased": "mean (biased)",
    "p_reached": "P(reached)",
    "learning_rate": "best learning rate",
    "at_edge": "at the edge",
    "smallest": "smallest detectable",
    "students_over": "baseline students",
    "decides": "metric at the end",
}
OF_CROWDS = ["unit", "students", "students_over"]  # which say nothing where each student is its own
ESTIMATES = ("median", "score", "spearman")  # whose interval is called low and high


def thin(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Curves for the page, of at most POINTS, and a note where those are fewer than there are.

    The first and the last point stay; of the others more towards the beginning, where curves are steep.
    """
    lines = table.groupby([*GROUP, "label"], sort=False)
    most = min(POINTS[0], max(20, POINTS[1] // max(1, lines.ngroups)))
    if lines.size().max() <= most:
        return table, []
    rank, size = lines.cumcount(), lines["step"].transform("size")
    place, before = ((x / (size - 1)) ** 0.5 * (most - 1) for x in (rank, rank - 1))
    kept = (rank == 0) | (np.floor(place) > np.floor(before.fillna(0)))
    return table[kept], [f"Curves are thinned to at most {most} points each; measurements.csv has all."]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table for people: an estimate and its interval in one cell, no column that says nothing."""
    dropped = [name for name in GIVEN if name in table and table[name].nunique() == 1 < len(table)]
    if {"optimizer", "label"} <= {*table}:
        dropped.append("optimizer")
    if "unit" in table and (table["unit"] == "seeds").all():
        dropped = [*{*dropped, *OF_CROWDS}]
    table = table.drop(columns=dropped)
    if {"speedup", "low", "high", "bound"} <= {*table}:
        texts = [str(Ratio.of(row)) for _, row in table.iterrows()]
        table = table.assign(speedup=texts).drop(columns=["low", "high", "bound"])
    for name in [n for n in table if f"{n}_low" in table or (n in ESTIMATES and "low" in table)]:
        ends = [f"{name}_low", f"{name}_high"] if f"{name}_low" in table else ["low", "high"]
        texts = [_estimate(*row) for row in table[[name, *ends]].to_numpy(float)]
        table = table.assign(**{str(name): texts}).drop(columns=ends)
    columns = map(str, table)
    titles = {name: TITLES.get(name, frames.metric(table, name).label) for name in columns}
    return table.round({"needed": 0}).rename(columns=titles)


def _estimate(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.4g}" if np.isnan(low) else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def runs_table(runs: pd.DataFrame, ends: pd.DataFrame, out: Path) -> pd.DataFrame:
    """One row per trial, for the page."""
    table = ends.merge(runs[["run_id", "record", "device", "dirty"]], on="run_id")
    shown = pd.DataFrame(
        {
            "optimizer": table["optimizer"],
            "seed": table["seed"],
            "task": table["task"],
            "protocol": table["protocol"],
            "horizon": table["total_steps"],
            "status": table["status"],
            "steps to target": table["steps_to_target"],
            "seconds to target": table["seconds_to_target"],
            "seconds": table["train_seconds"],
            **{metric.label: table[metric.name] for metric in reported(ends)},
            "record": [os.path.relpath(path, out) for path in table["record"]],
            "commit": table["commit"].str[:10] + table["dirty"].map({True: "+", False: ""}),
            "device": table["device"],
            "hyperparameters": [words(text) for text in table["hyperparameters"]],
        }
    ).sort_values(["task", "protocol", "horizon", "optimizer", "seed"], ignore_index=True)
    return readable(shown)


def words(hyperparameters: str) -> str:
    """JSON text as words: learning_rate=0.01 momentum=0.9."""
    values = json.loads(hyperparameters)
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def provenance(runs: pd.DataFrame) -> pd.DataFrame:
    """What the numbers depend on: how many runs have which version, device, commit, command."""
    rows: list[tuple[str, str, int]] = []
    versions: Counter[tuple[str, str]] = Counter()
    for text, count in runs["versions"].value_counts().items():
        for name, version in json.loads(str(text)).items():
            versions[name, str(version)] += count
    rows += [(name, version, count) for (name, version), count in sorted(versions.items())]
    dirty = runs["dirty"].map({True: " with uncommitted changes", False: ""})
    for what, values in (
        ("device", runs["device"]),
        ("host", runs["host"]),
        ("precision", runs["precision"].replace("{}", "")),
        ("commit", runs["commit"].replace("", "unknown") + dirty),
        ("task fingerprint", runs["task"] + " " + runs["task_fingerprint"].str[:16]),
        ("command", runs["command"]),
        ("started on", runs["started_at"].str[:10]),
    ):
        counts = values.value_counts()
        rows += [(what, str(value), int(count)) for value, count in counts.head(20).items() if value]
        if len(counts) > 20:
            rows.append((what, f"and {len(counts) - 20} more", int(counts.iloc[20:].sum())))
    return pd.DataFrame(rows, columns=["what", "value", "runs"])
