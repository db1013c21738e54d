"""Overfitting: KL on held-out data and on training lessons."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.axes import GREY, Row, describe, page, say, sheet, styled
from analysis.figures.lines import PANEL, Key, draw, key, list_names, name_ends, set_limits
from analysis.figures.series import (
    Entry,
    Line,
    at_the_end,
    by_label,
    curves_of,
    entries_of,
    line_of,
    missing,
    others,
    seeds,
    shown_and_pale,
    title_of,
)
from analysis.figures.style import Styles
from analysis.statistics.curves import Target

KLS = ("validation_kl", "train_kl")


@styled
def overfitting(
    table: pd.DataFrame, styles: Styles | None = None, target: Target | None = None
) -> Figure:
    """KL on held-out views and, dotted, on the training lessons against steps; below, their ratio.

    A panel for each protocol, and one of the ratios (of the medians) with the names of all lines.

    Args:
      table: measurements (`frames.load`) or curves (`statistics.curves.curves`) of one task and horizon.
      styles: of the optimizers; default: `style.styles` of those in the table.
      target: decides which configuration is best where an optimizer has more than three; default: that
        of the measurements.

    Raises:
      ValueError: the table is of several tasks or horizons.
    """
    curves, target = curves_of(table, target)
    styles = styles or style.styles(set(curves["optimizer"]))
    shown, pale = shown_and_pale(at_the_end(curves, target))
    entries = entries_of(curves, shown, styles)
    kept = _with_gaps(curves[curves["label"].isin(shown)])
    every = [line_of(own, "step", "gap", entries[label]) for label, own in by_label(kept, shown)]
    gaps = sorted((line for line in every if len(line.x)), key=lambda line: line.y[-1])
    names = key([line.entry for line in gaps])
    protocols = [(str(name), own) for name, own in kept.groupby("protocol", dropna=False)]
    columns = min(len(protocols), 2) or 1
    above = [Row(PANEL * 0.75, columns)] * (-(-len(protocols) // columns) or 1)
    lost = missing(curves, [entries[line.entry.label] for line in every if not len(line.x)], "step")
    notes = [seeds(kept, "medians", "above: KL in nats, thin dots: training"), others(pale), lost]
    figure, panels = sheet(
        *(title_of(curves), "; ".join(filter(None, notes)), [*above, Row(max(1.2, names.beside))]),
        right=names.right,
        below=0.36 + names.below,
    )
    for axes in panels[max(1, len(protocols)) : -1]:
        axes.remove()
    describe(panels[-1], "steps", "held-out / training KL")
    if gaps:
        _draw_kls(panels, protocols, kept, entries)
        _draw_gaps(panels[-1], gaps, names)
    else:
        say(panels[0], "Nothing to draw after step 0.")
        say(panels[-1], lost)
    return figure


def _with_gaps(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves with the ratio of both KLs, infinite where one of them is."""
    lost = curves[[*KLS]].isin([np.inf]).any(axis=1)
    return curves.assign(gap=(curves["validation_kl"] / curves["train_kl"]).mask(lost, np.inf))


def _draw_gaps(axes: Axes, gaps: Sequence[Line], names: Key) -> None:
    """Named lines, and 1."""
    set_limits(axes, gaps, 1.0)
    axes.axhline(1, color=GREY, linewidth=0.6)
    for i, line in enumerate(gaps):
        draw(axes, line, i / len(gaps))
    name_ends(axes, gaps, names.ends)
    list_names(page(axes)[0], names, [line.entry for line in gaps])


def _draw_kls(
    panels: Sequence[Axes],
    protocols: Sequence[tuple[str, pd.DataFrame]],
    kept: pd.DataFrame,
    entries: Mapping[str, Entry],
) -> None:
    """A panel for each protocol, all with the same axes."""
    every = [
        line_of(own, "step", kl, entries[label]) for label, own in by_label(kept, entries) for kl in KLS
    ]
    every = [line for line in every if len(line.x)]
    for i, (axes, (protocol, own)) in enumerate(zip(panels, protocols, strict=False)):
        set_limits(axes, every, None)
        describe(axes, "", "KL (nats)" if len(protocols) == 1 else protocol)
        if i % 2:
            axes.set_yticklabels([])
        for label, of_label in by_label(own, entries):
            held_out, training = (line_of(of_label, "step", kl, entries[label]) for kl in KLS)
            axes.plot(training.x, training.y, color=training.entry.colour, ls=":", lw=0.7, alpha=0.8)
            if len(held_out.x):
                draw(axes, held_out, i / len(protocols))
