"""The figures: each a pure function of tables, as wide as a paper's column, in one visual language."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import frames
from analysis.axes import (
    enumeration,
    linear,
    save,
    styled,
)
from analysis.curves import Target
from analysis.lines import DIRECT, chart, set_linear_limits
from analysis.panels import overfitting, patience, sensitivity
from analysis.rows import cost_split, speedups
from analysis.series import (
    Entry,
    Line,
    Looks,
    as_drawn,
    at_the_end,
    by_label,
    chosen,
    entries_of,
    line_of,
    missing,
    others,
    seeds,
    title_of,
)
from testbed.metrics import Metric

__all__ = [
    "AXES",
    "cost_split",
    "overfitting",
    "patience",
    "profile",
    "save",
    "sensitivity",
    "speedups",
    "time_to_accuracy",
    "tuning_curve",
]

AXES = {"step": "steps", "epoch": "epochs", "train_seconds": "training seconds"}
STEPS = Metric("steps_to_target", "steps to the target", "", "min", "log")


@styled
def time_to_accuracy(
    curves: pd.DataFrame, metric: str, axis: str, looks: Looks, target: Target
) -> Figure:
    """One metric against steps, epochs or seconds: median over seeds, band between the quartiles.

    Shares (agreement, accuracy) are drawn as their complement to 1, so that a logarithmic axis shows
    the end of training; what may be negative has a linear axis. Of an optimizer with more than three
    configurations, the best by the target's metric at the end is drawn in full and the others pale.
    Lines end where half of the seeds have diverged.

    Args:
      curves: of one task and horizon, from `curves.curves`.
      metric: one of its metrics.
      axis: one of AXES.
      looks: from `look.looks`.
      target: drawn where it is in this metric.
    """
    shown, pale = chosen(at_the_end(curves, target))
    measured, ends = frames.metric(curves, metric), (f"{metric}_low", f"{metric}_high")
    is_linear = measured.drawn == "linear"
    table = as_drawn(curves, measured, ends[0], metric, ends[1])
    entries = entries_of(curves, shown, looks)
    every = [
        line_of(own, axis, metric, entries[label], *ends, linear=is_linear)
        for label, own in by_label(table, shown)
    ]
    of_pale = entries_of(curves, dict(zip(pale, pale, strict=True)), looks)
    crowd = [
        line_of(own, axis, metric, of_pale[label], linear=is_linear)
        for label, own in by_label(table, pale)
    ]
    lost = missing(curves, [entries[line.entry.label] for line in every if not len(line.x)], axis)
    drawn = curves[curves["label"].isin(shown)]
    notes = [seeds(drawn, "median", "band: quartiles"), others(pale), lost]
    level = target.value if target.metric == metric else None
    return chart(
        [line for line in every if len(line.x)],
        (AXES[axis], measured.axis),
        title_of(curves),
        "; ".join(filter(None, notes)),
        nothing=f"Nothing to draw after step 0 ({lost or 'no median is finite'}).",
        crowd=crowd,
        level=1 - level if measured.drawn == "complement" and level is not None else level,
        limit=set_linear_limits if is_linear else None,
        rising=is_linear and measured.better == "max",
    ).figure


@styled
def profile(
    table: pd.DataFrame, looks: Looks, title: str = "Performance profile", note: str = ""
) -> Figure:
    """The share of workloads on which each optimizer is within tau times the best (Dolan and Moré 2002).

    Args:
      table: shares; a row for each optimizer, a column for each tau.
      looks: from `look.looks`.
      title: the figure's.
      note: below it, such as the number of workloads.
    """
    tau = table.columns.to_numpy(float)
    lines = []
    for name, shares in table.iterrows():
        look = looks[str(name)]
        entry = Entry(str(name), str(name), look.colour, look.marker)
        lines.append(Line(entry, np.repeat(tau, 2)[1:], np.repeat(shares.to_numpy(float), 2)[:-1]))
    return chart(
        lines,
        ("tau: times of the fastest's time to target", "share of workloads within tau"),
        *(title, note),
        nothing="No workload.",
        limit=_shares,
        rising=True,
    ).figure


def _shares(axes: Axes, drawn: Sequence[Line], level: float | None) -> None:
    """Linear axes for shares."""
    linear(axes, "x", drawn[0].x[0], drawn[0].x[-1])
    linear(axes, "y", -0.03, 1.03)


@styled
def tuning_curve(
    table: pd.DataFrame,
    looks: Looks,
    title: str = "The best of k trials",
    metric: str = "validation_kl",
) -> Figure:
    """The best of k trials against k: median with quartiles, and thin and dashed the mean.

    Args:
      table: of one measure: optimizer, measure ("final": the metric at the end), k, n (trials), mean,
        q25, median, q75 (infinite: not reached or diverged: not drawn). Shares are drawn as their
        complement to 1.
      looks: from `look.looks`.
      title: the figure's.
      metric: the name of what is final.
    """
    measure = str(table["measure"].iloc[0]) if len(table) else "final"
    measured = frames.metric(table, metric) if measure == "final" else STEPS
    table = as_drawn(table, measured, "q25", "median", "q75")
    if measured.drawn == "complement":
        table = table.assign(mean=1 - table["mean"])
    is_linear = measured.drawn == "linear"
    entries = {name: Entry(name, name, look.colour, look.marker) for name, look in looks.items()}
    every = [
        line_of(own, "k", "median", entries[name], "q25", "q75", linear=is_linear)
        for name, own in ((str(name), own) for name, own in table.groupby("optimizer"))
    ]
    full = [line for line in every if len(line.x)]
    lost = [line.entry.label for line in every if not len(line.x)]
    n = table.groupby("optimizer")["n"].max()
    trials = f"{n.min():.0f}" if n.min() == n.max() else f"{n.min():.0f} to {n.max():.0f}"
    notes = [
        f"trials per optimizer: n = {trials}; median, band: quartiles" if len(n) else "",
        "dashed: mean" if len(full) <= DIRECT else "",
        f"not finite: {enumeration(lost)}" if lost else "",
    ]
    made = chart(
        full,
        ("k trials of tuning", f"{measured.axis}, best of k"),
        *(title, "; ".join(filter(None, notes))),
        nothing="No median is finite.",
        limit=set_linear_limits if is_linear else None,
        rising=is_linear and measured.better == "max",
    )
    for line in made.drawn if len(full) <= DIRECT else ():
        own = table[table["optimizer"] == line.entry.label].sort_values("k")
        mean = own["mean"].where(np.isfinite(own["mean"]))
        made.panels[0].plot(own["k"], mean, color=line.entry.colour, lw=0.6, dashes=(4, 2))
    return made.figure
