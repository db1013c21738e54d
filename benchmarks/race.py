"""Races optimizers: their trials take turns on one device, so that its load affects all equally.

    python benchmarks/race.py --opt adam --opt shampoo --seeds 5

The first is the baseline. For each seed, the optimizers' trials take turns of a twentieth of a second,
in rotating order; then seconds and steps to the target are compared by ratios paired by seed, with
their 95 % intervals. The same optimizer given twice races itself, and should come out at 1.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.race")

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from analysis import figures
from analysis.output.files import replacing, safe, write_csv
from analysis.statistics import curves
from analysis.statistics import race as statistics
from benchmarks.runner import interrupts
from benchmarks.trials import (
    add_task_options,
    choose_problem,
    hyperparameters,
    make_trial,
    require_effects,
)
from optimizers import registry
from optimizers.spec import Spec
from testbed import compilation_cache, records
from testbed.cli import (
    Interrupted,
    Parser,
    add_debug_option,
    command_line,
    count,
    require_writable,
)
from testbed.errors import RequestError
from testbed.problem.problem import Problem
from testbed.training.alone import iterate
from testbed.training.loop import Progress
from testbed.training.trial import Trial

# Seconds of a turn. When the machine becomes slower or faster, one optimizer alone feels it for the rest
# of its turn: with turns from one measurement to the next, that was most of the noise that remained.
TURN = 0.05

Lanes = Mapping[str, tuple[Spec, Mapping[str, Any]]]  # name -> optimizer, its hyperparameters
Heat = Mapping[str, Trial]  # lane -> its trial: all of one seed


def main() -> None:
    """Parses the command line, runs the race, prints how it ended."""
    args = parser().parse_args()
    if len(args.opt) < 2:
        raise RequestError("--opt: a race needs two optimizers or more; give the baseline first")
    if args.hosts is not None:
        raise RequestError(f"--hosts {args.hosts}: a race is on one machine; leave it out")
    require_writable("--out", args.out)
    require_writable("--report", args.report)
    problem, steps, published = choose_problem(args)
    lanes = make_lanes(args.opt, args.hp, published)
    heats = make_heats(problem, lanes, steps, range(args.seeds))
    require_effects(heats[0].values(), args.hp)
    run_race(heats, args.out, fresh=args.fresh)
    report(heats, args.out, args.report)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--opt",
        action="append",
        default=[],
        metavar="NAME",
        help="optimizer, as in run.py; the first is the baseline. One that is given again is called "
        "NAME-2, and so on",
    )
    p.add_argument(
        "--seeds", type=count, default=5, metavar="N", help="seeds 0 to N - 1; default: %(default)s"
    )
    p.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of all optimizers, or of one: OPT.NAME=VALUE",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/race"),
        metavar="DIR",
        help="records; default: %(default)s",
    )
    p.add_argument(
        "--report", type=Path, default=Path("report"), metavar="DIR", help="figures and table of pairs"
    )
    p.add_argument("--fresh", action="store_true", help="rerun trials, including finished ones")
    add_debug_option(p)
    add_task_options(p)
    return p


def make_lanes(
    opts: Sequence[str], hp: Sequence[str], published: Mapping[str, Mapping[str, float]]
) -> Lanes:
    """A lane for each `--opt`, in their order.

    Raises:
      RequestError: an unknown optimizer or hyperparameter, or two optimizers of one name.
    """
    specs: dict[str, Spec] = {}
    for spec in registry.find_all(opts):
        lane, number = spec.name, 1
        while lane.casefold() in map(str.casefold, specs):
            number += 1
            lane = f"{spec.name}-{number}"
        specs[lane] = spec
    # A hyperparameter of one lane alone names the lane.
    named = {lane: dataclasses.replace(spec, name=lane) for lane, spec in specs.items()}
    return {
        lane: (
            spec,
            hyperparameters(named[lane], list(named.values()), hp, published.get(spec.name, {})),
        )
        for lane, spec in specs.items()
    }


def make_heats(
    problem: Problem, lanes: Lanes, steps: int, seeds: Iterable[int]
) -> list[dict[str, Trial]]:
    """For each seed, a trial in each lane."""
    return [
        {lane: make_trial(problem, spec, steps, seed, hp) for lane, (spec, hp) in lanes.items()}
        for seed in seeds
    ]


def race_folder(heat: Heat, out: Path) -> Path:
    """Where the records of a race are, each in the folder of its lane.

    A folder for each set of rivals: wall-clock times are comparable only within a race, so that a
    finished trial counts in no other. Seeds may be added.
    """
    rivals = {lane: trial.identity() | {"seed": None} for lane, trial in heat.items()}
    return out / records.run_id(rivals)


def record_paths(heats: Sequence[Heat], out: Path) -> list[Path]:
    """The records of all trials of a race."""
    folder = race_folder(heats[0], out)
    return [trial.record_path(folder / lane) for heat in heats for lane, trial in heat.items()]


def run_race(heats: Sequence[Heat], out: Path, *, fresh: bool = False) -> None:
    """Runs the trials of a race that are not finished, with a live table on a terminal.

    Raises:
      Interrupted: on the first of SIGINT, SIGTERM and SIGHUP, once all running trials have saved a
        checkpoint.
      RequestError: an optimizer fails on the student's parameters, or `out` cannot be written. No
        record is begun.
    """
    compilation_cache.enable_cache()
    for trial in heats[0].values():
        trial.compile()  # none starts before all can
    folder = race_folder(heats[0], out)
    with interrupts() as interrupted:
        for number, heat in enumerate(heats):
            run_heat(heat, folder, number, interrupted, fresh=fresh)


def run_heat(
    heat: Heat, folder: Path, first: int, interrupted: Callable[[], bool], *, fresh: bool
) -> None:
    """Runs the trials of one seed, interleaved; if it ends early, all of them save a checkpoint."""
    command = command_line()
    lanes = list(heat)
    with ExitStack() as stack:
        bars = [
            stack.enter_context(
                tqdm(
                    total=trial.total_steps,
                    desc=f"{lane} seed {trial.seed}",
                    bar_format="{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
                    position=position,
                    leave=False,
                    disable=None,  # shown on a terminal, silent in a pipe
                )
            )
            for position, (lane, trial) in enumerate(heat.items())
        ]
        trials = [
            stack.enter_context(
                closing(iterate(trial, folder / lane, command=command, fresh=fresh, longest=TURN))
            )
            for lane, trial in heat.items()
        ]
        for number, at in interleave(trials, first):
            trial = heat[lanes[number]]
            if not bars[number].disable:
                show(bars[number], trial, trial.record_path(folder / lanes[number]), at)
            if interrupted():
                raise Interrupted(
                    f"seed {trial.seed} at step {at.step} of {at.total_steps}; the same command "
                    "resumes it"
                )


def interleave(trials: Sequence[Iterator[Progress]], first: int = 0) -> Iterator[tuple[int, Progress]]:
    """Advances trials in turn, a segment each, until all have ended; their number and progress.

    The order is rotated by one place after each round, so that each goes first equally often. A trial
    that is ahead in steps waits for the others: however many steps make a segment of each, all do the
    same steps at the same time.

    Args:
      trials: from `testbed.training.alone.iterate`.
      first: the number, modulo theirs, of the one that goes first.
    """
    steps = dict.fromkeys(range(len(trials)), -1)  # of those that have not ended
    turn = first
    while steps:
        start = turn % len(steps)
        order = [*steps][start:] + [*steps][:start]
        behind = [number for number in order if steps[number] == min(steps.values())]
        for number in behind:
            at = next(trials[number], None)
            if at is None:
                del steps[number]
            else:
                steps[number] = at.step
                yield number, at
        turn += len(behind) == len(order)


def show(bar: Any, trial: Trial, path: Path, at: Progress) -> None:
    """One row of the live table."""
    reached = records.first_reaching(records.read(path).measurements, trial.task.target._asdict())
    kl = at.measurement.get("validation_kl")
    bar.n = at.step
    bar.set_postfix(
        train=f"{at.train_seconds:.1f}s",
        kl="-" if kl is None else f"{kl:.4f}",
        target=f"at {reached['step']}" if reached else "not yet",
    )


def measure(heats: Sequence[Heat], out: Path) -> pd.DataFrame:
    """The measurements of a race's records; see `analysis.statistics.race.measurements`."""
    run_ids = {path.stem for path in record_paths(heats, out)}
    return statistics.measurements(race_folder(heats[0], out), list(heats[0]), run_ids)


def report(heats: Sequence[Heat], out: Path, folder: Path) -> None:
    """Prints how the race ended; writes its pairs as CSV, and its figures."""
    frame = measure(heats, out)
    baseline, *rivals = heats[0]
    trial = heats[0][baseline]
    metric, value, mode = trial.task.target
    target = f"{metric} {'<=' if mode == 'min' else '>='} {value:g}"
    table = statistics.pairs(frame, baseline)
    name = f"race-{safe(trial.task.name)}-{trial.total_steps}"
    drawn, styles = curves.curves(frame), figures.styles(frame["optimizer"])
    with replacing("--report", folder) as new:
        write_csv(table.rename(columns={"lane": "optimizer"}), new / f"{name}.csv")
        for axis, ending in (("train_seconds", ""), ("step", "-by-step")):
            figure = figures.time_to_accuracy(drawn, metric, axis, styles, curves.target(frame))
            figures.save(figure, new, name + ending)
    print(statistics.standings(table).to_string(index=False))
    print(f"medians over seeds; at the end: {metric}; target: {target}")
    for lane in rivals:
        print(statistics.sentence(table, lane, baseline, target))
    if resumed := statistics.resumed_seeds(record_paths(heats, out)):
        print(
            f"Seeds {', '.join(map(str, resumed))} were interrupted and resumed: not all of their "
            "seconds were shared; --fresh runs them again"
        )
    if paused := statistics.paused_seeds(record_paths(heats, out)):
        print(
            f"Seeds {', '.join(map(str, paused))} were stopped for a while as they trained: their "
            "seconds are not compared; --fresh runs them again"
        )
    print(f"Records: {race_folder(heats[0], out)}; pairs and figures: {folder}/{name}.csv, .png, .svg")
