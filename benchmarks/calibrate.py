"""Calibrates comparisons with known weights: an optimizer against itself, slowed by a known factor.

    python benchmarks/calibrate.py --out runs/calibration --report report

An optimizer that is slowed by 1.05 needs 1.05 times its own steps at any quality
(`optimizers/wrappers/slowed.py`). Each comparison is one as `compare.py` makes it, small, with
lessons and students of its own; a factor of 1 is an A/A test. The table says how right the answers are:
their bias, how often the 95 % intervals hold the truth, how often a difference is found. The
figure shows all.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.calibrate")

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from analysis import figures
from analysis.output.files import replacing, write_csv
from analysis.statistics import calibration
from benchmarks import comparison
from benchmarks.comparison import Arm, Design, Run
from benchmarks.jobs import absolute, make_jobs, run_job
from benchmarks.trials import add_task_options, choose_problem
from optimizers import registry
from optimizers.wrappers.slowed import active_steps
from testbed import devices
from testbed.cli import Parser, add_debug_option, count, positive, require_writable
from testbed.errors import RequestError
from testbed.training.trial import Trial

TASKS = ("zipf-mlp", "digits", "digits-ensemble")
FACTORS = (1.0, 1.05, 1.1, 1.25, 1.5)
BATCH = 64
SHORTER = 10  # than a task's first horizon, by default: more comparisons for the time


class Cell(NamedTuple):
    """What the comparisons of one task and factor have in common."""

    task: argparse.Namespace  # options of `add_task_options`
    factor: float
    design: Design


def main() -> None:
    """Runs the comparisons; prints the table, writes tables and figure."""
    args = parser().parse_args()
    require_writable("--out", args.out)
    require_writable("--report", args.report)
    devices.use_cores(None)
    cells, rows = list(make_cells(args)), []
    with tqdm(total=len(cells) * args.repetitions, unit="comparison", disable=None) as bar:

        def refresh() -> None:
            bar.refresh()

        for of_task in by_task(cells):
            climb(of_task, args, refresh)
            for cell in of_task:
                for seed in seeds(cell, cells, args):
                    rows.append(compare(cell, seed, args, refresh))
                    bar.update()
    report(pd.DataFrame(rows), args.report)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", default="adam", metavar="NAME", help="as in run.py; default: %(default)s")
    p.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help=f"as in run.py; may be given again; default: {', '.join(TASKS)}",
    )
    p.add_argument(
        "--factor",
        action="append",
        type=number,
        metavar="F",
        help=f"1: an A/A test; may be given again; default: {', '.join(f'{f:g}' for f in FACTORS)}",
    )
    p.add_argument(
        "--repetitions",
        type=count,
        default=14,
        metavar="N",
        help="comparisons of each task and factor; default: %(default)s",
    )
    p.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help=f"horizon of the baseline; default: a {SHORTER}th of each task's first",
    )
    p.add_argument(
        "--students", type=count, default=4, metavar="N", help="of a block; default: %(default)s"
    )
    p.add_argument("--blocks", type=count, default=12, metavar="N", help="at most; default: %(default)s")
    p.add_argument(
        "--precision",
        type=number,
        default=1.05,
        metavar="RATIO",
        help="the ratio that a comparison shall detect; default: %(default)s",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/calibration"),
        metavar="DIR",
        help="records; default: %(default)s",
    )
    p.add_argument(
        "--report", type=Path, default=Path("report"), metavar="DIR", help="figure and tables"
    )
    add_debug_option(p)
    return p


def number(text: str) -> float:
    """A finite number from 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1, such as 1.05")
    return value


def make_cells(args: argparse.Namespace) -> Iterator[Cell]:
    """A cell for each task and factor, in their order.

    Raises:
      RequestError: an unknown task or optimizer, or a precision of 1.
    """
    if args.blocks < comparison.PILOT:
        raise RequestError(f"--blocks {args.blocks}: the pilot has {comparison.PILOT}; give as many")
    if args.precision == 1:
        raise RequestError(
            "--precision 1: nothing is there to be detected; give a ratio above, such as 1.05"
        )
    base = registry.find(args.opt)
    options = Parser()
    add_task_options(options)
    for name in dict.fromkeys(args.task or TASKS):
        task = options.parse_args(["--task", name])
        problem, horizon, published = choose_problem(task)
        steps = args.steps or max(comparison.FEWEST_STEPS, horizon // SHORTER)
        values = published.get(base.name, {})
        for factor in dict.fromkeys(args.factor or FACTORS):
            word = f"slowed-{factor:g}+{args.opt}"
            arms = (Arm(args.opt, base, values), Arm(word, registry.find(word), values))
            yield Cell(task, factor, Design(problem, arms, base.name, steps, args.students))


def by_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each task."""
    return [list(of) for _, of in itertools.groupby(cells, lambda cell: cell.design.problem)]


def seeds(cell: Cell, cells: Sequence[Cell], args: argparse.Namespace) -> range:
    """The seeds of a cell's comparisons: no two comparisons have one in common."""
    return range(cells.index(cell), len(cells) * args.repetitions, len(cells))


def climb(cells: Sequence[Cell], args: argparse.Namespace, refresh: Callable[[], None]) -> None:
    """Runs the ladders of all comparisons of a task, horizon by horizon.

    Each comparison would run its own; so a program is compiled once, and not for each of them.
    """
    for rung in comparison.RUNGS:
        for cell in cells:
            designs = [dataclasses.replace(cell.design, seed=s) for s in seeds(cell, cells, args)]
            rungs = {arm.name: {rung} for arm in cell.design.arms}
            trials = [trial for of in designs for trial in comparison.ladder(of, rungs)]
            runner(cell, refresh)(trials, args.out)


def compare(
    cell: Cell, seed: int, args: argparse.Namespace, refresh: Callable[[], None]
) -> dict[str, Any]:
    """One comparison, as a row of the table: in two stages, by the rule of `compare.py`."""
    design = dataclasses.replace(cell.design, seed=seed)
    run = runner(cell, refresh)
    base, slowed = (arm.name for arm in design.arms)
    row = {
        "task": design.problem.task.name,
        "optimizer": base,
        "factor": cell.factor,
        "seed": seed,
        "total_steps": design.steps,
        "students": 0,
        **dict.fromkeys(("truth", "ratio", "low", "high"), math.nan),
    }
    try:
        options = {"precision": args.precision, "most": args.blocks}
        plan = comparison.make_plan(design, run, args.out, **options)
    except comparison.NoBetterError:  # by noise
        return row
    if slowed not in plan.matched:
        return row
    outcome = comparison.carry_out(design, plan, run, args.out)
    ratio = outcome.ratio(slowed, base)
    return row | {
        "students": ratio.n * plan.students,
        "truth": truth(np.exp(outcome.ran[slowed]).round().astype(int), cell.factor),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
    }


def truth(steps: NDArray[np.int_], factor: float) -> float:
    """The known ratio of blocks that ran to these horizons, [blocks]: active steps are whole."""
    active = np.array([active_steps(int(t), factor) for t in steps])
    return float(np.exp(np.mean(np.log(steps / active))))


def runner(cell: Cell, refresh: Callable[[], None]) -> Run:
    """What runs a cell's trials that are not finished, in batches, in this process."""
    opts = [absolute(arm.opt) for arm in cell.design.arms]
    options = argparse.Namespace(**vars(cell.task), opt=opts, batch=BATCH, no_batch=False)

    def run(trials: Sequence[Trial], out: Path) -> None:
        for job in make_jobs(options, trials, out, 1):
            run_job(job, refresh)

    return run


def report(comparisons: pd.DataFrame, folder: Path) -> None:
    """Prints the table of cells; writes it, the table of comparisons and the figure."""
    table = calibration.cells(comparisons)
    with replacing("--report", folder) as new:
        write_csv(comparisons, new / "calibration-comparisons.csv")
        write_csv(table, new / "calibration.csv")
        figures.save(figures.calibration(comparisons), new, "calibration")
    shown = table.assign(
        factor=table["factor"].map(lambda f: "all" if np.isnan(f) else f"{f:g}"),
        **{name: table[name].map("{:.3f}".format) for name in ("truth", "estimate")},
        **{name: table[name].map("{:.1%}".format) for name in SHARES},
    )
    print(shown.drop(columns=["covers_low", "covers_high"]).to_string(index=False))
    every = table.iloc[-1]
    print(
        f"{every['answered']} comparisons: 95 % intervals hold the truth in {every['covers']:.1%} "
        f"[{every['covers_low']:.1%}, {every['covers_high']:.1%}]; largest bias of a cell: "
        f"{table['bias'].iloc[:-1].abs().max():.1%}"
    )
    print(f"Tables and figure: {folder}/calibration.csv, .png, .svg, .pdf; calibration-comparisons.csv")


SHARES = ("bias", "bias_error", "half_width", "covers", "apart")
