"""Panels with a named row for each configuration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figures.axes import Row, height_of, sheet, width


def named_rows(
    title: str,
    note: str,
    names: Sequence[str],
    *,
    columns: int = 1,
    right: float = 0.1,
    between: float = 0.1,
    below: float = 0.36,
) -> tuple[Figure, list[Axes], NDArray[np.float64]]:
    """Panels with a named row for each name; and the rows' centres, y being inches from above."""
    heights = np.array([height_of(name) + 0.05 for name in names] or [1.0])
    longest = max((width(line) for name in names for line in name.split("\n")), default=0.0)
    figure, panels = sheet(
        *(title, note, [Row(float(heights.sum()), columns)]),
        left=longest + 0.17,
        right=right,
        between=between,
        below=below,
    )
    centres = np.cumsum(heights) - heights / 2
    for axes in panels:
        axes.set_ylim(heights.sum(), 0)
        axes.set_yticks(centres if names else [], names if axes is panels[0] else [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return figure, panels, centres[: len(names)]
