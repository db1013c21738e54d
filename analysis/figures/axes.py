"""The drawing vocabulary of the figures: sheets as wide as a column, and readable axes.

All sizes are in inches and points as printed, so that what fits here fits on paper.
"""

import functools
import io
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from testbed import errors

WIDTH = 3.4  # of a column of most journals and proceedings
LONGEST = 300  # characters of a text: names may have thousands
FONT = 7.0  # and no second one: embedding it takes most of the time of a PDF
LINE_HEIGHT = 0.125
ARROW = 0.09  # inches from a marker to the tip of an arrow that says "or further"
ROOM = ARROW + 0.03  # beyond all else that an axis shows, so that arrows stand free
GREY = "0.35"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": FONT,
    "text.parse_math": False,  # names are names, with a $ in them too
    "axes.linewidth": 0.6,
    "axes.labelsize": FONT,
    "axes.labelpad": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.5,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "hatch.linewidth": 0.4,
    "figure.dpi": 200,
    "svg.hashsalt": "funmatch",  # with no date, the same table makes the same bytes
    "pdf.fonttype": 42,  # publishers refuse Type 3
}
FORMATS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """The drawing function, in this module's style whatever the process's own."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return in_style


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `<name>.png` (200 dpi), `<name>.svg` and `<name>.pdf`; returns their paths."""
    paths = [folder / f"{name}.{ending}" for ending in FORMATS]
    with mpl.rc_context(RC):
        for path, metadata in zip(paths, FORMATS.values(), strict=True):
            figure.savefig(path, dpi=200, metadata=metadata)
    return paths


# Text


@functools.cache
def width(text: str, size: float = FONT) -> float:
    """Inches that a text of one line takes."""
    properties = FontProperties(family=["DejaVu Sans"], size=size)
    return float(text_to_path.get_text_width_height_descent(text, properties, False)[0]) / 72


def wrapped(text: str, inches: float, size: float = FONT) -> str:
    """The text in lines no longer than that, broken after a space, _, =, comma or / where it can be."""
    lines, rest = [], printable(text)
    while width(rest.rstrip(), size) > inches:
        lengths = range(1, len(rest) + 1)
        fits = max(1, bisect(lengths, inches, key=lambda n: width(rest[:n].rstrip(), size)))
        breaks = [n for n in range(1, fits + 1) if rest[n - 1] in " _=,/"]
        cut = breaks[-1] if breaks else fits
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return "\n".join([*lines, rest.rstrip()])


def printable(text: str) -> str:
    """The text in one line, not too long, with a ? for each character that the font has not."""
    font = get_font(findfont("DejaVu Sans"))
    short = errors.printable(text, LONGEST)
    return "".join(c if font.get_char_index(ord(c)) else "?" for c in short)


def number(value: float) -> str:
    """A tick's label: 0.001, 20, 4,000, 1e6."""
    if 1e-4 <= abs(value) < 1e6 or value == 0:
        return f"{value:,.10g}"
    return f"{value:g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def enumeration(names: Sequence[str], most: int = 3) -> str:
    """The names as in a sentence: all, or the first of them and the number of the others."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


# Sheets: figures laid out in inches from their lower left corner


class Sheet(Figure):
    """A figure that a notebook shows as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(RC):
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


class Row(NamedTuple):
    """Panels side by side."""

    height: float
    columns: int = 1


def sheet(
    title: str,
    note: str,
    rows: Sequence[Row],
    *,
    left: float = 0.42,
    right: float = 0.1,
    head: float = 0.24,
    gap: float = 0.45,
    between: float = 0.12,
    below: float = 0.36,
) -> tuple[Figure, list[Axes]]:
    """A figure with its caption-title above and panels in rows; the panels from the left above.

    A line is left above the first row for what its y-axes show; see `describe`.

    Args:
      title: larger than the rest.
      note: below it.
      rows: of panels.
      left: inches beside the panels.
      right: the same.
      head: inches between the note and the first row.
      gap: inches from row to row.
      between: inches from column to column.
      below: inches for the last x-axis and what stands under it.
    """
    title = wrapped(title, WIDTH - 0.1, FONT + 1)
    note = wrapped(note, WIDTH - 0.1)
    below_title = 0.08 + height_of(title)
    above = below_title + height_of(note) + head
    height = above + sum(row.height for row in rows) + gap * (len(rows) - 1) + below
    figure = Sheet(figsize=(WIDTH, height))
    write(figure, 0.05, height - 0.05, title, va="top", size=FONT + 1)
    write(figure, 0.05, height - below_title, note, va="top", color=GREY)
    panels, top = [], height - above
    for row in rows:
        wide = (WIDTH - left - right - between * (row.columns - 1)) / row.columns
        for column in range(row.columns):
            x, y = left + column * (wide + between), top - row.height
            place = (x / WIDTH, y / height, wide / WIDTH, row.height / height)
            panels.append(figure.add_axes(place))
        top -= row.height + gap
    return figure, panels


def height_of(text: str) -> float:
    """Inches that the lines of a text take; none where it is empty."""
    return LINE_HEIGHT * (text.count("\n") + 1) if text else 0.0


def write(figure: Figure, x: float, y: float, text: str, **kwargs: Any) -> None:
    """Text at inches."""
    figure.text(x, y, text, transform=figure.dpi_scale_trans, **kwargs)


def stroke(figure: Figure, x: Sequence[float], y: Sequence[float], **kwargs: Any) -> None:
    """A line, or markers, at inches."""
    figure.add_artist(Line2D(x, y, transform=figure.dpi_scale_trans, **kwargs))


def page(axes: Axes) -> tuple[Figure, Bbox]:
    """The figure of a panel, and where it lies in it, in inches."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure, axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())


def describe(axes: Axes, x: str, y: str) -> None:
    """Names the axes: x below; y in the line above the panel, where it is read without turning."""
    figure, box = page(axes)
    if x:
        axes.set_xlabel(x)
    if y:
        write(figure, max(0.05, box.x0 - 0.3), box.y1 + 0.07, y, color=GREY)


def say(axes: Axes, sentence: str) -> None:
    """A panel that has nothing to show says so."""
    text = wrapped(sentence, page(axes)[1].width - 0.2)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


# Axes

MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def positive(values: Iterable[ArrayLike]) -> NDArray[np.float64]:
    """Those of all the values that a logarithmic axis can show."""
    flat = np.concatenate([np.empty(0), *(np.ravel(np.asarray(v, float)) for v in values)])
    return flat[np.isfinite(flat) & (flat > 0)]


def span(values: NDArray[np.float64], pad: float = 0.04) -> tuple[float, float]:
    """Limits of a logarithmic axis that shows these positive values, at least 10 % apart."""
    low, high = np.log(values.min()), np.log(values.max())
    room = max(pad * (high - low), (0.1 - (high - low)) / 2, 0)
    return float(np.exp(low - room)), float(np.exp(high + room))


def with_room(
    limits: tuple[float, float], length: float, left: float, right: float
) -> tuple[float, float]:
    """The limits of a logarithmic axis of that length, moved by so many inches; all in inches."""
    low, high = np.log(limits)
    scale = (high - low) / (length - left - right)
    return float(np.exp(low - left * scale)), float(np.exp(high + right * scale))


def further(axes: Axes, x: float, inches: float) -> float:
    """What is so many inches right of x (left of it, if negative) on a logarithmic axis."""
    left, right = axes.get_xlim()
    return float(x * (right / left) ** (inches / page(axes)[1].width))


def logarithmic(
    axes: Axes,
    *,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    at: Sequence[float] = (),
) -> None:
    """Logarithmic axes with these limits, and as many round ticks as can be read.

    Those of x are `at` these values where there is room.
    """
    _, box = page(axes)
    if x:
        axes.set_xscale("log")
        axes.set_xlim(*x)
        scale = box.width / np.log(x[1] / x[0])
        fit = len(at) and apart(at, scale, _beside)
        ticks = list(at) if fit else round_ticks(*x, box.width, _beside)
        axes.set_xticks(ticks, [number(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
    if y:
        axes.set_yscale("log")
        axes.set_ylim(*y)
        ticks = round_ticks(*y, box.height, lambda _: 0.22)
        axes.set_yticks(ticks, [number(tick) for tick in ticks])
        axes.set_yticks([], minor=True)


def linear(axes: Axes, name: Literal["x", "y"], low: float, high: float) -> None:
    """A linear axis with these limits, and round ticks between them."""
    candidates = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = [round(float(tick), 9) for tick in candidates if low <= tick <= high]
    set_ticks, set_limits = (
        (axes.set_xticks, axes.set_xlim) if name == "x" else (axes.set_yticks, axes.set_ylim)
    )
    set_ticks(ticks, [number(tick) for tick in ticks])
    set_limits(low, high)


def _beside(label: str) -> float:
    return width(label) + 0.1


def round_ticks(low: float, high: float, inches: float, room: Callable[[str], float]) -> list[float]:
    """Round numbers between the limits of a logarithmic axis whose labels do not touch.

    Args:
      low: the lower limit.
      high: the upper one.
      inches: the axis's length.
      room: inches along the axis that a label takes.
    """
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    finest = [[m * 10.0**e for e in decades for m in mantissas] for mantissas in MANTISSAS]
    coarser = [[10.0**e for e in decades if e % n == 0] for n in (2, 3, 5, 10, 20, 50)]
    even = [list(map(float, MaxNLocator(5).tick_values(low, high)))] if high < 1.5 * low else []
    for candidates in (*even, *finest, *coarser):
        ticks = [tick for tick in candidates if low <= tick <= high]
        if apart(ticks, inches / np.log(high / low), room):
            return ticks
    return []


def apart(ticks: Sequence[float], scale: float, room: Callable[[str], float]) -> bool:
    """Whether labels at ticks of a logarithmic axis do not touch; `scale` is its inches per e-fold."""
    needed = [room(number(tick)) for tick in ticks]
    gaps = np.diff(np.log(np.array(ticks, float))) * scale
    return all(gap >= (a + b) / 2 for gap, a, b in zip(gaps, needed, needed[1:], strict=False))
