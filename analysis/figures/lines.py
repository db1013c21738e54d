"""Lines in panels, and their names: at their ends where they are few and short, else in a list."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figures.axes import (
    GREY,
    WIDTH,
    Row,
    describe,
    height_of,
    linear,
    logarithmic,
    number,
    page,
    positive,
    printable,
    say,
    sheet,
    span,
    stroke,
    width,
    with_room,
    wrapped,
    write,
)
from analysis.figures.series import Entry, Line

DIRECT = 8  # lines whose names fit beside their ends
PANEL = 1.9  # inches of a panel's height
Limit = Callable[[Axes, Sequence[Line], float | None], None]


class Key(NamedTuple):
    """Where lines are named: at their ends, or by a number there and in a list below.

    ends: the text at each line's end; right: the inches that those take beside the panel;
    listed: the names of the list, wrapped; columns: of the list.
    """

    ends: tuple[str, ...]
    right: float
    listed: tuple[str, ...] = ()
    columns: int = 1

    @property
    def below(self) -> float:
        """Inches that the list takes."""
        return sum(self.rows) + 0.06 if self.listed else 0.0

    @property
    def rows(self) -> list[float]:
        """Inches of each row of the list, which is read down its columns."""
        n = -(-len(self.listed) // self.columns)
        return [0.02 + max(map(height_of, self.listed[row::n])) for row in range(n)]

    @property
    def beside(self) -> float:
        """Inches that the ends take one above the other."""
        return sum(map(height_of, self.ends))


def key(entries: Sequence[Entry]) -> Key:
    """Names at the ends of few lines where they are short; else numbers there, and a list."""
    names = [wrapped(entry.text, 1.05) for entry in entries]
    if len(names) <= DIRECT and all(name.count("\n") < 2 for name in names):
        longest = max((width(part) for name in names for part in name.split("\n")), default=0)
        return Key(tuple(names), longest + 0.3)
    sample = 0.48  # and number
    longest = max(width(printable(entry.text)) for entry in entries) + sample
    columns = max(1, min(3, int((WIDTH - 0.1) / longest)))
    listed = [wrapped(entry.text, WIDTH - 0.1 - sample) for entry in entries]
    return Key(tuple(str(i + 1) for i in range(len(entries))), 0.4, tuple(listed), columns)


def list_names(figure: Figure, names: Key, entries: Sequence[Entry]) -> None:
    """Writes the key's list at the foot of the figure."""
    rows = names.rows if names.listed else []
    for i, text in enumerate(names.listed):
        column, row = divmod(i, len(rows))
        x, y = 0.05 + column * (WIDTH - 0.1) / names.columns, 0.04 + sum(rows[row:])
        entry = entries[i]
        style = {"color": entry.colour, "marker": entry.marker, "ms": 3, "lw": 1.1, "ls": entry.dash}
        stroke(figure, [x, x + 0.12, x + 0.24], [y - 0.06] * 3, markevery=[1], **style)
        write(figure, x + 0.41, y, names.ends[i], va="top", ha="right")
        write(figure, x + 0.45, y, text, va="top")


def draw(axes: Axes, line: Line, shift: float = 0.0, band: float = 0.18) -> None:
    """A line with at most a few markers, which begin `shift` (of 0.3 of the panel) along it.

    What lies between its low and high is shaded, or where `band` is 0, spanned by bars.
    """
    entry = line.entry
    style: dict[str, Any] = {"color": entry.colour, "ls": entry.dash, "lw": 1.1}
    style |= {"marker": entry.marker, "ms": 3}
    every = None if len(line.x) <= 5 else (0.05 + 0.3 * shift, 0.3)
    axes.plot(line.x, line.y, markevery=every, **style)
    if line.low is not None and line.high is not None:
        low, high = (np.clip(edge, *_beyond(axes)) for edge in (line.low, line.high))
        if band:
            axes.fill_between(line.x, low, high, color=entry.colour, alpha=band, linewidth=0)
        else:
            axes.vlines(line.x, low, high, color=entry.colour, linewidth=0.8)


def _beyond(axes: Axes) -> tuple[float, float]:
    """What is far outside of the panel, below and above."""
    bottom, top = axes.get_ylim()
    if axes.get_yscale() == "log":
        return bottom / 10, top * 10
    return 2 * bottom - top, 2 * top - bottom


def draw_pale(axes: Axes, crowd: Sequence[Line]) -> None:
    """Lines without names behind the others; an image where they are many, to keep files small."""
    paths = [np.column_stack([line.x, line.y]) for line in crowd]
    colours = [line.entry.colour for line in crowd]
    many = sum(map(len, paths)) > 5000
    axes.add_collection(
        LineCollection(paths, colors=colours, linewidths=0.4, alpha=0.25, zorder=1.5, rasterized=many),
        autolim=False,
    )


def name_ends(axes: Axes, drawn: Sequence[Line], names: Sequence[str]) -> None:
    """Names each line beside the panel, at the height of its end or as near as the others leave room."""
    figure, box = page(axes)
    last = np.array([(line.x[-1], line.y[-1]) for line in drawn]).reshape(-1, 2)
    points = axes.transData.transform(last) / figure.dpi
    wanted = np.clip(points[:, 1], box.y0, box.y1)
    heights = np.array([height_of(end) for end in names])
    places = spread(wanted, heights, box.y0 - 0.05, box.y1 + 0.05)
    for line, (x, _), y, place, end in zip(drawn, points, wanted, places, names, strict=True):
        style, beside = {"color": line.entry.colour}, box.x1 + 0.15
        stroke(figure, [min(x, box.x1), box.x1 + 0.02, beside], [y, y, place], lw=0.4, **style)
        stroke(figure, [beside], [place], marker=line.entry.marker, ms=3, ls="", **style)
        write(figure, beside + 0.06, place, end, va="center_baseline")


def spread(
    wanted: NDArray[np.float64], heights: NDArray[np.float64], low: float, high: float
) -> NDArray[np.float64]:
    """The centres nearest to the wanted ones (least squares) at which labels do not overlap.

    Isotonic regression by pooling adjacent violators (Barlow et al. 1972), then clipped to low .. high.
    """
    order = np.argsort(wanted, kind="stable")
    below = np.cumsum(heights[order]) - heights[order] / 2  # of the labels as one stack
    pools: list[tuple[float, int]] = []
    for value in wanted[order] - below:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    free = np.repeat([value for value, _ in pools], [count for _, count in pools])
    places = np.empty(len(wanted))
    places[order] = np.clip(free, low, max(low, high - heights.sum())) + below
    return places


class Chart(NamedTuple):
    """A figure of one panel of named lines, and what is needed to draw more into it."""

    figure: Figure
    panels: tuple[Axes, ...]  # the lines', and an empty one below it where that was wanted
    drawn: tuple[Line, ...]  # in the order of the key
    names: Key


class Captions(NamedTuple):
    """The words of a chart: its title, the note below it, its axes, and what it says without a line."""

    title: str
    note: str
    x: str
    y: str
    nothing: str


def chart(
    full: Sequence[Line],
    captions: Captions,
    *,
    crowd: Sequence[Line] = (),
    level: float | None = None,
    bars: bool = False,
    strip: float = 0.0,
    right: float = 0.0,
    limit: Limit | None = None,
    rising: bool = False,
) -> Chart:
    """Named lines, on logarithmic axes unless `limit` sets others.

    Args:
      full: lines with names; the first in the key is the one that ends best.
      captions: all words but the lines' names.
      crowd: pale lines without names.
      level: of y, marked as the target.
      bars: instead of bands.
      strip: inches of a second panel below, whose x-axis is the first's.
      right: the least inches beside the panels.
      limit: sets the panel's scales and limits.
      rising: whether higher is better.
    """
    drawn = tuple(sorted(full, key=lambda line: line.y[-1], reverse=rising))
    names = key([line.entry for line in drawn])
    rows = [Row(max(PANEL, names.beside)), *([Row(strip)] if strip else [])]
    beside, below = max(names.right if drawn else 0.1, right), 0.36 + names.below
    figure, panels = sheet(captions.title, captions.note, rows, right=beside, gap=0.08, below=below)
    made = Chart(figure, tuple(panels), drawn, names)
    describe(panels[-1], captions.x, "")
    describe(panels[0], "", captions.y)
    if not drawn:
        say(panels[0], captions.nothing)
        return made
    (limit or set_limits)(panels[0], drawn, level)
    if level is not None:
        mark_level(panels[0], level, f"target {number(level)}")
    draw_pale(panels[0], crowd)
    _draw_named(made, bars=bars, rising=rising)
    return made


def _draw_named(made: Chart, *, bars: bool, rising: bool) -> None:
    """Draws a chart's lines, and names them."""
    axes, drawn, names = made.panels[0], made.drawn, made.names
    few = 0.18 if len(drawn) <= DIRECT else 0.08
    for i, line in enumerate(drawn):
        draw(axes, line, i / len(drawn), band=0.0 if bars else few)
    # Of lines that end at one height, the best is next to the better ones.
    turn = -1 if rising else 1
    name_ends(axes, drawn[::turn], names.ends[::turn])
    list_names(made.figure, names, [line.entry for line in drawn])


def set_limits(
    axes: Axes,
    drawn: Sequence[Line],
    level: float | None,
    at: Sequence[float] = (),
    room: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Limits that show the lines and their bands, but not how far above its start a line explodes.

    The ticks of x are `at` these values where there is room. `room`: inches left and right of the lines.
    """
    start = np.median([line.y[0] for line in drawn])
    edges = [edge for line in drawn for edge in (line.y, line.low, line.high) if edge is not None]
    values = positive([*edges, [] if level is None else [level]])
    ceiling = max(10 * start, np.max([line.y[-1] for line in drawn]))
    logarithmic(
        axes,
        x=with_room(span(positive([line.x for line in drawn])), page(axes)[1].width, *room),
        y=span(values[values <= ceiling]),
        at=at,
    )


def set_linear_limits(axes: Axes, drawn: Sequence[Line], level: float | None) -> None:
    """The same with a linear y-axis, which shows negative values too."""
    edges = [edge for line in drawn for edge in (line.y, line.low, line.high) if edge is not None]
    values = np.concatenate([*edges, [] if level is None else [level]])
    low, high = (float(edge(values[np.isfinite(values)])) for edge in (np.min, np.max))
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    logarithmic(axes, x=span(positive([line.x for line in drawn])))
    linear(axes, "y", low - room, high + room)


def mark_level(axes: Axes, level: float, text: str) -> None:
    """A dashed line across the panel, with a text on it at the left."""
    axes.axhline(level, color=GREY, linewidth=0.6, dashes=(4, 2), zorder=1)
    axes.annotate(
        *(text, (0, level)),
        xycoords=("axes fraction", "data"),
        xytext=(2, 1.5),
        textcoords="offset points",
        color=GREY,
    )
