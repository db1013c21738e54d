"""Speed-ups over a baseline, with their intervals."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.axes import (
    GREY,
    ROOM,
    WIDTH,
    describe,
    enumeration,
    further,
    logarithmic,
    page,
    positive,
    say,
    span,
    styled,
    width,
    with_room,
    wrapped,
    write,
)
from analysis.figures.rows import named_rows
from analysis.figures.series import ratios
from analysis.figures.style import Style, Styles
from analysis.statistics import speedups as statistics
from analysis.statistics.trials import trials

QUANTITIES = {"steps": "in steps", "seconds": "in seconds"}
KEYS = ["task", "total_steps", "label"]
WINS = 0.38  # inches of their column


@styled
def speedups(
    table: pd.DataFrame, styles: Styles | None = None, title: str = "", baseline: str = "adam"
) -> Figure:
    """How many times faster than the baseline each label is: points with intervals, 1 marked.

    A point that is only a bound is hollow; where it or its interval is open, an arrow goes to the edge.
    Beside each row: on how many of the seeds it was faster, and where there is only one panel, the
    numbers.

    Args:
      table: measurements (`frames.load`), or as of `statistics.speedups.speedups`: task, total_steps,
        label, optimizer, over (the baseline's label), axis ("steps" or "seconds"), speedup (NaN: neither
        was at the target), low, high (0, inf: unbounded; both NaN: no interval), bound ("", "at least",
        "at most"), wins (NaN: not paired), n.
      styles: of the optimizers; default: `style.styles` of those in the table.
      title: the figure's; where there is none, the baseline, and the workload if it is one.
      baseline: where the table is of measurements: a label, or an optimizer.

    Raises:
      ValueError: no trial of the baseline is among the measurements.
    """
    if "run_id" in table:
        table = _of_measurements(table, baseline)
    styles = styles or style.styles(set(table["optimizer"]))
    known = table.sort_values("speedup", ascending=False, kind="stable")
    parts = [known[known["axis"] == axis] for axis in QUANTITIES]
    parts = [part for part in parts if part["speedup"].notna().any()]
    rows = pd.concat(parts or [table[:0]]).drop_duplicates(KEYS)
    numbers = ratios(rows) if len(parts) == 1 else []
    figure, panels, centres = named_rows(
        title or _title(rows, table),
        _note(parts),
        _names(rows),
        columns=max(1, len(parts)),
        right=WINS + 0.05 + max((width(text) + 0.1 for text in numbers), default=0),
        between=WINS + 0.08,
    )
    if not parts:
        labels = enumeration(sorted(map(str, table["label"].unique())))
        say(panels[0], f"Neither reached the target: no ratio for {labels}.")
    limits = _limits(parts, page(panels[0])[1].width)
    for axes, part in zip(panels, parts, strict=False):
        logarithmic(axes, x=limits)
        describe(axes, QUANTITIES[part["axis"].iloc[0]], "")
        _forest(axes, rows[KEYS].assign(y=centres).merge(part, on=KEYS), styles)
    top = page(panels[0])[1].y1
    for y, text in zip(centres, numbers, strict=False):
        write(figure, WIDTH - 0.05, top - y, text, ha="right", va="center_baseline")
    return figure


def _of_measurements(frame: pd.DataFrame, baseline: str) -> pd.DataFrame:
    names = sorted({*frame["optimizer_name"], *frame["label"]})
    if baseline not in names:
        raise ValueError(f"baseline {baseline!r} is not in the table; it has {', '.join(names)}")
    return statistics.speedups(trials(frame), baseline)


def _note(parts: list[pd.DataFrame]) -> str:
    note = "ratio and 95 % interval; wins: seeds on which it was faster"
    return note + ("; hollow: a bound" if any((part["bound"] != "").any() for part in parts) else "")


def _limits(parts: list[pd.DataFrame], inches: float) -> tuple[float, float]:
    """Of an axis that shows all of the parts, with room for the arrows that they need."""
    limits = span(positive([*(part[["speedup", "low", "high"]] for part in parts), [0.8, 1.25]]))
    room = [ROOM if any(_open(part)[side].any() for part in parts) else 0.0 for side in (0, 1)]
    return with_room(limits, inches, room[0], room[1])


def _open(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Whether each speed-up or its interval is open to the left, and to the right."""
    known = table["speedup"].notna()
    left, right = table["bound"] == "at most", table["bound"] == "at least"
    return known & (left | (table["low"] == 0)), known & (right | (table["high"] == np.inf))


def _names(rows: pd.DataFrame) -> list[str]:
    """Labels, with the workload where there are several."""
    several = len(rows[["task", "total_steps"]].drop_duplicates()) > 1
    names = []
    for row in rows.itertuples():
        parts = [str(row.label), *([f"{row.task}, {row.total_steps:,}"] if several else [])]
        names.append("\n".join(wrapped(part, 1.1) for part in parts))
    return names


def _title(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    over = ", ".join(sorted(map(str, table["over"].unique())))
    where = rows[["task", "total_steps"]].drop_duplicates()
    workloads = [f": {task}, {steps:,} steps" for task, steps in where.itertuples(index=False)]
    return f"Speed-up over {over}" + (workloads[0] if len(workloads) == 1 else "")


def _forest(axes: Axes, rows: pd.DataFrame, styles: Styles) -> None:
    """A point with its interval for each row, at its y, and its wins beside the panel."""
    figure, box = page(axes)
    axes.axvline(1, color=GREY, linewidth=0.6)
    write(figure, box.x1 + WINS, box.y1 + 0.07, "wins", ha="right", color=GREY)
    rows = rows.assign(left=_open(rows)[0], right=_open(rows)[1])
    for row in rows.to_dict("records"):
        if np.isnan(row["speedup"]):
            place = axes.get_yaxis_transform()
            why = axes.text(0.03, row["y"], "no ratio", transform=place, va="center", color=GREY)
            why.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})  # over the line at 1
        else:
            _interval(axes, row, styles[str(row["optimizer"])])
        wins = "-" if np.isnan(row["wins"]) else f"{row['wins']:g}/{row['n']:.0f}"
        write(figure, box.x1 + WINS, box.y1 - row["y"], wins, ha="right", va="center_baseline")


def _interval(axes: Axes, row: dict[Hashable, Any], style: Style) -> None:
    """A point and its interval on a logarithmic axis, with arrows to the edges where they are open."""
    y, value = row["y"], row["speedup"]
    edges = [further(axes, edge, by) for edge, by in zip(axes.get_xlim(), (0.03, -0.03), strict=True)]
    ends = np.fmin(row["low"], value), np.fmax(row["high"], value)  # there may be no interval
    opens = row["left"], row["right"]
    shown = [edge if beyond else end for edge, beyond, end in zip(edges, opens, ends, strict=True)]
    axes.plot(shown, [y, y], lw=1.1, color=style.colour)
    for x, beyond, tip in zip(edges, opens, "<>", strict=True):
        if beyond:
            axes.plot([x], [y], marker=tip, ms=3.5, color=style.colour)
    filling = "white" if row["bound"] else style.colour
    axes.plot([value], [y], marker=style.marker, ms=4, color=style.colour, mfc=filling, clip_on=False)
