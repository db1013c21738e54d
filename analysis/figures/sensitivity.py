"""Sensitivity to the learning rate."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import frames
from analysis.figures import style
from analysis.figures.axes import (
    GREY,
    Row,
    describe,
    enumeration,
    height_of,
    logarithmic,
    page,
    positive,
    say,
    sheet,
    span,
    styled,
    wrapped,
    write,
)
from analysis.figures.lines import PANEL
from analysis.figures.style import Style, Styles
from testbed.metrics import Metric

WORST = 10.0  # times the best metric


@styled
def sensitivity(
    points: pd.DataFrame,
    styles: Styles | None = None,
    title: str = "Sensitivity to the learning rate",
    metric: str = "validation_kl",
) -> Figure:
    """How much worse the metric is off the best learning rate: a point per configuration.

    The line is the lower convex hull of the points in logarithms: what the learning rate allows with the
    best of the other hyperparameters. Diverged configurations are crosses at the upper edge. A panel for
    each optimizer, with the same axes.

    Args:
      points: optimizer, relative (learning rate over the best one), loss_ratio (the metric over the
        best, or the best over it where more is better; inf: diverged), as of
        `statistics.sensitivity.sensitivity`.
      styles: of the optimizers; default: `style.styles` of those in the table.
      title: the figure's.
      metric: the name of what was measured.
    """
    styles = styles or style.styles(set(points["optimizer"]))
    names = sorted(map(str, points["optimizer"].unique()))
    columns = min(3, len(names)) or 1
    head = max((height_of(wrapped(name, 2.9 / columns - 0.25)) for name in names), default=0) + 0.1
    figure, panels = sheet(
        title,
        f"{_over_the_best(frames.metric(points, metric))}; crosses: diverged, or over {WORST:g} times",
        [Row(PANEL if columns == 1 else 0.75, columns)] * (-(-len(names) // columns) or 1),
        head=head + 0.05,
        between=0.25,
        gap=head + 0.07,
    )
    for axes in panels[len(names) or 1 :]:
        axes.remove()
    rates, ratios = positive([points["relative"]]), positive([points["loss_ratio"]])
    if not len(rates) or not len(ratios):
        for axes in panels[1 : len(names)]:
            axes.remove()
        say(panels[0], f"No configuration ended finite: {enumeration(names)}.")
        return figure
    worst = span(np.append(ratios[ratios <= WORST], [1, 1.5]), pad=0.08)
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        logarithmic(axes, x=span(rates), y=worst)
        describe(axes, "learning rate / best" if i + columns >= len(names) else "", "")
        if i % columns:
            axes.set_yticklabels([])
        if i + columns < len(names):
            axes.set_xticklabels([])
        _rates(axes, points[points["optimizer"] == name], name, styles[name])
    return figure


def _over_the_best(metric: Metric) -> str:
    """What `statistics.sensitivity.sensitivity` divides by what."""
    if metric.better == "max":
        return f"the best {metric.label} / each one's"
    return f"{metric.label} / the best one's"


def _rates(axes: Axes, own: pd.DataFrame, name: str, style: Style) -> None:
    """One optimizer's points, their hull, and its name above the panel."""
    figure, box = page(axes)
    write(figure, box.x0, box.y1 + 0.05, wrapped(name, box.width), va="bottom")
    own = own[own["relative"] > 0]
    if own.empty:
        axes.text(0.5, 0.5, "none finite", transform=axes.transAxes, ha="center", color=GREY)
    top = axes.get_ylim()[1]
    lost = ~(own["loss_ratio"] <= top)
    x, y = own.loc[~lost, "relative"].to_numpy(float), own.loc[~lost, "loss_ratio"].to_numpy(float)
    axes.plot(x, y, ls="", marker=style.marker, ms=2.5, color=style.colour, alpha=0.7, mew=0)
    crosses = own.loc[lost, "relative"]
    axes.plot(
        crosses, np.full(len(crosses), top), ls="", marker="x", ms=3, color=style.colour, clip_on=False
    )
    if len(x):
        axes.plot(*np.exp(lower_hull(np.log(x), np.log(y))), color=style.colour, lw=0.9)


def lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, m): the vertices of the greatest convex function below the points (Andrew 1979)."""
    hull: list[tuple[float, float]] = []
    for px, py in sorted(zip(x.tolist(), y.tolist(), strict=True)):
        if hull and hull[-1][0] == px:  # the lower of them is on it
            continue
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2:]
            if (bx - ax) * (py - ay) > (by - ay) * (px - ax):
                break
            hull.pop()
        hull.append((px, py))
    return np.array(hull).T
