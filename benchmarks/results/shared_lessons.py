"""How much of the spread between seeds is the lessons', and how much the first weights'.

    python benchmarks/results/shared_lessons.py

Students with first weights of their own, and with lessons of their own or lessons that all share, each
at its defaults. If lessons mattered, those that share them would lie closer together.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.trials import add_task_options, choose_problem, make_trial
from optimizers import registry
from testbed import compilation_cache, devices, records
from testbed.cli import Parser, positive, serve
from testbed.training.batch import iterate_batch, sharing_lessons

TABLE = Path(__file__).with_suffix(".csv")
FIRST, LESSONS = 100, 77  # seeds that nothing was tuned on


def main() -> None:
    """Runs the students, prints and writes the table."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", metavar="NAME", help="default: sgd, adam and shampoo")
    p.add_argument("--seeds", type=positive, default=16, metavar="N", help="default: %(default)s")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_task_options(p)
    args = p.parse_args()
    compilation_cache.enable_cache()
    devices.use_cores(args.devices)
    problem, steps, _ = choose_problem(args)
    trials = [
        make_trial(problem, registry.find(opt), steps, seed, {}, lesson_seed=lessons)
        for lessons in (None, LESSONS)
        for opt in args.opt or ("sgd", "adam", "shampoo")
        for seed in range(FIRST, FIRST + args.seeds)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for batch in sharing_lessons(trials, 64):
            for _ in iterate_batch(batch, Path(out)):
                pass
        for trial in trials:
            record = records.read(trial.record_path(Path(out)))
            reached = records.first_reaching(record.measurements, record.header["target"])
            rows.append(
                {
                    "optimizer": trial.optimizer.name,
                    "lessons": "own" if trial.lesson_seed is None else "shared",
                    "seed": trial.seed,
                    "test_kl": record.measurements[-1]["test_kl"],
                    "steps_to_target": reached["step"] if reached else np.nan,
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False)
    print_summary(table)


def print_summary(table: pd.DataFrame) -> None:
    """Prints the spreads, and their ratios with 95 % intervals."""
    logs = table.assign(log_kl=np.log(table["test_kl"]), log_steps=np.log(table["steps_to_target"]))
    spreads = logs.groupby(["optimizer", "lessons"], sort=False).agg(
        n=("seed", "size"),
        mean_log_kl=("log_kl", "mean"),
        sd_log_kl=("log_kl", "std"),
        reached=("steps_to_target", "count"),
        sd_log_steps=("log_steps", "std"),
    )
    print(spreads.round(3).to_string())
    sd = spreads["sd_log_kl"].unstack("lessons")
    free = int(spreads["n"].iloc[0]) - 1
    for name, part in [*((str(name), sd.loc[[name]]) for name in sd.index), ("all", sd)]:
        ratio = float(np.sqrt((part["shared"] ** 2).sum() / (part["own"] ** 2).sum()))
        # Of variances of normal logarithms: an F distribution.
        degrees = free * len(part)
        low, high = (ratio / stats.f.ppf(q, degrees, degrees) ** 0.5 for q in (0.975, 0.025))
        print(f"{name}: spread with shared lessons / with own: {ratio:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    serve(main)
