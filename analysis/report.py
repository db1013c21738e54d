"""Makes a report of a folder of records: one HTML page, tables, figures; or compares two folders.

python analysis/report.py runs --out report
python analysis/report.py --compare before/ after/
"""

import argparse
import difflib
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pyarrow
import pyarrow.csv
from matplotlib.figure import Figure
from tqdm import tqdm

from analysis import figures, frames
from analysis.frames import Folder
from analysis.output import before_after, checks, headlines, html, markdown, sections, tables
from analysis.statistics import curves, matched_quality, speedups, summary, trials
from analysis.statistics.trials import GROUP

MOST_PROCESSES = 8
FIGURES_PER_PROCESS = 12  # each process has to import all this
IN_A_MEASUREMENT = ["run_id", "label", "optimizer", "task", "protocol", "total_steps", "seed"]


def main() -> None:
    """Reads the records and writes the report; exit status 2 where there is nothing to report."""
    args = parser().parse_args()
    if bool(args.compare) == bool(args.records):
        refuse("give one folder of records, or --compare BEFORE AFTER")
    if args.compare:
        sides = [before_after.read(folder) for folder in args.compare]
        for side, folder in zip(sides, args.compare, strict=True):
            require_records(side.records, folder)
        print(before_after.report(*sides))
        return
    records = frames.read(args.records)
    require_records(records, args.records)
    baseline = args.baseline or default_baseline(records)
    known = [*records.runs["label"].unique(), *names_of(records)]
    if baseline not in known:
        near = difflib.get_close_matches(baseline, known, n=1, cutoff=0.0)[0]
        refuse(f"--baseline {baseline}: not in these records; the nearest is {near!r}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "summary.md").touch()
    except OSError as error:
        refuse(f"--out {args.out}: cannot be written ({error.strerror})")
    print(write(records, args.out, baseline))
    print(f"Report: {args.out}/index.html; tables as .csv, figures as .png, .svg and .pdf beside it")


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse; ends with status 2."""
        refuse(f"error: {message}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("records", type=Path, nargs="?", help="folder of records, such as runs")
    p.add_argument("--out", type=Path, default=Path("report"), help="default: report")
    p.add_argument(
        "--baseline",
        metavar="NAME",
        help="label that speed-ups are over, or an optimizer: then its best label; default: adam, or "
        "without one the first by name",
    )
    p.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="instead: what changed between two folders of records, as Markdown",
    )
    return p


def refuse(message: str) -> NoReturn:
    """Ends with status 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)


def require_records(records: Folder, folder: Path) -> None:
    """Reports what could not be used; ends the command where that leaves no record."""
    for error in records.errors:
        print(f"skipped {error.path}, line {error.line}: {error.reason}", file=sys.stderr)
    if records.runs.empty:
        unusable = f", and {len(records.errors)} lines or files not usable" if records.errors else ""
        refuse(f"{folder}: no records there{unusable}; make some with run.py")


def names_of(records: Folder) -> list[str]:
    """Optimizers, and the names of those of which there are several versions."""
    return sorted({*records.runs["optimizer"], *records.runs["optimizer_name"]})


def default_baseline(records: Folder) -> str:
    """Adam, or the first by name."""
    names = names_of(records)
    return "adam" if "adam" in names else names[0]


def write(records: Folder, out: Path, baseline: str = "adam") -> str:
    """Writes the whole report of a folder's records; its summary as Markdown."""
    ends, lines = trials.trials(records.frame), curves.curves(records.frame)
    styles = styles_of(records.runs)
    warnings = checks.warnings(records, ends)
    ratios = speedups.speedups(ends, baseline)
    matched = matched_quality.matched_quality(ends, baseline)
    parts = list(sections.sections(records, ends, lines, ratios, matched, baseline, styles))
    write_data(records, ends, out)
    write_sections(parts, out)
    best = trials.best_per_optimizer(ends)
    ratios = ratios.merge(best[[*GROUP, "label"]].drop_duplicates())
    order = [*GROUP, "axis", "speedup"]
    ratios = ratios.sort_values(order, ascending=[True, True, True, False, False])
    sentences = [*headlines.headlines(best, ratios)]
    thinned, notes = tables.thin(lines)
    page = html.Page(
        title="FunMatch: " + ", ".join(sorted(records.runs["task"].unique())),
        headlines=sentences,
        warnings=warnings,
        curves=thinned,
        targets=targets(ends),
        styles=styles,
        sections=[replace(part, table=tables.readable(part.table)) for part in parts if part.shown],
        runs=tables.runs_table(records.runs, ends, out),
        provenance=tables.provenance(records.runs),
        notes=notes,
    )
    (out / "index.html").write_text(html.render(page, out), encoding="utf-8")
    text = to_markdown(sentences, warnings, best, ratios, matched, baseline)
    (out / "summary.md").write_text(text + "\n", encoding="utf-8")
    return text


def styles_of(runs: pd.DataFrame) -> figures.Styles:
    """A style for each optimizer; the name of several versions has that of the first."""
    names = dict(sorted(zip(runs["optimizer"], runs["optimizer_name"], strict=True)))
    styles = figures.styles(names, names)
    for version, name in names.items():
        styles.setdefault(name, styles[version])
    return styles


def write_data(records: Folder, ends: pd.DataFrame, out: Path) -> None:
    """The tidy frames: measurements (CSV, Parquet), and trials."""
    measured = [*frames.CLOCKS, *frames.metrics_of(records.frame)]
    write_csv(records.frame[[*IN_A_MEASUREMENT, *measured]], out / "measurements.csv")
    records.frame.to_parquet(out / "measurements.parquet", index=False)
    own = ["run_id", *(name for name in records.runs if name not in ends)]
    write_csv(ends.merge(records.runs[own], on="run_id"), out / "trials.csv")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """As pandas would, but faster; missing numbers are empty."""
    pyarrow.csv.write_csv(pyarrow.Table.from_pandas(table, preserve_index=False), path)


def write_sections(parts: Sequence[html.Section], out: Path) -> None:
    """Saves the sections' tables, and their figures in several processes where those are many."""
    for part in parts:
        if len(part.table):
            write_csv(part.table, out / f"{part.name}.csv")
    jobs = [(figure, out, name) for part in parts for name, figure in part.figures.items()]
    workers = min(os.cpu_count() or 1, MOST_PROCESSES, math.ceil(len(jobs) / FIGURES_PER_PROCESS))
    progress = partial(tqdm, total=len(jobs), desc="figures", disable=None)  # silent in a pipe
    if workers < 2:
        list(progress(map(_draw, jobs)))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(progress(pool.map(_draw, jobs)))


def _draw(job: tuple[Callable[[], Figure], Path, str]) -> None:
    figure, out, name = job
    figures.save(figure(), out, name)


def targets(ends: pd.DataFrame) -> dict[html.Group, curves.Target]:
    """The target of each group."""
    return {
        html.Group(str(task), str(protocol), int(str(steps))): curves.target(group)
        for (task, protocol, steps), group in ends.groupby(GROUP)
    }


def to_markdown(
    sentences: Sequence[str],
    warnings: Sequence[str],
    best: pd.DataFrame,
    ratios: pd.DataFrame,
    matched: pd.DataFrame,
    baseline: str,
) -> str:
    """The summary as text: sentences, warnings, tables of each optimizer's best configuration."""
    lines = [*(f"- {markdown.escape(sentence)}" for sentence in sentences), ""]
    lines += [f"- Warning: {markdown.escape(warning)}" for warning in warnings]
    shown = {
        "Held-out results: medians over n seeds [95 % interval]": summary.summary(best),
        f"Speed-up over {baseline} to the target": tables.readable(ratios),
        f"Speed-up over {baseline} at matched final test KL, across horizons": tables.readable(matched),
    }
    for title, table in shown.items():
        if len(table):
            lines += ["", title, "", markdown.table(table)]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
