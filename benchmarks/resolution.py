"""Measures how small a difference between optimizers a task can show, and what that costs.

    python benchmarks/resolution.py --task digits --opt adam --opt shampoo

For each optimizer, students of several first weights times several seeds of lessons, at half, once and
twice the horizon. What the deciding metric's logarithm scatters by between students, over the exponent
with which the metric falls in log steps, is the scatter of log steps at a given quality: noise over
slope. From it follow the smallest ratio of steps that two crowds detect (80 % power at 5 %, two sides of
their own), and the seconds that it takes this machine to detect 1.05.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.resolution")

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax import random
from numpy.typing import NDArray

from analysis.output.files import replacing, write_csv
from analysis.statistics import crowds
from analysis.statistics.ratio import smallest_detectable
from benchmarks import engines
from benchmarks.comparison import log_ends
from benchmarks.jobs import make_jobs
from benchmarks.trials import add_task_options, choose_problem, hyperparameters, make_trial
from optimizers import registry
from testbed import devices, provenance, records
from testbed.cli import Parser, add_debug_option, count, require_writable
from testbed.data.arrays import Generated, Part
from testbed.errors import RequestError
from testbed.problem.evaluation import EvalData, evaluate
from testbed.problem.problem import Problem, open_problem
from testbed.training.trial import InitCheckpoint, Trial

SETS = 6  # of held-out views, on which students are measured to know what one set adds
BATCH = 64
CROWDS = (5, 16, 64)  # students a side
SMALL = 1.05  # the ratio whose price is asked for
PER_STUDENT = ("train_s", "eval_s", "checkpoint_s", "record_s")  # of a ledger; the rest is paid once
KEYS = ["task", "optimizer", "total_steps"]  # of a row of the table

Grid = Sequence[Sequence[Trial]]  # [lessons][first weights]
Array = NDArray[np.float64]


def main() -> None:
    """Runs the students, prints the table, and writes it."""
    args = parser().parse_args()
    require_writable("--out", args.out)
    if args.table:
        require_writable("--table", args.table.parent)
    if args.hosts is not None:
        raise RequestError(f"--hosts {args.hosts}: a batch is on one host; leave it out")
    devices.use_cores(args.devices)
    problem, steps, published = choose_problem(args)
    refuse(problem, steps, args)
    specs = registry.find_all(list(dict.fromkeys(args.opt)))
    grids = {
        spec.name: {
            horizon: grid(
                functools.partial(make_trial, problem, spec, horizon, hp=values),
                args.lessons,
                args.students,
            )
            for horizon in ladder(steps)
        }
        for spec in specs
        for values in [hyperparameters(spec, specs, args.hp, published.get(spec.name, {}))]
    }
    run(grids, steps, args)
    table = pd.DataFrame([row(problem, of, steps, args.out) for of in grids.values()])
    show(table)
    if args.table:
        write(table, args.table)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", required=True, metavar="NAME", help="as in run.py")
    p.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of all optimizers, or of one: OPT.NAME=VALUE; default: their defaults",
    )
    p.add_argument(
        "--students", type=count, default=8, metavar="N", help="first weights; default: %(default)s"
    )
    p.add_argument(
        "--lessons",
        type=count,
        default=8,
        metavar="N",
        help="seeds of lessons, each with all first weights, at half, once and twice the horizon; "
        "default: %(default)s",
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs/resolution"), metavar="DIR", help="default: %(default)s"
    )
    p.add_argument(
        "--table", type=Path, metavar="FILE", help="a CSV file whose rows are replaced or added"
    )
    add_debug_option(p)
    add_task_options(p)
    return p


def refuse(problem: Problem, steps: int, args: argparse.Namespace) -> None:
    """Finds errors before anything runs.

    Raises:
      RequestError: too few students or steps for an estimate, or a task with held-out data on the host.
    """
    if args.students < 2 or args.lessons < 2 or args.students * args.lessons < 16:
        raise RequestError(
            f"--students {args.students} --lessons {args.lessons}: a spread needs 16 students in "
            "all, and 2 of each; 4 of each will do"
        )
    if steps < 2:
        raise RequestError(f"--steps {steps}: half of it must be a horizon, too")
    if problem.task.streamed:
        raise RequestError(
            f"--task {problem.task.name}: its held-out data come from the host; choose a task "
            "whose data fit the device, such as digits"
        )


def ladder(steps: int) -> tuple[int, int, int]:
    """Half, once and twice a horizon."""
    return steps // 2, steps, 2 * steps


def grid(make: Any, lessons: int, students: int) -> list[list[Trial]]:
    """A trial for each pair of a seed of lessons and first weights, from seed, lesson_seed -> trial."""
    return [
        [make(seed=seed, lesson_seed=lesson_seed) for seed in range(students)]
        for lesson_seed in range(lessons)
    ]


def run(grids: Mapping[str, Mapping[int, Grid]], steps: int, args: argparse.Namespace) -> None:
    """Runs all students that are not finished: a batch for each optimizer, horizon and seed of lessons.

    Parameters are kept of those at the horizon itself.
    """
    engine, jobs = engines.choose("local"), []
    options = argparse.Namespace(**vars(args), batch=BATCH, no_batch=False)
    for horizon, of in itertools.product(ladder(steps), grids.values()):
        made = make_jobs(options, _flat(of[horizon]), args.out, engine.at_once)
        jobs += [dataclasses.replace(job, save_params=horizon == steps) for job in made]
    engine.run(jobs)


# What was measured


def row(problem: Problem, of: Mapping[int, Grid], steps: int, out: Path) -> dict[str, Any]:
    """A row of the table, from an optimizer's students at all horizons."""
    metric = f"test_{problem.task.decides}"
    ends = {
        horizon: np.array([log_ends(of_lessons, out, metric) for of_lessons in trials])
        for horizon, trials in of.items()
    }
    curve = crowds.Curve(np.log(sorted(ends)), np.array([ends[h].mean() for h in sorted(ends)]))
    exponent = curve.exponent_at(math.log(steps))
    again = measured_again(problem, of[steps], out)
    evaluation = crowds.evaluation_sd(again) if len(again) > 1 else math.nan
    parts = crowds.components(ends[steps], evaluation)
    sd = math.hypot(*parts)
    noise = sd / exponent if exponent > 0 else math.nan
    every = [trial for trials in of.values() for trial in _flat(trials)]
    seconds, _ = costs(_flat(of[steps]), out)
    needed = students_needed(noise)
    return {
        "task": problem.task.name,
        "optimizer": every[0].optimizer.name,
        "total_steps": steps,
        "decides": metric,
        "students": ends[steps].size,
        "diverged": sum(diverged(trial, out) for trial in every),
        "metric": math.exp(ends[steps].mean()),
        **{f"sd_{name}": value for name, value in parts._asdict().items()},
        "sd": sd,
        "exponent": exponent,
        "noise_over_slope": noise,
        **{f"smallest_{n}": smallest_ratio(noise, n) for n in CROWDS},
        "students_for_1.05": needed,
        "seconds_per_student": seconds,
        "seconds_for_1.05": 2 * needed * seconds,
        "evaluation_share": costs(every, out)[1],
        "machine": provenance.device()["processor"],
    }


def diverged(trial: Trial, out: Path) -> bool:
    """Whether a finished trial has."""
    return (records.last_row(trial.record_path(out)) or {}).get("status") == "diverged"


def measured_again(problem: Problem, trials: Grid, out: Path) -> Array:
    """The logarithm of the deciding metric on other sets of held-out views, [students, SETS].

    Of students that did not diverge. The held-out examples stay the same, unless they are generated.
    """
    task, shapes = problem.task, jax.eval_shape(problem.init, random.key(0))
    finished = [trial for trial in _flat(trials) if not diverged(trial, out)]
    paths = [trial.record_path(out).with_suffix(".npz") for trial in finished]
    students = [InitCheckpoint.read(path).params(shapes) for path in paths]

    @jax.jit
    def score(params: Any, data: EvalData) -> jax.Array:
        return evaluate(task, problem.logits, params, data)[f"test_{task.decides}"]

    sets = [other_views(problem, number) for number in range(1, SETS + 1)]
    return np.log([[float(score(params, data)) for data in sets] for params in students])


def other_views(problem: Problem, number: int) -> EvalData:
    """What students are measured on, but with views of its own, or with other draws of a generator.

    As for the problem's own views, but the keys are others and the test examples in another order, so
    that each of them meets other noise and is mixed with others.
    """
    task = problem.task

    def other(function: Any) -> Any:
        return function and (lambda key, *more: function(random.fold_in(key, number), *more))

    source: Any = task.source
    if isinstance(source, Generated):
        draw = source.draw
        source = source._replace(
            draw=lambda arrays, key, n: draw(arrays, random.fold_in(key, number), n)
        )
    else:
        data = task.arrays()
        order = np.random.default_rng(number).permutation(len(data.test.inputs))
        shuffled = data._replace(
            test=Part(*(x if x is None else x[order] for x in data.test)), sha256=""
        )
        source = lambda: shuffled  # noqa: E731
    varied = dataclasses.replace(task, source=source, augment=other(task.augment), mix=other(task.mix))
    found = open_problem(varied, problem.protocol).eval_data
    assert found is not None
    return found


def smallest_ratio(noise: float, students: int) -> float:
    """The smallest ratio that two crowds of so many students detect: 80 % power at 5 %."""
    return smallest_detectable(noise * math.sqrt(2 / students), 2 * (students - 1))


def students_needed(noise: float, ratio: float = SMALL) -> float:
    """The fewest students a side that detect a ratio; nan: no number is known to."""
    if math.isnan(noise):
        return math.nan
    bound = 1.96 + 0.84  # of a spread that is known; fewer never do
    n = max(2, int(2 * (bound * noise / math.log(ratio)) ** 2))
    while smallest_ratio(noise, n) > ratio:
        n += 1
    return n


def costs(trials: Sequence[Trial], out: Path) -> tuple[float, float]:
    """Seconds per student, and the share of them that evaluation takes, from the batches' ledgers.

    Training, evaluation, checkpoints and records; not set-up and compilation, which are paid once. All
    students of a batch count alike.
    """
    batches = {}
    for trial in trials:
        record = records.read(trial.record_path(out))
        batch = record.header.get("batch", {"id": record.header["run_id"], "size": 1})
        batches[batch["id"]] = (batch["size"], record.end["ledger"] if record.end else {})
    students = sum(size for size, _ in batches.values())
    total = sum(ledger[name] for _, ledger in batches.values() for name in PER_STUDENT)
    return total / students, sum(ledger["eval_s"] for _, ledger in batches.values()) / total


def _flat(trials: Grid) -> list[Trial]:
    return [trial for of_lessons in trials for trial in of_lessons]


# What is shown and kept


def show(table: pd.DataFrame) -> None:
    """Prints a column for each optimizer, and what a reader should know."""
    shown = table.drop(columns=["task", "machine"]).set_index("optimizer")
    print(shown.map(lambda x: f"{x:.3g}" if isinstance(x, float) else str(x)).T.to_string())
    task, steps, decides = table.iloc[0][["task", "total_steps", "decides"]]
    print(
        f"{task}, {steps} steps; sd: of log {decides} between students, by cause; smallest_N: ratio of "
        "steps that N students a side detect (80 % power, 5 %); seconds: of training, evaluation and "
        "records in batches of the optimizer's own, without compilation"
    )
    for _, of in table.iterrows():
        if not of["exponent"] > 0:
            print(
                f"{of['optimizer']}: more steps make it no better at {steps}: nothing is to be compared"
            )
        if of["diverged"]:
            print(f"{of['optimizer']}: {of['diverged']} students diverged, and make most of the spread")


def write(table: pd.DataFrame, path: Path) -> None:
    """Replaces rows of the same task, optimizer and horizon in a CSV file, and adds the others."""
    before = pd.read_csv(path) if path.exists() else table.iloc[:0]
    new = table.set_index(KEYS).index
    kept = before[[key not in new for key in before[KEYS].itertuples(index=False, name=None)]]
    both = pd.concat([kept, table]) if len(kept) else table
    with replacing("--table", path.parent) as folder:
        write_csv(both.sort_values(KEYS), folder / path.name)
