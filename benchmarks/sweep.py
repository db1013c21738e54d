"""Tunes optimizers with equal effort, then compares them on fresh seeds.

    python benchmarks/sweep.py --opt sgd --opt adam --opt shampoo --trials 16 --seeds 5

Every optimizer gets the same number of points of its search space (a scrambled Halton sequence, the
same for all), run on a seed of their own; the best on the validation metric, and the default, are run
again with first weights and lessons that they were not tuned on. Trials with the same lessons are
batched, and not timed (--no-batch: they run alone, and are). Records are in <out>/tuning and
<out>/final: a sweep that was interrupted is resumed, and sweeps may share a folder. AlgoPerf's
rulesets are --ruleset external and --ruleset self.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.sweep")

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis import frames
from analysis.statistics import summary
from analysis.statistics.trials import trials as ends_of
from benchmarks import engines, loggers
from benchmarks.jobs import make_jobs
from benchmarks.runner import print_table
from benchmarks.search import TUNING_SEED, final_score, points, ranked
from benchmarks.trials import add_task_options, make_trial
from optimizers import registry
from optimizers.spec import Spec
from testbed import records
from testbed.cli import (
    Parser,
    add_debug_option,
    count,
    invocation,
    require_writable,
)
from testbed.errors import RequestError
from testbed.problem.problem import Problem
from testbed.training.trial import Trial

FINAL_LESSONS = 2**31 - 2  # of the lessons that final students share; no `--seeds N` comes near it
KEPT, RUNGS = 3, 2  # halving: a third goes on; two shorter horizons before the whole one
LONGER = 3  # ruleset self: times the steps of a tuned trial, as in AlgoPerf's first edition (v0.5)


class Field(NamedTuple):
    """The optimizers that are compared, and the task."""

    problem: Problem
    steps: int
    specs: Sequence[Spec]
    published: Mapping[str, Mapping[str, float]]  # optimizer -> what replaces its defaults

    def trial(
        self,
        spec: Spec,
        seed: int,
        point: Mapping[str, Any],
        steps: int | None = None,
        lesson_seed: int | None = None,
    ) -> Trial:
        """A trial of the field; with other steps, or lessons of another seed, where they are given."""
        hp = {**self.published.get(spec.name, {}), **point}
        return make_trial(self.problem, spec, steps or self.steps, seed, hp, lesson_seed=lesson_seed)


Run = Callable[[Sequence[Trial], Path], None]  # runs unfinished trials, into a folder of records


def main() -> None:
    """Runs the sweep of a ruleset."""
    args = parser().parse_args()
    if args.hosts is not None and not (args.no_batch and args.engine == "local"):
        raise RequestError(
            "--hosts: a batch is on one host; spread batches over hosts with --engine ray or slurm, or "
            "share each trial among hosts with --no-batch"
        )
    require_writable("--out", args.out)
    engine, (problem, steps, published) = engines.open_where_it_runs(args)
    field = Field(problem, steps, registry.find_all(args.opt), published)
    refuse(field, args)
    args.trials = args.trials or (5 if args.ruleset == "external" else 16)
    args.seeds, args.studies = args.seeds or 5, args.studies or 5
    log = loggers.choose(args.log, args.out)

    def run(trials: Sequence[Trial], out: Path) -> None:
        engine.run(make_jobs(args, trials, out, engine.at_once))
        log.send([trial.record_path(out) for trial in trials])

    {"tune": tune, "external": external, "self": self_tuned}[args.ruleset](field, args, run)


def refuse(field: Field, args: argparse.Namespace) -> None:
    """Finds errors before anything runs.

    Raises:
      RequestError: an optimizer cannot be searched or is given twice, an option does not go with the
        ruleset, or a folder has records of another version of the task.
    """
    for number, spec in enumerate(field.specs):
        points(spec, 1)
        registry.require_values(spec, {}, "give it a default: a sweep runs the defaults, too")
        if spec.name in [other.name for other in field.specs[:number]]:
            raise RequestError(
                f"--opt {args.opt[number]}: {spec.name} is taken; give it a name of its own in SPEC"
            )
    tuned = args.ruleset == "tune"
    for option, given, goes in (
        ("--halving", args.halving, tuned),
        ("--own-lessons", args.own_lessons, tuned),
        ("--seeds", args.seeds, tuned),
        ("--studies", args.studies, not tuned),
        ("--trials", args.trials, args.ruleset != "self"),
    ):
        if given and not goes:
            raise RequestError(f"{option}: it does not go with --ruleset {args.ruleset}; leave it out")
    one = field.trial(field.specs[0], 0, {})
    for folder in ("tuning", "final") if tuned else (args.ruleset,):
        require_this_version(one, args.out / folder)


def tune(field: Field, args: argparse.Namespace, run: Run) -> None:
    """The best of the points and the default, on fresh seeds."""
    tuning, out = args.out / "tuning", args.out / "final"
    search = halving if args.halving else in_full
    lessons = None if args.own_lessons else FINAL_LESSONS
    final: dict[Path, Trial] = {}
    for spec, best in search(field, args.trials, run, tuning):
        found = {name: best.optimizer.hyperparameters[name] for name in spec.space}
        lost = math.isinf(final_score(best, tuning))
        how = "all diverged, such as" if lost else f"best of {args.trials}:"
        print(f"{spec.name}: {how} {_as_text(found)}")
        for seed in range(args.seeds):
            for point in (found, {}):
                trial = field.trial(spec, seed, point, lesson_seed=lessons)
                final.setdefault(trial.record_path(out), trial)
    run(list(final.values()), out)
    print_summary(list(final), out)
    if lessons:
        print("Seeds differ in first weights and share lessons; pass --own-lessons to vary them too")
    print(f"Figures: {invocation('report')} {out} --out report")


def in_full(field: Field, count: int, run: Run, out: Path) -> list[tuple[Spec, Trial]]:
    """Every point for all steps; the best of each optimizer."""
    trials = [
        [field.trial(spec, TUNING_SEED, point) for point in points(spec, count)] for spec in field.specs
    ]
    run([trial for of_spec in trials for trial in of_spec], out)
    return [(spec, ranked(t, out)[0]) for spec, t in zip(field.specs, trials, strict=True)]


def halving(field: Field, count: int, run: Run, out: Path) -> list[tuple[Spec, Trial]]:
    """Successive halving (Jamieson and Talwalkar 2016): the best third goes on to three times the steps.

    Each rung is a horizon of its own, and the optimizers' schedules end with it: a schedule that is cut
    short says little about the whole one. So the best third start again, with three times the steps.
    """
    left = [list(points(spec, count)) for spec in field.specs]
    taken = 0
    for rung in range(RUNGS, -1, -1):
        steps = max(1, field.steps // KEPT**rung)
        trials = [
            [field.trial(spec, TUNING_SEED, point, steps) for point in of_spec]
            for spec, of_spec in zip(field.specs, left, strict=True)
        ]
        run([trial for of_spec in trials for trial in of_spec], out)
        taken += sum(steps * len(of_spec) for of_spec in trials)
        best = [ranked(of_spec, out) for of_spec in trials]
        left = [
            [
                {name: trial.optimizer.hyperparameters[name] for name in spec.space}
                for trial in of_spec[: math.ceil(len(of_spec) / KEPT)]
            ]
            for spec, of_spec in zip(field.specs, best, strict=True)
        ]
    whole = count * field.steps * len(field.specs)
    print(f"halving: {taken:,} steps instead of {whole:,}, {1 - taken / whole:.0%} saved")
    return [(spec, of_spec[0]) for spec, of_spec in zip(field.specs, best, strict=True)]


def external(field: Field, args: argparse.Namespace, run: Run) -> None:
    """AlgoPerf's external tuning: in each study a few points; the best of each; the median of studies.

    The best of a study is the first at the target on validation data, as there. A study has a seed and
    points of its own, the same for all optimizers.
    """
    out, count = args.out / "external", args.trials
    studies = {
        spec.name: [
            [field.trial(spec, seed, point) for point in found[seed * count : (seed + 1) * count]]
            for seed in range(args.studies)
        ]
        for spec in field.specs
        for found in [points(spec, count * args.studies)]
    }
    run([trial for of_spec in studies.values() for study in of_spec for trial in study], out)
    best = {
        name: [min(study, key=lambda t: steps_to_target(t, out)) for study in of_spec]
        for name, of_spec in studies.items()
    }
    print_studies(best, out, f"best of {count} trials each")


def self_tuned(field: Field, args: argparse.Namespace, run: Run) -> None:
    """AlgoPerf's self-tuning: one configuration, no search, and three times the steps."""
    out = args.out / "self"
    trials = {
        spec.name: [field.trial(spec, seed, {}, LONGER * field.steps) for seed in range(args.studies)]
        for spec in field.specs
    }
    run([trial for of_spec in trials.values() for trial in of_spec], out)
    print_studies(trials, out, f"defaults, {LONGER * field.steps:,} steps")


def print_summary(paths: Sequence[Path], out: Path) -> None:
    """Medians over seeds with intervals, a line for each configuration."""
    frame, _ = frames.load(out)
    frame = frame[frame["run_id"].isin([path.stem for path in paths])]
    frame = frame.assign(label=frames.labels(frame))  # without what else is in the folder
    table = summary.summary(ends_of(frame))
    shown = ["label", "n", "diverged", "validation_kl", "test_kl", "test_accuracy", "reached"]
    shown = [name for name in [*shown, "steps_to_target"] if name in table]
    print(table[shown].to_string(index=False))
    print("medians over seeds with 95 % intervals; chosen on validation data")


def print_studies(chosen: Mapping[str, Sequence[Trial]], out: Path, how: str) -> None:
    """The trial of each study, and the median of studies for each optimizer."""
    print_table([trial.record_path(out) for of_spec in chosen.values() for trial in of_spec])
    for name, of_spec in chosen.items():
        steps = [steps_to_target(trial, out)[0] for trial in of_spec]
        median = statistics.median_high(steps)  # a miss is later than all others
        typical = f"{median:,.0f} steps" if math.isfinite(median) else "not reached"
        reached = sum(map(math.isfinite, steps))
        print(f"{name}: median of {len(steps)} studies ({how}): {typical}; reached in {reached}")


def steps_to_target(trial: Trial, out: Path) -> tuple[float, float]:
    """Steps to the target, inf where it is not reached; then, to choose among those, `final_score`."""
    record = records.read(trial.record_path(out))
    reached = records.first_reaching(record.measurements, trial.task.target._asdict())
    return reached["step"] if reached else math.inf, final_score(trial, out)


def require_this_version(trial: Trial, out: Path) -> None:
    """Raises RequestError where records in `out` are of another version of the trial's task."""
    identity = trial.identity()
    for path in records.paths(out / identity["task"]):
        header = records.read(path).header
        if header and header.get("task_fingerprint") != identity["task_fingerprint"]:
            raise RequestError(
                f"--out {out}: it holds records of another version of the task {identity['task']} (or "
                f"of another precision), such as {path.name}; choose another folder, or move them away"
            )


def _as_text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", required=True, metavar="NAME", help="as in run.py")
    p.add_argument(
        "--ruleset",
        choices=["tune", "external", "self"],
        default="tune",
        help="tune: the best of --trials points, on --seeds fresh seeds; external: in each of "
        "--studies, the best of --trials points (AlgoPerf: 5); self: the defaults, three times as long, "
        "--studies times; default: %(default)s",
    )
    p.add_argument(
        "--trials", type=count, metavar="N", help="points per optimizer; default: 16, external: 5"
    )
    p.add_argument("--seeds", type=count, metavar="N", help="of the final runs; default: 5")
    p.add_argument("--studies", type=count, metavar="N", help="default: 5")
    p.add_argument(
        "--own-lessons",
        action="store_true",
        help="each final seed has lessons of its own; default: first weights of its own, and lessons "
        "that all share (docs/tuning.md: on digits, that makes no visible difference)",
    )
    p.add_argument(
        "--halving",
        action="store_true",
        help="successive halving: all points at a ninth of the steps, a third of them at a third, ...",
    )
    p.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    loggers.add_option(p, "when a stage of the sweep is done")
    add_debug_option(p)
    engines.add_options(p)
    add_task_options(p)
    return p
