"""What a step costs, on the clock and off it."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures import style
from analysis.figures.axes import GREY, WIDTH, describe, linear, page, say, styled, width, wrapped, write
from analysis.figures.rows import named_rows
from analysis.figures.style import Styles

ON_THE_CLOCK = {"learning": "learning", "data_wait": "waiting for data"}
OFF_THE_CLOCK = {
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "record": "records",
    "compile": "compilation",
    "setup": "set-up",
}
HATCHES = ("////", "\\\\\\\\", "||||", "xxx", "----")
BAR = 0.1  # inches


@styled
def cost_split(
    table: pd.DataFrame, styles: Styles | None = None, title: str = "What a step costs"
) -> Figure:
    """Milliseconds per step: on the clock in the optimizer's colour, off the clock hatched.

    Args:
      table: label, optimizer, n, and in ms per step, medians over trials: learning, data_wait,
        evaluation, checkpoint, record, compile, setup (NaN: not known, drawn as none), as of
        `statistics.cost.cost_split`.
      styles: of the optimizers; default: `style.styles` of those in the table.
      title: the figure's.
    """
    styles = styles or style.styles(set(table["optimizer"]))
    parts = [*ON_THE_CLOCK, *OFF_THE_CLOCK]
    table = table[table[parts].notna().any(axis=1)]
    cost = table[parts].fillna(0).to_numpy(float)
    on_it = cost[:, : len(ON_THE_CLOCK)].sum(axis=1)
    texts = [f"{_brief(value)} ms" for value in on_it]
    n = table["n"].max() if len(table) else 0
    figure, (axes,), centres = named_rows(
        title,
        f"medians over n = {n:.0f} trials; right: on the clock",
        [wrapped(label, 1.1) for label in table["label"].astype(str)],
        right=max(map(width, texts), default=0) + 0.12,
        below=0.36 + 0.125 * (len(OFF_THE_CLOCK) + 1),
    )
    if table.empty:
        say(axes, "No trial has a ledger.")
        return figure
    describe(axes, "ms per step", "")
    linear(axes, "x", 0, max(cost.sum(axis=1).max(initial=0), 1e-9) * 1.02)
    colours = [styles[name].colour for name in table["optimizer"].astype(str)]
    starts = np.cumsum(cost, axis=1) - cost
    for row, y in enumerate(centres):
        for part in range(len(parts)):
            filling = _filling(part, colours[row])
            axes.barh(y, cost[row, part], BAR, left=starts[row, part], **filling)
    box = page(axes)[1]
    for y, text in zip(centres, texts, strict=True):
        write(figure, WIDTH - 0.03, box.y1 - y, text, ha="right", va="center_baseline")
    _legend(figure)
    return figure


def _brief(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _filling(part: int, colour: str) -> dict[str, Any]:
    """How a part of a step is filled: in the optimizer's colour, or hatched where off the clock."""
    if part < len(ON_THE_CLOCK):
        return {"facecolor": colour, "alpha": (1, 0.4)[part], "linewidth": 0}
    hatch = HATCHES[part - len(ON_THE_CLOCK)]
    return {"facecolor": "white", "edgecolor": "0.55", "hatch": hatch, "linewidth": 0.4}


def _legend(figure: Figure) -> None:
    """What the fillings mean, in two columns at the foot of the figure."""
    columns = (("on the clock", 0, ON_THE_CLOCK), ("off the clock", len(ON_THE_CLOCK), OFF_THE_CLOCK))
    for x, (heading, first, parts) in zip((0.4, 1.9), columns, strict=True):
        top = 0.04 + 0.125 * (len(OFF_THE_CLOCK) + 1)
        write(figure, x, top, heading, va="top", color=GREY)
        for i, name in enumerate(parts.values()):
            y = top - 0.125 * (i + 1)
            sample = Rectangle((x, y - 0.1), 0.22, 0.08, transform=figure.dpi_scale_trans)
            sample.set(**_filling(first + i, GREY))
            figure.add_artist(sample)
            write(figure, x + 0.28, y, name, va="top")
