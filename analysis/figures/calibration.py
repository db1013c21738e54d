"""Calibration: what comparisons say of a ratio that is known."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.axes import (
    GREY,
    Row,
    describe,
    further,
    logarithmic,
    page,
    positive,
    say,
    sheet,
    span,
    styled,
    with_room,
    wrapped,
    write,
)
from analysis.figures.lines import PANEL
from analysis.figures.style import PALETTE

SIDE = 0.14  # inches on either side of a ratio, over which its comparisons are spread
HIT, MISS = PALETTE[0][0], PALETTE[1][0]


@styled
def calibration(
    comparisons: pd.DataFrame, title: str = "Known ratios and what comparisons say"
) -> Figure:
    """The estimated ratio of each comparison against the true one, with its interval; a panel per task.

    Comparisons of one ratio are spread beside it, and a line through them is the truth. Intervals that
    do not hold it are drawn in another colour.

    Args:
      comparisons: task, factor, truth, ratio, low, high, as `statistics.calibration.cells` takes them.
      title: the figure's.
    """
    of_tasks = list(comparisons.groupby("task", sort=False))
    found = comparisons[np.isfinite(comparisons["ratio"])]
    misses = int((~_holds(found)).sum())
    note = f"n = {len(found)} comparisons; 95 % intervals; {misses} do not hold the truth (orange)"
    figure, panels = sheet(
        title, note, [Row(PANEL)] * (len(of_tasks) or 1), head=0.45, gap=0.75, below=0.36
    )
    if not len(found):
        for axes in panels[1:]:
            axes.remove()
        say(panels[0], "No comparison has an answer.")
        return figure
    truths = positive([found["factor"]])
    values = positive([truths, found["low"], found["high"]])
    for axes, (task, own) in zip(panels, of_tasks, strict=True):
        x = with_room(span(truths), page(axes)[1].width, SIDE + 0.05, SIDE + 0.05)
        logarithmic(axes, x=x, y=span(values), at=sorted(set(map(float, truths))))
        describe(axes, "true ratio of steps", "estimated ratio")
        figure, box = page(axes)
        write(figure, box.x0, box.y1 + 0.22, wrapped(str(task), box.width), va="bottom")
        axes.plot(x, x, color="0.85", lw=0.6, zorder=1)
        for factor, of_factor in own.groupby("factor"):
            _draw(axes, float(str(factor)), of_factor)
    return figure


def _draw(axes: Axes, factor: float, own: pd.DataFrame) -> None:
    """The comparisons of one ratio, side by side."""
    own = own[np.isfinite(own["ratio"])]
    ends = [further(axes, factor, -SIDE), further(axes, factor, SIDE)]
    axes.plot(ends, [factor, factor], color=GREY, lw=0.6, zorder=1)
    places = np.linspace(-SIDE, SIDE, len(own)) if len(own) > 1 else [0.0]
    for inches, (_, one), holds in zip(places, own.iterrows(), _holds(own), strict=True):
        x, colour = further(axes, factor, inches), HIT if holds else MISS
        axes.plot([x, x], [one["low"], one["high"]], color=colour, lw=0.6)
        axes.plot([x], [one["ratio"]], color=colour, ls="", marker="o", ms=1.6, mew=0)


def _holds(comparisons: pd.DataFrame) -> "pd.Series[bool]":
    truth = comparisons["truth"]
    return (comparisons["low"] <= truth) & (truth <= comparisons["high"])
