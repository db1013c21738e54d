"""Figures from frames: time-to-accuracy curves, and the gap between training and held-out KL."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito 2008: told apart by all common kinds of colour vision; styles for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
METRICS = {
    "validation_kl": "held-out KL (nats)",
    "validation_agreement": "held-out disagreement",
    "validation_accuracy": "held-out error",
}
AXES = {"step": "steps", "train_seconds": "training seconds"}

mpl.use("agg")


def time_to_accuracy(frame: pd.DataFrame, metric: str, axis: str) -> Figure:
    """One metric against steps or seconds: median over seeds, band between the quartiles.

    For the frame of one task and one horizon. Shares (agreement, accuracy) are drawn as their
    complement to 1, so that a logarithmic axis shows the end of training.
    """
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    share = not metric.endswith("_kl")
    for (label, curve), (colour, style) in zip(_curves(frame), _looks(), strict=False):
        _draw(axes, curve, axis, metric, label, colour, style, share)
    target = frame.iloc[0]
    if target["target_metric"] == metric:
        level = 1 - target["target_value"] if share else target["target_value"]
        axes.axhline(level, color="0.4", linewidth=0.8)
        axes.annotate(
            f"target {level:g}",
            (0.01, level),
            xycoords=("axes fraction", "data"),
            va="bottom",
            fontsize=8,
        )
    seeds = frame.groupby("label")["seed"].nunique()
    _finish(
        axes, METRICS.get(metric, metric), AXES[axis], frame, f"median, quartiles, n = {_range(seeds)}"
    )
    return figure


def overfitting(frame: pd.DataFrame) -> Figure:
    """KL on the training lessons (dotted) and on held-out views against steps."""
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for (label, curve), (colour, _) in zip(_curves(frame), _looks(), strict=False):
        _draw(axes, curve, "step", "validation_kl", f"{label}, held-out", colour, "-", share=False)
        _draw(axes, curve, "step", "train_kl", f"{label}, training", colour, ":", share=False)
    seeds = frame.groupby("label")["seed"].nunique()
    _finish(axes, "KL (nats)", "steps", frame, f"median, quartiles, n = {_range(seeds)}")
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `<name>.png` and `<name>.svg`, and closes the figure."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=200)
    plt.close(figure)
    return paths


def _curves(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(label), curve) for label, curve in frame.groupby("label")]


def _looks() -> list[tuple[str, str]]:
    """Colour and style change together: 28 pairs, the neighbours distinct in both."""
    return [(COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]) for i in range(28)]


def _draw(
    axes: Axes,
    curve: pd.DataFrame,
    axis: str,
    metric: str,
    label: str,
    colour: str,
    style: str,
    share: bool,
) -> None:
    """Median and quartiles over the seeds at each measured step, from the first step on."""
    curve = curve[curve["step"] > 0]
    values = (1 - curve[metric]) if share else curve[metric]
    by_step = values.groupby(curve["step"])
    x = curve.groupby("step")[axis].median()
    axes.plot(x, by_step.median(), style, color=colour, label=label, linewidth=1.4)
    axes.fill_between(
        x, by_step.quantile(0.25), by_step.quantile(0.75), color=colour, alpha=0.2, linewidth=0
    )


def _finish(axes: Axes, y: str, x: str, frame: pd.DataFrame, note: str) -> None:
    curves = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    drawn = np.concatenate([line.get_xydata() for line in curves])
    if np.any(np.all(drawn > 0, axis=1)):
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.set_minor_formatter(NullFormatter())
    else:  # nothing but divergences
        axes.annotate(
            "no finite measurement after step 0", (0.5, 0.5), xycoords="axes fraction", ha="center"
        )
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(
        f"{frame['task'].iloc[0]}, {frame['total_steps'].iloc[0]:,} steps ({note})", fontsize=9
    )
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) <= 8:
        axes.legend(frameon=False, fontsize=8)
    else:  # beside the axes, as high as it needs to be
        axes.figure.set_size_inches(7.5, max(3.6, 0.17 * len(curves)))  # type: ignore[union-attr]
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _range(seeds: pd.Series) -> str:
    return str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
