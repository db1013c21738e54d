"""Why `digits` is what it is: its choices, one changed at a time.

    python benchmarks/results/digits_design.py --out runs/design

For each variant: noise over slope of Adam and Shampoo, and the seconds that it takes to detect 1.05
with them (as `benchmarks/resolution.py` measures both, 4 x 4 students); the metric at the end of the
short horizon; and how much a fixed teacher overfits with Adam at the medium one: held-out KL at the
end over the lowest along the way. A good task is sharp and cheap, separates the optimizers, and
overfits with a fixed teacher. Variants are measured at the hyperparameters that are the defaults.
Students that are finished are not run again.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.files import write_csv
from benchmarks import resolution
from benchmarks.runner import run_all
from benchmarks.trials import make_trial
from optimizers import registry
from testbed import compilation_cache, devices, records
from testbed.cli import Parser, serve
from testbed.data.views import AffineCrop
from testbed.models.mlp import MLP
from testbed.problem.problem import open_problem
from testbed.problem.task import Task
from testbed.tasks import TASKS
from testbed.training.batch import iterate_batch

TABLE = Path(__file__).with_suffix(".csv")
OPTS = ("adam", "shampoo")
STUDENTS = 4  # first weights, with as many lessons
DIGITS = TASKS["digits"]
WIDE = AffineCrop(rotation=20.0, zoom=(0.7, 1.2), stretch=1.3, shift=0.12, fill=-1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "student 6 x 64": {"student": MLP(widths=(64,) * 6, classes=10)},
    "student 2 x 256": {"student": MLP(widths=(256,) * 2, classes=10)},
    "batch 128": {"batch_size": 128},
    "batch 512": {"batch_size": 512},
    "temperature 1": {"temperature": 1.0},
    "temperature 4": {"temperature": 4.0},
    "wide crops": {"augment": WIDE},
    "views not mixed": {"decides": "kl"},
}


def main() -> None:
    """Runs all variants, prints and writes the table."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/design"), metavar="DIR", help="records")
    p.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: beside this file")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = p.parse_args()
    devices.use_cores(None)
    compilation_cache.enable_cache()
    rows: list[dict[str, Any]] = []
    for name, changes in VARIANTS.items():
        task = dataclasses.replace(DIGITS, name=f"digits-{name.replace(' ', '-')}", **changes)
        resolved = [resolved_by(task, opt, args.out) for opt in OPTS]
        rise = fixed_teacher(task, args.out)
        rows += [{"variant": name, **row, "fixed_teacher_rise": rise} for row in resolved]
        write_csv(pd.DataFrame(rows), args.table)
        print(describe(name, resolved, rise), flush=True)


def describe(name: str, resolved: list[Mapping[str, Any]], rise: float) -> str:
    """A variant in a line."""
    columns = {"noise_over_slope": ".3f", "seconds_for_1.05": ".0f", "metric": ".4f"}
    cells = [" / ".join(format(row[key], form) for row in resolved) for key, form in columns.items()]
    return f"| {' | '.join([name, *cells, f'{rise:.2f}'])} |"


def resolved_by(task: Task, opt: str, out: Path) -> Mapping[str, Any]:
    """A row of `benchmarks/resolution.py` for an optimizer at the short horizon."""
    problem, steps = open_problem(task), task.horizons["short"]
    grids = {}
    for horizon in resolution.ladder(steps):
        make = functools.partial(make_trial, problem, registry.find(opt), horizon, hp={})
        grids[horizon] = resolution.grid(make, STUDENTS, STUDENTS)
        for of_lessons in grids[horizon]:
            for _ in iterate_batch(of_lessons, out, save_params=horizon == steps):
                pass
    return resolution.row(problem, grids, steps, out)


def fixed_teacher(task: Task, out: Path) -> float:
    """Held-out KL at the end of the medium horizon, over the lowest along the way."""
    problem, steps = open_problem(task, "fixed_teacher"), task.horizons["medium"]
    trial = make_trial(problem, registry.find("adam"), steps, 0, {})
    curve = [row["validation_kl"] for row in records.read(run_all([trial], out)[0]).measurements]
    return curve[-1] / min(curve)


if __name__ == "__main__":
    serve(main)
