"""The performance profile."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.axes import linear, styled
from analysis.figures.lines import Captions, chart
from analysis.figures.series import Entry, Line
from analysis.figures.style import Styles


@styled
def profile(
    table: pd.DataFrame,
    styles: Styles | None = None,
    title: str = "Performance profile",
    note: str = "",
) -> Figure:
    """The share of workloads on which each optimizer is within tau times the best (Dolan and Moré 2002).

    Args:
      table: shares (`statistics.profiles.profile`); a row for each optimizer, a column for each tau.
      styles: of the optimizers; default: `style.styles` of those in the table.
      title: the figure's.
      note: below it, such as the number of workloads.
    """
    styles = styles or style.styles(set(table.index))
    tau = table.columns.to_numpy(float)
    lines = []
    for name, shares in table.iterrows():
        entry = Entry(str(name), str(name), styles[str(name)].colour, styles[str(name)].marker)
        lines.append(Line(entry, np.repeat(tau, 2)[1:], np.repeat(shares.to_numpy(float), 2)[:-1]))
    captions = Captions(
        *(title, note),
        x="tau: times of the fastest's time to target",
        y="share of workloads within tau",
        nothing="No workload.",
    )
    return chart(lines, captions, limit=_set_limits, rising=True).figure


def _set_limits(axes: Axes, drawn: Sequence[Line], level: float | None) -> None:
    """Linear axes for shares."""
    linear(axes, "x", drawn[0].x[0], drawn[0].x[-1])
    linear(axes, "y", -0.03, 1.03)
