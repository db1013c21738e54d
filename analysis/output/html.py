"""The report as one HTML page that works from disk, offline, and without a server.

Data, script and style are inside it. Its Content-Security-Policy allows no network, and only those two
scripts whose checksums it names, so that no name in a record can become a program.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import matplotlib.figure
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype, is_scalar
from plotly.offline import get_plotlyjs

from analysis import frames
from analysis.figures.series import AXES, as_drawn
from analysis.figures.style import DASHES, Styles
from analysis.statistics.curves import Target, measured
from testbed.metrics import Metric

SHOWN = 20  # curves of a group at first; of more, each optimizer's best
INLINED = 3_000_000  # bytes of figures inside the page; the others are linked
ENDINGS = ("svg", "png", "pdf", "csv")
# Such as "0.31 [0.28, 0.35]" and "at least 4 [3.45, ∞)": sorted by their number.
ESTIMATE = re.compile(r"(?:at (?:least|most) )?([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?=$|[\sx%[])")
ASSETS = Path(__file__).parent / "assets"


class Group(NamedTuple):
    """What is drawn into one diagram: curves that can be compared."""

    task: str
    protocol: str
    total_steps: int


@dataclass(frozen=True)
class Section:
    """A table, its figures, and how they are computed.

    Cells of the table that are numbers are shown to 4 significant digits, missing ones as a dash.

    Attributes:
        title: The section's.
        how: How its numbers are computed.
        table: What it shows, and what `<name>.csv` holds.
        figures: What draws each, by the names of their files without ending. `<name>.svg` is inside the
            page, unless the name is one of `files` too.
        files: Names of more files beside the page, of which those of ENDINGS that exist are linked.
        group: Sections of one are shown together, under its title; those without one come first.
        name: Of the table's file.
        shown: In the page; otherwise its files alone are written.
    """

    title: str
    how: str
    table: pd.DataFrame
    figures: Mapping[str, Callable[[], matplotlib.figure.Figure]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    group: str = ""
    name: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        title: The page's, as plain text; so are all texts.
        headlines: The summary.
        warnings: What weakens it.
        curves: One row per configuration and measured step: task, protocol, total_steps, optimizer,
            label, step, epoch, train_seconds (NaN: untimed), n (seeds), and for each metric m (as of
            `curves.curves`) m, m_low and m_high: median and quartiles over seeds, where a value that is
            not finite is not drawn. Shares are given as such, and drawn as 1 - share.
        targets: The target of each group; none is drawn where it is missing.
        styles: How each optimizer of `curves` is drawn.
        sections: Tables and figures, in the order of their groups' first, and of their own. Their tables
            are readable, and their figures drawn.
        runs: One row per trial. Its column `record`, if any, has the path of the record relative to
            the page.
        provenance: What the numbers depend on, as a table.
        notes: Remarks for the end.
    """

    title: str
    headlines: Sequence[str]
    warnings: Sequence[str]
    curves: pd.DataFrame
    targets: Mapping[Group, Target]
    styles: Styles
    sections: Sequence[Section]
    runs: pd.DataFrame
    provenance: pd.DataFrame
    notes: Sequence[str] = ()


class Cell(NamedTuple):
    """A cell of a table: what is shown, what it is sorted by (nothing: its text), its link and style."""

    text: str
    value: str = ""
    link: str = ""
    style: str = ""


class Grid(NamedTuple):
    """A table: its columns, each with its style, and rows of cells."""

    columns: list[tuple[str, str]]
    rows: Iterator[list[Cell]]


class Figure(NamedTuple):
    """A figure of a section: its image as a data URI (nothing: linked), and its files' endings."""

    name: str
    image: str
    files: tuple[str, ...]


class Shown(NamedTuple):
    """A section as the page has it: its number counts from 1, through all groups."""

    number: int
    section: Section
    table: Grid
    figures: list[Figure]
    files: list[Figure]


def render(page: Page, folder: Path) -> str:
    """The page as HTML; `folder` is where it will lie, and where the figures are.

    Raises:
        FileNotFoundError: A figure of a section has no `.svg` in the folder.
    """
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {"plotly": get_plotlyjs(), "page": (ASSETS / "page.js").read_text("utf-8")}
    groups = _sections(page.sections, folder)
    figures = [figure for _, sections in groups for shown in sections for figure in shown.figures]
    return jinja.get_template("page.html").render(
        page=page,
        metrics=measured(page.curves),
        axes=AXES,
        curves=_packed(_curves(page)),
        groups=groups,
        linked={figure.name for figure in figures if not figure.image},
        runs=_grid(page.runs),
        provenance=_grid(page.provenance),
        style=(ASSETS / "page.css").read_text("utf-8"),
        scripts=scripts,
        checksums=[_checksum(script) for script in scripts.values()],
    )


def _checksum(script: str) -> str:
    """Of an inline script, as a Content-Security-Policy names it (W3C, CSP level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _packed(data: Any) -> str:
    """JSON, compressed: the numbers take less than half the bytes, and nothing in them is markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _sections(sections: Iterable[Section], folder: Path) -> list[tuple[str, list[Shown]]]:
    """The groups' titles and sections; first those of no group, whose title is empty."""
    titles = list(dict.fromkeys(["", *(section.group for section in sections)]))
    ordered = sorted(sections, key=lambda section: titles.index(section.group))
    figures = _figures([n for s in ordered for n in s.figures if n not in s.files], folder)
    groups: dict[str, list[Shown]] = {title: [] for title in titles}
    for number, section in enumerate(ordered, 1):
        drawn = [figures[name] for name in section.figures if name not in section.files]
        files = [Figure(name, "", ends) for name in section.files if (ends := _endings(name, folder))]
        groups[section.group].append(Shown(number, section, _grid(section.table), drawn, files))
    return list(groups.items())


def _endings(name: str, folder: Path) -> tuple[str, ...]:
    return tuple(ending for ending in ENDINGS if (folder / f"{name}.{ending}").exists())


def _figures(names: Sequence[str], folder: Path) -> dict[str, Figure]:
    figures, room = {}, INLINED
    for name in names:
        image = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
        inside = len(image) <= room
        room -= len(image) if inside else 0
        source = f"data:image/svg+xml;base64,{image}" if inside else ""
        figures[name] = Figure(name, source, _endings(name, folder))
    return figures


def _curves(page: Page) -> dict[str, Any]:
    """What the script draws: styles by optimizer, and for each group its target and curves."""
    groups = []
    if len(page.curves):
        for key, rows in page.curves.groupby(list(Group._fields), sort=False):
            group = Group._make(key)
            groups.append(_group(group, rows, page.targets.get(group)))
    return {"styles": {name: style._asdict() for name, style in page.styles.items()}, "groups": groups}


def _group(group: Group, rows: pd.DataFrame, target: Target | None) -> dict[str, Any]:
    metrics = measured(rows)
    aim = target or Target("n", np.nan, "max")  # without one, no curve is the best
    curves = []
    for optimizer, of_optimizer in rows.groupby("optimizer", sort=False):
        own = [of_label.sort_values("step") for _, of_label in of_optimizer.groupby("label", sort=False)]
        # The best, among those with most seeds, comes first and is drawn solid.
        own.sort(key=lambda points: (-points["n"].max(), _end(points, aim)))
        for i, points in enumerate(own):
            curve = {"label": points["label"].iloc[0], "optimizer": optimizer}
            style = {"dash": DASHES[i % len(DASHES)][1], "shown": not i}
            curves.append(curve | _numbers(points, metrics) | style)
    for curve in curves if len(curves) <= SHOWN else ():
        curve["shown"] = True
    return {
        "name": f"{group.task}, {group.protocol}, {group.total_steps:,} steps",
        "target": _line(target, frames.metric(rows, target.metric)) if target else None,
        "curves": curves,
    }


def _line(target: Target, metric: Metric) -> dict[str, Any]:
    """Where and how a target is drawn."""
    value, text = target.value, f"target {target.value:g}"
    if metric.drawn == "complement":
        share = target.metric.rpartition("_")[2]
        value, text = 1 - target.value, f"target {1 - target.value:.4g} ({share} {target.value:g})"
    return {"metric": target.metric, "value": value, "text": text}


def _end(rows: pd.DataFrame, target: Target) -> float:
    """The last value of a curve, which is better when lower; infinite where it diverged."""
    value = rows[target.metric].iloc[-1] * (1 if target.mode == "min" else -1)
    return float(value) if np.isfinite(value) else np.inf


def _numbers(curve: pd.DataFrame, metrics: Sequence[Metric]) -> dict[str, Any]:
    """A curve's points: x by axis, n, and y by metric: median, lower and upper quartile."""
    y = {}
    for metric in metrics:
        low, middle, high = f"{metric.name}_low", metric.name, f"{metric.name}_high"
        shown = as_drawn(curve, metric, low, middle, high)
        y[metric.name] = [_rounded(shown[part]) for part in (middle, low, high)]
    x = {axis: _rounded(curve[axis]) if curve[axis].notna().any() else None for axis in AXES}
    return {
        "x": x | {"step": [int(s) for s in curve["step"]]},
        "n": [int(n) for n in curve["n"]],
        "y": y,
    }


def _rounded(values: pd.Series) -> list[float | None]:
    """To 5 significant digits; None where not finite, which JSON has no word for."""
    array = values.to_numpy(float)
    return [float(f"{v:.5g}") if f else None for v, f in zip(array, np.isfinite(array), strict=True)]


def _grid(table: pd.DataFrame) -> Grid:
    styles = [
        "number" if is_numeric_dtype(table.iloc[:, i]) and not is_bool_dtype(table.iloc[:, i]) else ""
        for i in range(table.shape[1])
    ]
    columns = [(str(name), style) for name, style in zip(table.columns, styles, strict=True)]
    rows = table.astype(object).itertuples(index=False, name=None)
    return Grid(columns, ([_cell(*c) for c in zip(row, columns, strict=True)] for row in rows))


def _cell(value: Any, column: tuple[str, str]) -> Cell:
    name, style = column
    if (is_scalar(value) and pd.isna(value)) or (isinstance(value, str) and value in ("", "-")):
        return Cell("\u2013", style=f"missing {style}".strip())
    if name == "record" and isinstance(value, str):
        # Quoted, a colon too: what looks like a scheme is still a path.
        return Cell("record", link=quote(str(value), safe="/"))
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        if name == "seed" and float(value).is_integer():
            return Cell(str(int(value)), str(int(value)), style="number")  # a name, not an amount
        return Cell(_shown(value), f"{float(value):.9g}", style="number")
    text = str(value)
    number = ESTIMATE.match(text)
    long = "long" if len(text) > 40 else ""
    return Cell(text, number[1].replace(",", "") if number else "", style=long)


def _shown(value: float | np.number) -> str:
    """To 4 significant digits; whole numbers in full."""
    number = float(value)
    if not np.isfinite(number):
        return "∞" if number > 0 else "-∞"
    if isinstance(value, (int, np.integer)) or (number.is_integer() and abs(number) < 1e4):
        return f"{int(number):,}"
    if 1e4 <= abs(number) < 1e9:
        return f"{float(f'{number:.4g}'):,.0f}"
    return f"{number:.4g}"
