"""Patience: what longer schedules give, and in how many steps others have it."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import frames
from analysis.figures import style
from analysis.figures.axes import ARROW, GREY, ROOM, further, logarithmic, page, styled, width, write
from analysis.figures.lines import Captions, Chart, chart, key, set_limits
from analysis.figures.series import (
    Entry,
    Line,
    by_label,
    entries_of,
    line_of,
    others,
    ratios,
    seeds,
    shown_and_pale,
)
from analysis.figures.style import Styles


@styled
def patience(
    finals: pd.DataFrame,
    matched: pd.DataFrame,
    styles: Styles | None = None,
    metric: str = "test_kl",
    title: str = "",
) -> Figure:
    """The final metric against the horizon; below, in how many steps others have the baseline's best.

    Each line below goes from the baseline's longest horizon to the steps at which the other would end
    where the baseline ends there (dashed), and has how many times fewer those are. Where that is only a
    bound, the marker is hollow and has an arrow.

    Args:
      finals: of one task (`statistics.matched_quality.finals`): task, optimizer, label, total_steps,
        median (inf: most diverged), low, high (NaN: no interval), n. Where an optimizer has more than
        three labels, the one with the lowest median at the longest horizon is drawn in full: choose on
        validation data before.
      matched: as of `statistics.matched_quality.matched_quality`: label, over (the baseline's label),
        horizon, needed (steps), speedup, low, high (0, inf: unbounded), bound ("", "at least", "at
        most": of the speedup), n. Only its longest horizon is drawn.
      styles: of the optimizers; default: `style.styles` of those in the table.
      metric: of the finals.
      title: the figure's; where there is none, the task.
    """
    styles = styles or style.styles(set(finals["optimizer"]))
    full, crowd = _of_finals(finals, styles)
    entries = {line.entry.label: line.entry for line in full}
    arrows = matched[matched["needed"].notna() & matched["label"].isin(entries)]
    arrows = arrows[arrows["horizon"] == matched["horizon"].max()]
    room = [ROOM if (arrows["bound"] == bound).any() else 0.0 for bound in ("at least", "at most")]
    numbers = ratios(arrows)
    notes = [
        seeds(finals[finals["label"].isin(entries)], "median", "bars: 95 % interval"),
        others(crowd),
        f"below: steps that give {arrows['over'].iloc[0]}'s best (dashed)" if numbers else "",
        "hollow: a bound" if any(room) else "",
    ]
    captions = Captions(
        title or str(finals["task"].iloc[0]),
        "; ".join(filter(None, notes)),
        *("training steps (horizon)", frames.metric(finals, metric).axis),
        nothing="No median is finite: most trials diverged.",
    )
    drawn = [line for line in full if len(line.x)]
    horizons = sorted(map(float, finals["total_steps"].unique()))
    numbered = bool(key([line.entry for line in drawn]).listed)
    made = chart(
        drawn,
        captions,
        crowd=crowd,
        bars=True,
        strip=(0.15 if numbered else 0.28) * len(numbers),
        right=max(map(width, numbers), default=0) + 0.14,
        limit=partial(set_limits, at=horizons, room=(room[0], room[1])),
    )
    if numbers and made.drawn:
        base = finals[finals["label"] == arrows["over"].iloc[0]].set_index("total_steps")["median"]
        _mark_quality(made, float(base.get(arrows["horizon"].iloc[0], np.nan)), horizons)
        for i, (row, text) in enumerate(zip(arrows.to_dict("records"), numbers, strict=True)):
            _needed(made, i / len(numbers), row, entries[str(row["label"])], text)
    return made.figure


def _of_finals(finals: pd.DataFrame, styles: Styles) -> tuple[list[Line], list[Line]]:
    """The lines in full and the pale ones."""
    scores = finals.sort_values("total_steps").groupby(["optimizer", "label"])["median"].last()
    shown, pale = shown_and_pale(scores)
    lines = []
    for names in (shown, dict(zip(pale, pale, strict=True))):
        entries = entries_of(finals, names, styles)
        lines.append(
            [
                line_of(own, "total_steps", "median", entries[label], "low", "high")
                for label, own in by_label(finals, names)
            ]
        )
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
