"""From tables to the lines of a figure: which are shown, what they are called, and how they look."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.figures.axes import enumeration
from analysis.figures.style import DASHES, Styles
from analysis.statistics import curves as statistics
from analysis.statistics.curves import Target
from analysis.statistics.ratio import Ratio
from testbed.metrics import Metric

FEW = 3  # of more configurations of one optimizer, the best is shown in full and the others pale
AXES = {"step": "steps", "epoch": "epochs", "train_seconds": "training seconds"}


class Entry(NamedTuple):
    """A label, what its line is called in the figure, and how it is drawn."""

    label: str
    text: str
    colour: str
    marker: str
    dash: str = "-"


class Line(NamedTuple):
    """A line with an optional band; arrays of one length."""

    entry: Entry
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None


def shown_and_pale(scores: pd.Series) -> tuple[dict[str, str], list[str]]:
    """The labels to show in full with what they are called, and those to show pale.

    Args:
      scores: the lower the better, by optimizer and label.
    """
    shown: dict[str, str] = {}
    pale: list[str] = []
    for optimizer, own in scores.fillna(np.inf).groupby(level=0):
        labels = [str(label) for label in own.index.get_level_values(1)]
        if len(labels) <= FEW:
            shown |= {label: label for label in labels}
        else:
            best = labels[int(np.argmin(own))]
            shown[best] = str(optimizer)
            pale += [label for label in labels if label != best]
    return shown, pale


def at_the_end(curves: pd.DataFrame, target: Target) -> pd.Series:
    """The target's metric at the last step, the lower the better, by optimizer and label.

    Infinite for what has fewer seeds than others of its optimizer: a lucky seed of a search.
    """
    by = curves.sort_values("step").groupby(["optimizer", "label"])
    scores = by.last()[target.metric] * (1 if target.mode == "min" else -1)
    seeds = by["n"].max()
    return scores.where(seeds == seeds.groupby(level=0).transform("max"), np.inf)


def entries_of(table: pd.DataFrame, shown: Mapping[str, str], styles: Styles) -> dict[str, Entry]:
    """An entry for each shown label; those of one optimizer differ by their dashes."""
    entries: dict[str, Entry] = {}
    pairs = table[table["label"].isin(shown)][["optimizer", "label"]].drop_duplicates()
    for optimizer, own in pairs.groupby("optimizer"):
        style = styles[str(optimizer)]
        for i, label in enumerate(sorted(own["label"])):
            dash = DASHES[i % len(DASHES)][0]
            entries[label] = Entry(label, shown[label], style.colour, style.marker, dash)
    return entries


def by_label(table: pd.DataFrame, labels: Collection[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Those labels' rows."""
    for label, own in table[table["label"].isin(list(labels))].groupby("label"):
        yield str(label), own


def line_of(
    own: pd.DataFrame,
    axis: str,
    y: str,
    entry: Entry,
    low: str = "",
    high: str = "",
    *,
    linear: bool = False,
) -> Line:
    """A line through the rows that its axes can show, in the order of x, whose axis is logarithmic.

    So is that of y, unless it is linear. The line says in its name where it ends in divergence.
    """
    own = own.sort_values(axis)
    values = own[[axis, y, low or y, high or y]].to_numpy(float)
    drawable = np.isfinite(values[:, :2]).all(axis=1) & (values[:, 0] > 0)
    drawable &= linear | (values[:, 1] > 0)
    if len(values) and np.isinf(values[-1, 1]):
        entry = entry._replace(text=f"{entry.text} (diverged)")
    x, middle, bottom, top = values[drawable].T
    return Line(entry, x, middle, bottom, top) if low else Line(entry, x, middle)


def as_drawn(table: pd.DataFrame, metric: Metric, low: str, middle: str, high: str) -> pd.DataFrame:
    """The table with what is drawn of a metric's values and their interval: of a share, 1 - it."""
    if metric.drawn != "complement":
        return table
    return table.assign(**{low: 1 - table[high], middle: 1 - table[middle], high: 1 - table[low]})


def title_of(table: pd.DataFrame) -> str:
    """Task, protocol where it is one, horizon."""
    protocols = table["protocol"].dropna().unique()
    parts = [str(table["task"].iloc[0]), *(protocols if len(protocols) == 1 else [])]
    return ", ".join([*map(str, parts), f"{table['total_steps'].iloc[0]:,} steps"])


def seeds(table: pd.DataFrame, middle: str, spread: str) -> str:
    """What is drawn, of how many seeds; one has no interval."""
    n = table.groupby("label")["n"].max()
    if n.empty:
        return ""
    if n.max() == 1:
        return "n = 1 seed, no interval"
    return f"{middle} over n = {span_of(n)} seeds, {spread}"


def span_of(counts: pd.Series) -> str:
    """Such as 5, or 3 to 5."""
    low, high = f"{counts.min():.0f}", f"{counts.max():.0f}"
    return low if low == high else f"{low} to {high}"


def others(pale: Sequence[object]) -> str:
    """That only the best configuration of an optimizer is in full, where it is so."""
    return f"best configuration of each optimizer (+ {len(pale)} other configurations)" if pale else ""


def missing(table: pd.DataFrame, undrawn: Sequence[Entry], axis: str) -> str:
    """Why some labels have no line."""
    timed = table.groupby("label")[axis].count() > 0  # the first measurement, at 0, is enough
    untimed = [e.text for e in undrawn if axis == "train_seconds" and not timed.get(e.label, True)]
    lost = [e.text for e in undrawn if e.text not in untimed]
    reasons = {"not timed": untimed, "diverged from the start": lost}
    return "; ".join(f"{why}: {enumeration(names)}" for why, names in reasons.items() if names)


def ratios(table: pd.DataFrame) -> list[str]:
    """Each speed-up with its interval, in words."""
    return [f"{Ratio.of(row):.3g}" for row in table.to_dict("records")]


def curves_of(table: pd.DataFrame, target: Target | None) -> tuple[pd.DataFrame, Target]:
    """Curves and their target, from measurements (`frames.load`), or from curves.

    Where nothing is known of a target, there is a metric that is best at the end, and no level.

    Raises:
      ValueError: they are of several tasks or horizons, or there are none.
    """
    if table.empty:
        raise ValueError("no measurements: the folder has no records, or none of them were selected")
    workloads = table[["task", "total_steps"]].drop_duplicates().sort_values(["task", "total_steps"])
    if len(workloads) != 1:
        named = ", ".join(f"{task} at {steps}" for task, steps in workloads.itertuples(index=False))
        raise ValueError(
            f"curves of {named}: give those of one task and horizon, such as "
            'frame[(frame["task"] == "digits") & (frame["total_steps"] == 1000)]'
        )
    if "run_id" in table:
        return statistics.curves(table), target or statistics.target(table)
    if target is None:
        metric = next(m for m in statistics.measured(table) if m.better != "none")
        target = Target(metric.name, np.nan, metric.better)
    return table, target
