"""Time to accuracy: one metric along training."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import frames
from analysis.figures import style
from analysis.figures.axes import styled
from analysis.figures.lines import Captions, chart, set_linear_limits
from analysis.figures.series import (
    AXES,
    Line,
    as_drawn,
    at_the_end,
    by_label,
    curves_of,
    entries_of,
    line_of,
    missing,
    others,
    seeds,
    shown_and_pale,
    title_of,
)
from analysis.figures.style import Styles
from analysis.statistics.curves import Target
from testbed.metrics import Metric


@styled
def time_to_accuracy(
    table: pd.DataFrame,
    metric: str = "",
    axis: str = "step",
    styles: Styles | None = None,
    target: Target | None = None,
) -> Figure:
    """One metric against steps, epochs or seconds: median over seeds, band between the quartiles.

    Shares (agreement, accuracy) are drawn as their complement to 1, so that a logarithmic axis shows
    the end of training; what may be negative has a linear axis. Of an optimizer with more than three
    configurations, the best by the target's metric at the end is drawn in full and the others pale.
    Lines end where half of the seeds have diverged.

    Args:
      table: measurements (`frames.load`) or curves (`statistics.curves.curves`) of one task and horizon.
      metric: one of the table's; default: the target's.
      axis: one of AXES.
      styles: of the optimizers; default: `style.styles` of those in the table.
      target: drawn where it is in this metric; default: that of the measurements.

    Raises:
      ValueError: the table is of several tasks or horizons.
    """
    curves, target = curves_of(table, target)
    styles = styles or style.styles(set(curves["optimizer"]))
    metric = metric or target.metric
    shown, pale = shown_and_pale(at_the_end(curves, target))
    measured = frames.metric(curves, metric)
    every = _lines(curves, measured, axis, shown, styles)
    undrawn = [line.entry._replace(text=shown[line.entry.label]) for line in every if not len(line.x)]
    lost = missing(curves, undrawn, axis)
    drawn = curves[curves["label"].isin(shown)]
    notes = [seeds(drawn, "median", "band: quartiles"), others(pale), lost]
    captions = Captions(
        title_of(curves),
        "; ".join(filter(None, notes)),
        *(AXES[axis], measured.axis),
        nothing=f"Nothing to draw after step 0 ({lost or 'no median is finite'}).",
    )
    return chart(
        [line for line in every if len(line.x)],
        captions,
        crowd=_lines(curves, measured, axis, {label: label for label in pale}, styles),
        level=_level(target, measured),
        limit=set_linear_limits if measured.drawn == "linear" else None,
        rising=measured.drawn == "linear" and measured.better == "max",
    ).figure


def _lines(
    curves: pd.DataFrame, metric: Metric, axis: str, names: dict[str, str], styles: Styles
) -> list[Line]:
    """A line for each label of `names`, which says what it is called."""
    low, middle, high = f"{metric.name}_low", metric.name, f"{metric.name}_high"
    table, entries = as_drawn(curves, metric, low, middle, high), entries_of(curves, names, styles)
    linear = metric.drawn == "linear"
    return [
        line_of(own, axis, middle, entries[label], low, high, linear=linear)
        for label, own in by_label(table, names)
    ]


def _level(target: Target, metric: Metric) -> float | None:
    """Where the target is drawn, if it is."""
    if target.metric != metric.name or not np.isfinite(target.value):
        return None
    return 1 - target.value if metric.drawn == "complement" else target.value
