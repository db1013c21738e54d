"""The best of k trials."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import frames
from analysis.figures import style
from analysis.figures.axes import enumeration, styled
from analysis.figures.lines import DIRECT, Captions, Chart, chart, set_linear_limits
from analysis.figures.series import Entry, Line, as_drawn, line_of, span_of
from analysis.figures.style import Styles
from testbed.metrics import Metric

STEPS = Metric("steps_to_target", "steps to the target", "", "min", "log")


@styled
def tuning_curve(
    table: pd.DataFrame,
    styles: Styles | None = None,
    title: str = "The best of k trials",
    metric: str = "validation_kl",
) -> Figure:
    """The best of k trials against k: median with quartiles, and thin and dashed the mean.

    Args:
      table: of one measure (`statistics.tuning.tuning_curves`): optimizer, measure ("final": the metric
        at the end), k, n (trials), mean, q25, median, q75 (infinite: not reached or diverged: not
        drawn). Shares are drawn as their complement to 1.
      styles: of the optimizers; default: `style.styles` of those in the table.
      title: the figure's.
      metric: the name of what is final.
    """
    styles = styles or style.styles(set(table["optimizer"]))
    is_final = not len(table) or str(table["measure"].iloc[0]) == "final"
    measured = frames.metric(table, metric) if is_final else STEPS
    table = as_drawn(table, measured, "q25", "median", "q75")
    every = [
        _line(str(name), own, measured, styles) for name, own in table.groupby("optimizer", sort=True)
    ]
    full = [line for line in every if len(line.x)]
    lost = [line.entry.label for line in every if not len(line.x)]
    n = table.groupby("optimizer")["n"].max()
    notes = [
        f"trials per optimizer: n = {span_of(n)}; median, band: quartiles" if len(n) else "",
        "dashed: mean" if len(full) <= DIRECT else "",
        f"not finite: {enumeration(lost)}" if lost else "",
    ]
    captions = Captions(
        *(title, "; ".join(filter(None, notes))),
        *("k trials of tuning", f"{measured.axis}, best of k"),
        nothing="No median is finite.",
    )
    made = chart(
        full,
        captions,
        limit=set_linear_limits if measured.drawn == "linear" else None,
        rising=measured.drawn == "linear" and measured.better == "max",
    )
    if len(full) <= DIRECT:
        _draw_means(made, table, measured)
    return made.figure


def _line(name: str, own: pd.DataFrame, metric: Metric, styles: Styles) -> Line:
    entry = Entry(name, name, styles[name].colour, styles[name].marker)
    return line_of(own, "k", "median", entry, "q25", "q75", linear=metric.drawn == "linear")


def _draw_means(made: Chart, table: pd.DataFrame, metric: Metric) -> None:
    for line in made.drawn:
        own = table[table["optimizer"] == line.entry.label].sort_values("k")
        mean = 1 - own["mean"] if metric.drawn == "complement" else own["mean"]
        mean = mean.where(np.isfinite(mean))
        made.panels[0].plot(own["k"], mean, color=line.entry.colour, lw=0.6, dashes=(4, 2))
