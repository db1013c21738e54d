"""Makes a report of a folder of records: one HTML page, tables, figures; or compares two folders.

python analysis/report.py runs --out report
python analysis/report.py --compare before/ after/
"""

if __name__ == "__main__":
    from testbed.start import start

    start("analysis.report")

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis import figures, frames
from analysis.frames import Folder
from analysis.output import (
    before_after,
    checks,
    drawing,
    headlines,
    html,
    markdown,
    sections,
    tables,
)
from analysis.output.files import replacing, write_csv
from analysis.statistics import curves, matched_quality, speedups, summary, trials
from analysis.statistics.trials import GROUP
from testbed.cli import Parser, add_debug_option
from testbed.errors import RequestError, printable

IN_A_MEASUREMENT = ["run_id", "label", "optimizer", "task", "protocol", "total_steps", "seed"]


def main() -> None:
    """Reads the records and writes the report.

    Raises:
      RequestError: there is nothing to report, or the report cannot be written.
    """
    args = parser().parse_args()
    if (args.compare is None) == (args.records is None):
        raise RequestError("give one folder of records, or --compare BEFORE AFTER")
    if args.compare is not None:
        sides = [before_after.read(folder) for folder in args.compare]
        for side, folder in zip(sides, args.compare, strict=True):
            require_records(side.records, folder)
        print(before_after.report(*sides))
        return
    records = frames.read(args.records)
    require_records(records, args.records)
    baseline = default_baseline(records) if args.baseline is None else args.baseline
    known = [*records.runs["label"].unique(), *names_of(records)]
    if baseline not in known:
        near = difflib.get_close_matches(baseline, known, n=1, cutoff=0.0)[0]
        raise RequestError(f"--baseline {baseline}: not in these records; the nearest is {near!r}")
    print(write(records, args.out, baseline))
    print(f"Report: {args.out}/index.html; tables as .csv, figures as .png, .svg and .pdf beside it")


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
    add_debug_option(p)
    p.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="instead: what changed between two folders of records, as Markdown",
    )
    return p


def require_records(records: Folder, folder: Path) -> None:
    """Prints what could not be used.

    Raises:
      RequestError: no record is left.
    """
    for error in records.errors if len(records.runs) else ():
        line = f"skipped {error.path}, line {error.line}: {error.reason}"
        print(printable(line), file=sys.stderr)
    if records.runs.empty:
        first = records.errors[:1]
        unusable = "".join(
            f"; {len(records.errors)} faults, such as in {e.path}: {e.reason}" for e in first
        )
        raise RequestError(f"{folder}: no records there; make some with run.py{unusable}")


def names_of(records: Folder) -> list[str]:
    """Optimizers, and the names of those of which there are several versions."""
    return sorted({*records.runs["optimizer"], *records.runs["optimizer_name"]})


def default_baseline(records: Folder) -> str:
    """Adam, or the first by name."""
    names = names_of(records)
    return "adam" if "adam" in names else names[0]


def write(records: Folder, out: Path, baseline: str = "adam") -> str:
    """Writes the whole report of a folder's records; its summary as Markdown.

    Raises:
      RequestError: it cannot be written; an earlier report stays as it was.
    """
    with replacing("--out", out) as new:
        return _write(records, out, baseline, new)


def _write(records: Folder, out: Path, baseline: str, new: Path) -> str:
    """Writes it into the folder `new`, for the folder `out`."""
    ends, lines = trials.trials(records.frame), curves.curves(records.frame)
    styles = styles_of(records.runs)
    warnings = checks.warnings(records, ends)
    ratios = speedups.speedups(ends, baseline)
    matched = matched_quality.matched_quality(ends, baseline)
    parts = list(sections.sections(records, ends, lines, ratios, matched, baseline, styles))
    write_data(records, ends, new)
    write_sections(parts, new)
    best = trials.best_per_optimizer(ends)
    ratios = ratios.merge(best[[*GROUP, "label"]].drop_duplicates())
    order = [*GROUP, "axis", "speedup"]
    ratios = ratios.sort_values(order, ascending=[True, True, True, False, False])
    sentences = [*headlines.headlines(best, ratios, matched)]
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
    text = to_markdown(sentences, warnings, best, ratios, matched, baseline)
    for name, content in (("index.html", html.render(page, new)), ("summary.md", text + "\n")):
        (new / name).write_text(content, encoding="utf-8", errors="backslashreplace")
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


def write_sections(parts: Sequence[html.Section], out: Path) -> None:
    """Saves the sections' tables and figures."""
    for part in parts:
        if len(part.table):
            write_csv(part.table, out / f"{part.name}.csv")
    drawing.draw([(name, figure) for part in parts for name, figure in part.figures.items()], out)


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
        f"Speed-up over {baseline} at matched quality, at the ends of schedules": tables.readable(
            matched
        ),
        "Held-out results: medians over n seeds [95 % interval]": summary.summary(best),
        f"Speed-up over {baseline} to the target": tables.readable(ratios),
    }
    for title, table in shown.items():
        if len(table):
            lines += ["", title, "", markdown.table(table)]
    return "\n".join(lines)
