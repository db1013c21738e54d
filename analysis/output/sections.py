"""What a report consists of: for each analysis its table, its figure, and how it is computed."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis import figures, frames
from analysis.figures.style import Styles
from analysis.frames import Folder
from analysis.output.files import safe
from analysis.output.html import Section
from analysis.statistics import (
    cost,
    curves,
    matched_quality,
    overfitting,
    profiles,
    sensitivity,
    summary,
    tuning,
)
from analysis.statistics.curves import Target
from analysis.statistics.trials import GROUP, best_per_optimizer

TAUS = np.linspace(1, profiles.TAU_MAX, 301)
NO_TABLE = pd.DataFrame()

MEASURES = {"final": "metric at the end", "steps_to_target": "steps to the target"}

SPEEDUPS = (
    "Baseline's time to the target / the other's, paired by seed; students that share lessons are no "
    "pairs: means over those of each lesson seed are, or with fewer than three of these, students are "
    "independent (Welch's test). The interval is the set of ratios "
    "that a t-test of log times does not reject, both sides cut at the time they were watched for, so "
    "that misses count without a time being made up for them; it allows for what may have happened "
    "since the measurement before (analysis/statistics/ratio.py). P(faster) is one minus the one-sided "
    "p-value; smallest detectable: the ratio above 1 that such a test detects with a power of 80 %; "
    "wins: on how many seeds it reached the target first. Of 20 intervals of equal optimizers, one "
    "excludes 1 by chance."
)
TIMES = (
    "Medians over seeds and their quartiles at each measurement; a diverged seed is worse than all "
    "others. The same curves are above, interactively."
)
DIAGNOSTICS = (
    "What was measured beside the metrics and has no better end: norms of gradients, counts of an "
    "optimizer. Medians over seeds and their quartiles at each measurement; a diverged seed is absent "
    "after it broke down."
)
SUMMARY = (
    "Medians over seeds. Final metrics: 95 % percentile bootstrap; a diverged seed is worse than all "
    "others. To the target: Kaplan and Meier's median, in which a miss is later than all others, with "
    "a bootstrap interval (Efron 1981). Of five seeds an interval is about their range, which covers "
    "the median in 93.75 %; fewer have none."
)
MATCHED = (
    "In how many times fewer steps the other ends where the baseline ends: the task's deciding metric "
    "at the ends of whole schedules, interpolated between horizons linearly in log steps and log "
    "metric; the interval is what a t-test of log metrics does not reject (Fieller). The test is of "
    "pairs where both share seeds, or lesson seeds, at all horizons, else Welch's of independent "
    "students, or of means over at least three lesson seeds. Smallest detectable: the ratio above "
    "1 that it detects with a power of 80 %. The sense of 'Shampoo in 1200 epochs what Adam has in "
    "4800' of Beyer et al. 2021. Each optimizer with its best configuration at each horizon."
)
PROFILE = (
    "rho(tau): the share of workloads in which an optimizer needs at most tau times the steps of the "
    "best (Dolan and More 2002), from medians over seeds of its best configuration. Score: its "
    "integral over tau from 1 to 4, by the trapezoid of 100 points as AlgoPerf's scorer has it (Dahl "
    "et al. 2023), and exactly. Intervals and rank probabilities: seeds resampled within workloads, "
    "2,000 times."
)
TUNING = (
    "The best of k configurations drawn at random from those that were tried: quartiles and the "
    "unbiased mean (Tang et al. 2020), beside the biased one (Dodge et al. 2019). Misses and "
    "divergences are the worst value, never dropped. On validation data."
)
SENSITIVITY = (
    "The validation metric at the end against the learning rate, both relative to the best "
    "configuration. Other hyperparameters vary too in a random search, hence the lower envelope. "
    "factor: how far the learning rate may range with the envelope within 10 % of the best; at the "
    "edge of what was tried, only a bound."
)
AUDIT = (
    "Held-out / training KL at the end, and at a quarter of the steps; trend: the slope of its log "
    "against log step; rise: held-out KL at the end / the lowest along the way. Above 1 and growing: "
    "overfitting. Medians over seeds, 95 % percentile bootstrap."
)
RANKS = (
    "Spearman's correlation over trials between final training KL and final held-out KL ('reducing "
    "the training error means generalizing better', Beyer et al. 2021), bootstrap over trials; "
    "concordance: the share of pairs of trials that both order in the same way."
)
COST = (
    "From the ledgers of timed trials, medians, in milliseconds per step. Learning and waiting for "
    "data are on the clock, the rest is off it."
)


def sections(
    records: Folder,
    ends: pd.DataFrame,
    lines: pd.DataFrame,
    speedups: pd.DataFrame,
    matched: pd.DataFrame,
    baseline: str,
    styles: Styles,
) -> Iterator[Section]:
    """All that there is enough data for, ends of schedules first; tables are as files have them.

    From `frames.read`, `trials.trials`, `curves.curves`, `speedups.speedups` and
    `matched_quality.matched_quality`.
    """
    tuned, points = tuning.tuning_curves(ends), sensitivity.sensitivity(ends)
    costs = cost.cost_split(records.runs)
    yield from _patience(matched_quality.finals(ends), matched, styles)
    for workload in workloads(ends):
        trials, own = workload.rows(ends), workload.rows(lines)
        target = curves.target(trials)
        yield from _speedups(workload, trials, workload.rows(speedups), baseline, styles)
        yield from _times(workload, own, target, styles)
        yield from _diagnostics(workload, own, target, styles)
        yield from _tuning(workload, workload.rows(tuned), workload.rows(points), target.metric, styles)
        if len(split := workload.rows(costs)):
            title = f"Cost of a step: {workload.title}"
            draw = partial(figures.cost_split, split, styles, title)
            name = f"{workload.stem}-cost"
            yield Section("Cost of a step", COST, split, {name: draw}, (), workload.title, name)
    yield Section("Held-out results", SUMMARY, summary.summary(ends), name="summary")
    yield from _profile(ends, styles)
    yield from _overfitting(records.frame, lines, styles)


class Workload(NamedTuple):
    """Trials that can be compared: one task, protocol and horizon."""

    key: tuple[object, ...]  # as GROUP
    stem: str  # of its files
    title: str

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table's rows of this group."""
        if table.empty:
            return table
        return table[(table[GROUP] == list(self.key)).all(axis=1)].reset_index(drop=True)


def workloads(ends: pd.DataFrame) -> Iterator[Workload]:
    """All of a folder; the protocol is named where there are several."""
    several = ends["protocol"].nunique() > 1
    for (task, protocol, steps), _ in ends.groupby(GROUP):
        stem = f"{safe(task)}-{safe(protocol)}-{steps}" if several else f"{safe(task)}-{steps}"
        title = f"{task}, {steps:,} steps" + (f", {protocol}" if several else "")
        yield Workload((task, protocol, steps), stem, title)


def _speedups(
    workload: Workload, trials: pd.DataFrame, speedups: pd.DataFrame, baseline: str, styles: Styles
) -> Iterator[Section]:
    """The table of all configurations; the figure of each optimizer's best, or all of one optimizer."""
    if speedups.empty:
        return
    table = speedups.sort_values(["axis", "n", "speedup"], ascending=False)  # steps first
    best = table[table["label"].isin(best_per_optimizer(trials)["label"])]
    shown = best.assign(label=best["optimizer"], over=baseline) if len(best) else table
    title = f"Speed-up over {baseline}"
    draw = partial(figures.speedups, shown, styles, f"{title}: {workload.title}")
    name = f"{workload.stem}-speedups"
    yield Section(title, SPEEDUPS, table, {name: draw}, (), workload.title, name)


def _tuning(
    workload: Workload, tuned: pd.DataFrame, points: pd.DataFrame, metric: str, styles: Styles
) -> Iterator[Section]:
    for measure, own in tuned.groupby("measure"):
        title = f"Best of k trials, {MEASURES[str(measure)]}"
        draw = partial(figures.tuning_curve, own, styles, f"{title}: {workload.title}", metric)
        name = f"{workload.stem}-tuning-{measure}"
        yield Section(title, TUNING, own, {name: draw}, (), workload.title, name)
    if len(points):
        name, title = f"{workload.stem}-sensitivity", "Sensitivity to the learning rate"
        draw = partial(figures.sensitivity, points, styles, f"{title}: {workload.title}", metric)
        files = (f"{name}-points",)
        widths = sensitivity.width(points)
        yield Section(title, SENSITIVITY, widths, {name: draw}, files, workload.title, name)
        yield Section(title, SENSITIVITY, points, name=files[0], shown=False)


def _times(workload: Workload, lines: pd.DataFrame, target: Target, styles: Styles) -> Iterator[Section]:
    """The target's metric in steps as a figure; all others, and the numbers, as files."""
    held_out = [
        metric.name
        for metric in curves.measured(lines)
        if metric.better != "none" and not metric.name.startswith(("train_", "test_"))
    ]
    draws = {
        f"{workload.stem}-{safe(metric)}-by-{axis}": partial(
            figures.time_to_accuracy, lines, metric, axis, styles, target
        )
        for metric in dict.fromkeys([target.metric, *held_out])
        for axis in figures.AXES
        if lines[axis].notna().any()  # batched trials are not timed
    }
    (_, *others), numbers = draws, f"{workload.stem}-curves"
    yield Section("Time to accuracy", TIMES, NO_TABLE, draws, (numbers, *others), workload.title)
    yield Section("", "", lines, name=numbers, shown=False)


def _diagnostics(
    workload: Workload, lines: pd.DataFrame, target: Target, styles: Styles
) -> Iterator[Section]:
    """Scalars of which no way is better, in steps."""
    draws = {
        f"{workload.stem}-{safe(metric.name)}-by-step": partial(
            figures.time_to_accuracy, lines, metric.name, "step", styles, target
        )
        for metric in curves.measured(lines)
        if metric.better == "none"
    }
    if draws:
        files = (f"{workload.stem}-curves",)
        yield Section("Diagnostics", DIAGNOSTICS, NO_TABLE, draws, files, workload.title)


def _overfitting(frame: pd.DataFrame, lines: pd.DataFrame, styles: Styles) -> Iterator[Section]:
    """The audit; protocols beside each other, since that is what the paper compares."""
    lines = lines[lines["task"].isin(lines.dropna(subset=["train_kl", "validation_kl"])["task"])]
    if lines.empty:
        return
    ranks = overfitting.rank_correlation(frame)
    title = "Does fitting better generalize better?"
    yield Section(title, RANKS, ranks, name="rank-correlation")
    table = overfitting.audit(frame)
    for (task, steps), own in lines.groupby(["task", "total_steps"]):
        of = table[(table["task"] == task) & (table["total_steps"] == steps)].sort_values("gap")
        target = curves.target(frame[(frame["task"] == task) & (frame["total_steps"] == steps)])
        draw = partial(figures.overfitting, own, styles, target)
        name = f"{safe(task)}-{steps}-overfitting"
        title = f"Overfitting audit: {task}, {steps:,} steps"
        yield Section(title, AUDIT, of, {name: draw}, (f"{name}-curves",), name=name)
        names = ["protocol", "optimizer", "label", "step", "n", "train_kl", "validation_kl"]
        gaps = own[names].assign(gap=own["validation_kl"] / own["train_kl"])
        yield Section("", "", gaps, name=f"{name}-curves", shown=False)


def _patience(finals: pd.DataFrame, matched: pd.DataFrame, styles: Styles) -> Iterator[Section]:
    if finals.empty:
        return
    for (task, protocol), own in finals.groupby(["task", "protocol"]):
        if own["total_steps"].nunique() < 2 or own["decides"].nunique() > 1:
            continue
        metric = frames.metric(finals, own["decides"].iloc[0])
        several = finals["protocol"].nunique() > 1
        stem = f"{safe(task)}-{safe(protocol)}" if several else safe(task)
        title = f"{task}, {protocol}" if several else f"{task}"
        mine = matched[(matched["task"] == task) & (matched["protocol"] == protocol)]
        named = f"Matched quality: {title}"
        draw = partial(figures.patience, own, mine, styles, metric.name, named)
        name = f"{stem}-matched-quality"
        yield Section(named, MATCHED, mine, {name: draw}, name=name)
        title = f"At the ends of schedules: {metric.label}, {title}"
        yield Section(title, SUMMARY, own, name=f"{stem}-finals")


def _profile(ends: pd.DataFrame, styles: Styles) -> Iterator[Section]:
    trials = profiles.trials_of(ends)
    ran = trials.groupby("workload")["optimizer"].nunique()
    trials = trials[trials["workload"].map(ran) == trials["optimizer"].nunique()]
    times = profiles.medians(trials)
    if len(times) < 2:
        return
    scores = profiles.score_intervals(trials).sort_values("score", ascending=False).reset_index()
    count = f"{times.shape[1]} workload{'s' if times.shape[1] > 1 else ''} that all optimizers ran"
    if times.shape[1] < 2:  # its profile would be one step for each
        yield Section(f"Score on the {count}", PROFILE, scores, name="profile")
        return
    profile = profiles.profile(times, TAUS)
    draw = partial(figures.profile, profile, styles, note=count)
    title = f"Performance profile over {count}"
    yield Section(title, PROFILE, scores, {"profile": draw}, name="profile")
    yield Section("", "", profile.reset_index(), name="profile-curves", shown=False)
