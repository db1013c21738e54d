"""Figures of several panels: overfitting, patience, sensitivity."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import frames
from analysis.axes import (
    ARROW,
    GREY,
    ROOM,
    Row,
    describe,
    enumeration,
    further,
    height_of,
    logarithmic,
    page,
    positive,
    say,
    sheet,
    span,
    styled,
    width,
    wrapped,
    write,
)
from analysis.curves import Target
from analysis.lines import PANEL, Chart, Key, chart, draw, key, list_names, name_ends, set_limits
from analysis.look import Look
from analysis.rows import ratios
from analysis.series import (
    Entry,
    Line,
    Looks,
    at_the_end,
    by_label,
    chosen,
    entries_of,
    line_of,
    missing,
    others,
    over_the_best,
    seeds,
    title_of,
)

WORST = 10.0  # times the best metric, in the figure of sensitivity


@styled
def overfitting(curves: pd.DataFrame, looks: Looks, target: Target) -> Figure:
    """KL on held-out views and, dotted, on the training lessons against steps; below, their ratio.

    A panel for each protocol, and one of the ratios (of the medians) with the names of all lines.

    Args:
      curves: of one task and horizon, from `curves.curves`.
      looks: from `look.looks`.
      target: tells which configuration is best where an optimizer has more than three.
    """
    shown, pale = chosen(at_the_end(curves, target))
    entries = entries_of(curves, shown, looks)
    kept = curves[curves["label"].isin(shown)]
    lost = kept[["validation_kl", "train_kl"]].isin([np.inf]).any(axis=1)
    kept = kept.assign(gap=(kept["validation_kl"] / kept["train_kl"]).mask(lost, np.inf))
    every = [line_of(own, "step", "gap", entries[label]) for label, own in by_label(kept, shown)]
    gaps = sorted((line for line in every if len(line.x)), key=lambda line: line.y[-1])
    names = key([line.entry for line in gaps])
    protocols = [(str(name), own) for name, own in kept.groupby("protocol", dropna=False)]
    columns = min(len(protocols), 2) or 1
    above = [Row(PANEL * 0.75, columns)] * (-(-len(protocols) // columns) or 1)
    told = missing(curves, [entries[line.entry.label] for line in every if not len(line.x)], "step")
    notes = [seeds(kept, "medians", "above: KL in nats, thin dots: training"), others(pale), told]
    figure, panels = sheet(
        *(title_of(curves), "; ".join(filter(None, notes)), [*above, Row(max(1.2, names.beside))]),
        right=names.right,
        below=0.36 + names.below,
    )
    for axes in panels[max(1, len(protocols)) : -1]:
        axes.remove()
    describe(panels[-1], "steps", "held-out / training KL")
    if gaps:
        _both_kls(panels, protocols, kept, entries)
        _ratios(panels[-1], gaps, names)
    else:
        say(panels[0], "Nothing to draw after step 0.")
        say(panels[-1], told)
    return figure


def _ratios(axes: Axes, gaps: Sequence[Line], names: Key) -> None:
    """Named lines, and 1."""
    set_limits(axes, gaps, 1.0)
    axes.axhline(1, color=GREY, linewidth=0.6)
    for i, line in enumerate(gaps):
        draw(axes, line, i / len(gaps))
    name_ends(axes, gaps, names.ends)
    list_names(page(axes)[0], names, [line.entry for line in gaps])


def _both_kls(
    panels: Sequence[Axes],
    protocols: Sequence[tuple[str, pd.DataFrame]],
    kept: pd.DataFrame,
    entries: Mapping[str, Entry],
) -> None:
    """A panel for each protocol, all with the same axes."""
    kls = ("validation_kl", "train_kl")
    every = [
        [line_of(own, "step", kl, entries[label]) for kl in kls]
        for label, own in by_label(kept, entries)
    ]
    every_line = [line for pair in every for line in pair if len(line.x)]
    for i, (axes, (protocol, own)) in enumerate(zip(panels, protocols, strict=False)):
        set_limits(axes, every_line, None)
        describe(axes, "", "KL (nats)" if len(protocols) == 1 else protocol)
        if i % 2:
            axes.set_yticklabels([])
        for label, of_label in by_label(own, entries):
            held_out, training = (line_of(of_label, "step", kl, entries[label]) for kl in kls)
            axes.plot(training.x, training.y, color=training.entry.colour, ls=":", lw=0.7, alpha=0.8)
            if len(held_out.x):
                draw(axes, held_out, i / len(protocols))


@styled
def patience(
    finals: pd.DataFrame, matched: pd.DataFrame, looks: Looks, metric: str = "test_kl", title: str = ""
) -> Figure:
    """The final metric against the horizon; below, in how many steps others have the baseline's best.

    Each line below goes from the baseline's longest horizon to the steps at which the other would end
    where the baseline ends there (dashed), and has how many times fewer those are. Where that is but a
    bound, the marker is hollow and has an arrow.

    Args:
      finals: of one task: task, optimizer, label, total_steps, median (inf: most diverged), low, high
        (NaN: no interval), n. Where an optimizer has more than three labels, the one with the lowest
        median at the longest horizon is drawn in full: choose on validation data before.
      matched: label, over (the baseline's label), horizon, needed (steps), speedup, low, high (0, inf:
        unbounded), bound ("", "at least", "at most": of the speedup), n. Only its longest horizon is
        drawn.
      looks: from `look.looks`.
      metric: of the finals.
      title: the figure's; where there is none, the task.
    """
    full, crowd = _of_finals(finals, looks)
    entries = {line.entry.label: line.entry for line in full}
    arrows = matched[matched["needed"].notna() & matched["label"].isin(entries)]
    arrows = arrows[arrows["horizon"] == matched["horizon"].max()]
    room = [ROOM * (arrows["bound"] == bound).any() for bound in ("at least", "at most")]
    told = ratios(arrows)
    notes = [
        seeds(finals[finals["label"].isin(entries)], "median", "bars: 95 % interval"),
        others(crowd),
        f"below: steps that give {arrows['over'].iloc[0]}'s best (dashed)" if told else "",
        "hollow: a bound" * any(room),
    ]
    drawn = [line for line in full if len(line.x)]
    horizons = sorted(map(float, finals["total_steps"].unique()))
    numbered = bool(key([line.entry for line in drawn]).listed)
    made = chart(
        drawn,
        ("training steps (horizon)", frames.metric(finals, metric).axis),
        title or str(finals["task"].iloc[0]),
        "; ".join(filter(None, notes)),
        nothing="No median is finite: most trials diverged.",
        crowd=crowd,
        bars=True,
        strip=(0.15 if numbered else 0.28) * len(told),
        right=max(map(width, told), default=0) + 0.14,
        limit=partial(set_limits, at=horizons, room=(room[0], room[1])),
    )
    if told and made.drawn:
        base = finals[finals["label"] == arrows["over"].iloc[0]].set_index("total_steps")["median"]
        _mark_quality(made, float(base.get(arrows["horizon"].iloc[0], np.nan)), horizons)
        for i, (row, text) in enumerate(zip(arrows.to_dict("records"), told, strict=True)):
            _needed(made, i / len(told), row, entries[str(row["label"])], text)
    return made.figure


def _of_finals(finals: pd.DataFrame, looks: Looks) -> tuple[list[Line], list[Line]]:
    """The lines in full and the pale ones."""
    scores = finals.sort_values("total_steps").groupby(["optimizer", "label"])["median"].last()
    shown, pale = chosen(scores)
    lines = []
    for names in (shown, dict(zip(pale, pale, strict=True))):
        entries = entries_of(finals, names, looks)
        found = [
            line_of(own, "total_steps", "median", entries[label], "low", "high")
            for label, own in by_label(finals, names)
        ]
        lines.append(found)
    return lines[0], lines[1]


def _mark_quality(made: Chart, level: float, horizons: Sequence[float]) -> None:
    """The baseline's quality across the lines, and an empty row below for each arrow."""
    lines, strip = made.panels
    if np.isfinite(level):
        lines.axhline(level, color=GREY, linewidth=0.6, dashes=(4, 2), zorder=1)
    logarithmic(strip, x=lines.get_xlim(), at=horizons)
    strip.set(ylim=(1, 0), yticks=[])
    strip.grid(visible=False, axis="y")
    lines.set(xticklabels=[])
    lines.tick_params(length=0, axis="x")


def _needed(made: Chart, y: float, row: dict[Hashable, Any], entry: Entry, text: str) -> None:
    """From the baseline's horizon to the steps needed, with name and ratio; `y` is the row's top."""
    lines, strip = made.panels
    figure, box = page(strip)
    needed, towards = row["needed"], {"at least": -ARROW, "at most": ARROW}.get(row["bound"])
    y += (0.075 if made.names.listed else 0.21) / box.height
    strip.plot([row["horizon"], needed], [y, y], lw=1.1, color=entry.colour)
    if towards is not None:  # a ratio that is at least so large: so many steps or fewer
        tip = further(strip, needed, towards)
        strip.plot([needed, tip], [y, y], lw=1.1, color=entry.colour)
        strip.plot([tip], [y], marker="<" if towards < 0 else ">", ms=3.5, color=entry.colour)
    filling = entry.colour if towards is None else "white"
    strip.plot(
        [needed], [y], marker=entry.marker, ms=3.5, color=entry.colour, mfc=filling, clip_on=False
    )
    lines.axvline(needed, color=entry.colour, lw=0.4, ls=":", zorder=1)
    middle = box.y1 - box.height * y
    write(figure, box.x1 + 0.08, middle, text, va="center_baseline")
    labels = [line.entry.label for line in made.drawn]
    name = made.names.ends[labels.index(entry.label)] if entry.label in labels else ""
    if made.names.listed:
        write(figure, box.x0 - 0.06, middle, name, va="center_baseline", ha="right")
    else:
        write(figure, box.x0 + 0.04, middle + 0.04, name.replace("\n", ""), va="bottom")


@styled
def sensitivity(
    points: pd.DataFrame,
    looks: Looks,
    title: str = "Sensitivity to the learning rate",
    metric: str = "validation_kl",
) -> Figure:
    """How much worse the metric is off the best learning rate: a point per configuration.

    The line is the lower convex hull of the points in logarithms: what the learning rate allows with the
    best of the other hyperparameters. Diverged configurations are crosses at the upper edge. A panel for
    each optimizer, with the same axes.

    Args:
      points: optimizer, relative (learning rate over the best one), loss_ratio (the metric over the
        best, or the best over it where more is better; inf: diverged).
      looks: from `look.looks`.
      title: the figure's.
      metric: the name of what was measured.
    """
    names = sorted(map(str, points["optimizer"].unique()))
    columns = min(3, len(names)) or 1
    head = max((height_of(wrapped(name, 2.9 / columns - 0.25)) for name in names), default=0) + 0.1
    figure, panels = sheet(
        title,
        f"{over_the_best(frames.metric(points, metric))}; crosses: diverged, or over {WORST:g} times",
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
        _rates(axes, points[points["optimizer"] == name], name, looks[name])
    return figure


def _rates(axes: Axes, own: pd.DataFrame, name: str, look: Look) -> None:
    """One optimizer's points, their hull, and its name above the panel."""
    figure, box = page(axes)
    write(figure, box.x0, box.y1 + 0.05, wrapped(name, box.width), va="bottom")
    own = own[own["relative"] > 0]
    if own.empty:
        axes.text(0.5, 0.5, "none finite", transform=axes.transAxes, ha="center", color=GREY)
    top = axes.get_ylim()[1]
    lost = ~(own["loss_ratio"] <= top)
    x, y = own.loc[~lost, "relative"].to_numpy(float), own.loc[~lost, "loss_ratio"].to_numpy(float)
    axes.plot(x, y, ls="", marker=look.marker, ms=2.5, color=look.colour, alpha=0.7, mew=0)
    crosses = own.loc[lost, "relative"]
    axes.plot(
        crosses, np.full(len(crosses), top), ls="", marker="x", ms=3, color=look.colour, clip_on=False
    )
    if len(x):
        axes.plot(*np.exp(lower_hull(np.log(x), np.log(y))), color=look.colour, lw=0.9)


def lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, m): the vertices of the greatest convex function below the points (Andrew 1979)."""
    hull: list[tuple[float, float]] = []
    for px, py in sorted(zip(x.tolist(), y.tolist(), strict=True)):
        if hull and hull[-1][0] == px:  # the lower of them is there
            continue
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2:]
            if (bx - ax) * (py - ay) > (by - ay) * (px - ax):
                break
            hull.pop()
        hull.append((px, py))
    return np.array(hull).T
