"""Tunes optimizers alike, then compares them on fresh seeds.

    python benchmarks/sweep.py --opt sgd --opt adam --opt shampoo --trials 12 --seeds 5

Every optimizer gets the same number of points of its search space (a scrambled Halton sequence, the
same for all), run on a seed of their own; the best on the validation metric is run again on seeds that
it was not tuned on. Tuning records are in <out>/tuning, the others in <out>/final.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from benchmarks.commands import (
    add_task_options,
    choose,
    choose_task,
    make_trial,
    positive,
    print_table,
    run_all,
    serve,
)
from optimizers import registry
from optimizers.spec import OptimizerError, Search, Spec
from testbed import records
from testbed.lessons import PROTOCOLS
from testbed.trial import Trial

TUNING_SEED = 2**31 - 1  # no `--seeds N` comes near it


def main() -> None:
    """Tunes, chooses, runs again."""
    args = parser().parse_args()
    task, steps, published = choose_task(args)
    choose("--protocol", args.protocol, PROTOCOLS)
    specs = [registry.find(opt) for opt in args.opt]
    tuning = {
        spec.name: [
            make_trial(
                task, args.protocol, spec, steps, TUNING_SEED, {**published.get(spec.name, {}), **point}
            )
            for point in points(spec, args.trials)
        ]
        for spec in specs
    }
    run_all([trial for of_spec in tuning.values() for trial in of_spec], args.out / "tuning")
    final = []
    for spec in specs:
        best = min(tuning[spec.name], key=lambda trial: final_score(trial, args.out / "tuning"))
        chosen = best.optimizer.hyperparameters
        tuned = {name: chosen[name] for name in spec.space}
        print(
            f"{spec.name}: best of {args.trials}: {', '.join(f'{k} {v:.3g}' for k, v in tuned.items())}"
        )
        final += [
            make_trial(task, args.protocol, spec, steps, seed, chosen) for seed in range(args.seeds)
        ]
    print_table(run_all(final, args.out / "final"))
    print(f"Figures: python analysis/report.py {args.out / 'final'} --out report")


def points(spec: Spec, trials: int) -> list[Mapping[str, Any]]:
    """Points of the search space, rounded to three digits: the first `trials` of the sequence.

    Raises:
      OptimizerError: the optimizer has no search space.
    """
    if not spec.space:
        raise OptimizerError(f"--opt {spec.name}: it has no search space; give it one in SPEC.space")
    cube = qmc.Halton(len(spec.space), scramble=True, rng=0).random(trials)
    return [
        {name: _within(search, u) for (name, search), u in zip(spec.space.items(), row, strict=True)}
        for row in cube.tolist()
    ]


def _within(search: Search, u: float) -> float:
    low, high = (
        (math.log(search.low), math.log(search.high)) if search.log else (search.low, search.high)
    )
    value = low + u * (high - low)
    return float(f"{math.exp(value) if search.log else value:.3g}")


def final_score(trial: Trial, out: Path) -> float:
    """The validation metric of the target at the end of a trial, better when lower; inf: diverged."""
    record = records.read(trial.record_path(out))
    value = record.measurements[-1][trial.task.target.metric]
    if record.end is None or record.end["status"] != "finished" or value is None:
        return math.inf
    return value if trial.task.target.mode == "min" else -value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", required=True, metavar="NAME", help="as in run.py")
    p.add_argument("--trials", type=positive, default=16, metavar="N", help="per optimizer; default: 16")
    p.add_argument(
        "--seeds", type=positive, default=5, metavar="N", help="of the final runs; default: 5"
    )
    p.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_task_options(p)
    return p


if __name__ == "__main__":
    serve(main)
