"""Says which optimizer needs fewer steps for the same quality, by how much, and how certain that is.

    python benchmarks/compare.py --opt my_optimizer.py --opt adam

All are tuned alike. Then crowds of students run to the ends of their schedules: first few, at a ladder
of horizons, to find where each optimizer ends at the quality that the baseline has at the task's
horizon; then as many there as the precision needs (a pilot estimates that), or as the minutes allow.
It prints a sentence for each pair, and writes verdict.json and the report. The same command goes on
where it was interrupted, and changes nothing once it is done. docs/statistics.md has the statistics.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.compare")

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import frames, report
from analysis.output.files import replacing
from benchmarks import engines, plans, verdict
from benchmarks.comparison import (
    PILOT,
    Arm,
    Design,
    Outcome,
    Plan,
    Run,
    carry_out,
    make_plan,
)
from benchmarks.jobs import make_jobs
from benchmarks.search import Tuned, tune
from benchmarks.trials import PROTOCOL, TASK, add_task_options, given_values, hyperparameters
from optimizers import registry
from optimizers.spec import Spec
from testbed import plugins, records
from testbed.cli import (
    Parser,
    Unmet,
    add_debug_option,
    count,
    natural,
    require_writable,
)
from testbed.errors import RequestError
from testbed.problem.problem import Problem
from testbed.training.trial import Trial

POINTS, PRECISION, MINUTES = 12, 1.05, 10.0
# What a plan fixes, with defaults; the other options say where it runs and where it is written.
FIXED: Mapping[str, Any] = {
    "opt": None,
    "baseline": None,
    "hp": [],
    "no_tune": False,
    "points": POINTS,
    "extend": False,
    "ratio": PRECISION,
    "minutes": MINUTES,
    "students": None,
    "seed": 0,
    "task": TASK,
    "protocol": PROTOCOL,
    "horizon": None,
    "steps": None,
    "lessons_from": None,
}


def main() -> None:
    """Runs the comparison.

    Raises:
      RequestError: the command line asks for what cannot be had.
      Unmet: --require asks for more than is shown.
    """
    args = parser().parse_args()
    frozen = complete(args)
    require_writable("--out", args.out)
    require_writable("--report", args.report)
    engine, (problem, steps, published) = engines.open_where_it_runs(args)

    def run(trials: Sequence[Trial], out: Path) -> None:
        engine.run(make_jobs(args, trials, out, engine.at_once))

    design = choose_design(args, problem, steps, published)
    design, tuned = with_tuned(args, design, run, frozen)
    folder = args.out / plans.key(design)
    plan, asked = plan_of(args, design, folder, run, engine.at_once, frozen, tuned)
    outcome = carry_out(design, plan, run, folder / "blocks", announcer(design, plan))
    answer(args, design, plan, outcome, tuned, asked, folder)


def complete(args: argparse.Namespace) -> dict[str, Any] | None:
    """Sets the options that were not given: from the plan's file, if there is one, or to their defaults.

    Returns:
      The content of the plan's file.

    Raises:
      RequestError: an option contradicts the plan, or there is nothing to compare.
    """
    frozen = plans.read(args.plan) if args.plan is not None and args.plan.is_file() else None
    planned = FIXED if frozen is None else FIXED | frozen["request"]
    for name, value in planned.items():
        given = getattr(args, name)
        if given is None or given is False or given == []:
            setattr(args, name, value)
        elif frozen is not None and given != value:
            option = f"--{'precision' if name == 'ratio' else name.replace('_', '-')}"
            raise RequestError(
                f"{option} {given}: the plan {args.plan} has {value}; leave {option} out, or make "
                "another plan"
            )
    if not args.opt or len(args.opt) < 2:
        raise RequestError(
            "--opt: name two optimizers or more, such as --opt my_optimizer.py --opt adam"
        )
    if not args.ratio > 1.001:
        raise RequestError(f"--precision {args.ratio:g}: give a ratio above 1.001, such as 1.05")
    if not 0 < args.minutes < 10**6:
        raise RequestError(f"--minutes {args.minutes:g}: give a number above 0")
    if args.hosts is not None:
        raise RequestError(
            f"--hosts {args.hosts}: a comparison is led by one host; --engine ray or slurm spreads it"
        )
    if args.plan is not None and args.plan.is_dir():
        raise RequestError(f"--plan {args.plan}: a folder; give a file")
    if args.no_tune and args.extend:
        raise RequestError("--extend: it goes with tuning, not with --no-tune")
    return frozen


def choose_design(
    args: argparse.Namespace,
    problem: Problem,
    steps: int,
    published: Mapping[str, Mapping[str, float]],
) -> Design:
    """The comparison, with hyperparameters that are given or published, not tuned yet.

    Raises:
      RequestError: unknown optimizers, one that is named twice, or numbers that make no comparison.
    """
    specs = registry.find_all(args.opt)
    names = [spec.name for spec in specs]
    for opt, name in zip(args.opt, names, strict=True):
        if names.count(name) > 1:
            raise RequestError(
                f"--opt {opt}: several are called {name}; give SPEC another name (slowed-1+{opt} is "
                "the same optimizer under another)"
            )
    arms = []
    for opt, spec in zip(args.opt, specs, strict=True):
        values = hyperparameters(spec, specs, args.hp, published.get(spec.name, {}))
        arms.append(Arm(opt, spec, not_default(spec, values)))
    baseline = choose_baseline(args, names)
    return Design(problem, tuple(arms), baseline, steps, args.students, args.seed)


def with_tuned(
    args: argparse.Namespace, design: Design, run: Run, frozen: Mapping[str, Any] | None
) -> tuple[Design, Mapping[str, Tuned]]:
    """The comparison with hyperparameters that tuning finds, or has found; and what it found."""
    specs = [arm.spec for arm in design.arms]
    tuned: Mapping[str, Tuned] = {} if frozen is None else frozen["tuned"]
    if frozen is None and not args.no_tune:
        names = ", ".join(arm.name for arm in design.arms)
        print(f"tuning: {args.points} points of each of {names}", flush=True)
        given = {arm.name: arm.hyperparameters for arm in design.arms}
        pinned = {spec.name: given_values(spec, specs, args.hp) for spec in specs}
        space = (given, pinned, args.points, args.extend)
        tuned = tune(design.problem, design.steps, specs, *space, run, args.out / "tuning")
        for name, found in tuned.items():
            values = ", ".join(f"{key} {value:.3g}" for key, value in found["best"].items())
            print(f"{name}: best of {found['points']}: {values}", flush=True)
    best = {name: found["best"] for name, found in tuned.items()}
    arms = [
        dataclasses.replace(arm, hyperparameters={**arm.hyperparameters, **best.get(arm.name, {})})
        for arm in design.arms
    ]
    return dataclasses.replace(design, arms=tuple(arms)), tuned


def not_default(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that differ from an optimizer's defaults."""
    defaults = plugins.defaults(spec.build)
    return {name: value for name, value in values.items() if value != defaults.get(name)}


def choose_baseline(args: argparse.Namespace, names: Sequence[str]) -> str:
    """The optimizer whose quality is matched.

    Raises:
      RequestError: it is not among those compared.
    """
    if args.baseline is None:
        return "adam" if "adam" in names else names[-1]
    if args.baseline not in names:
        raise RequestError(
            f"--baseline {args.baseline}: not compared here; choose one of {', '.join(names)}"
        )
    return str(args.baseline)


def plan_of(
    args: argparse.Namespace,
    design: Design,
    folder: Path,
    run: Run,
    at_once: int,
    frozen: Mapping[str, Any] | None,
    tuned: Mapping[str, Tuned],
) -> tuple[Plan, int]:
    """The plan: the one that was frozen, made before, or made now; and how many were asked for here."""
    if frozen is not None:
        plans.require_same(args.plan, frozen, design)
        return plans.from_json(frozen), frozen["asked"]
    known = [plans.read(path) for path in sorted(folder.glob("plan-*.json"))]
    budget = (args.ratio, args.minutes)
    same = [c for c in known if (c["request"]["ratio"], c["request"]["minutes"]) == budget]
    if same:
        content, asked = same[0], len(known)
    else:
        print("scouting: where each optimizer ends at one quality", flush=True)
        options = {"precision": args.ratio, "minutes": args.minutes, "at_once": at_once}
        plan = make_plan(design, run, folder / "scouting", **options)
        request, asked = {name: getattr(args, name) for name in FIXED}, len(known) + 1
        content = plans.as_json(design, plan, request, tuned, asked)
        plans.write(folder / f"plan-{asked}.json", content)
    if args.plan is not None:
        plans.write(args.plan, {**content, "asked": asked})
    return plans.from_json(content), asked


def announcer(design: Design, plan: Plan) -> Callable[[str, int], None]:
    """What prints a stage before it begins."""
    matched = ", ".join(f"{name} at {steps:,} steps" for name, steps in plan.matched.items())
    print(f"{design.metric} {plan.quality:.4g}: {matched}", flush=True)

    def announce(stage: str, blocks: int) -> None:
        minutes = blocks * plan.block_seconds / 60
        each = f"{blocks} blocks of {plan.students} students of each"
        print(f"{stage}: {each}, about {minutes:.1f} minutes", flush=True)

    return announce


def answer(
    args: argparse.Namespace,
    design: Design,
    plan: Plan,
    outcome: Outcome,
    tuned: Mapping[str, Tuned],
    asked: int,
    folder: Path,
) -> None:
    """Prints the answer, and writes it.

    Raises:
      Unmet: it is not what --require asks for.
    """
    content = verdict.document(design, plan, outcome, tuned, asked, args.minutes)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    records.replace(folder / "verdict.json", text.encode())
    found = frames.read(folder)
    report.write(found, args.report, design.baseline)
    with replacing("--report", args.report) as new:
        (new / "verdict.json").write_text(text)
    for warning in content["warnings"]:
        print(f"Warning: {warning}")
    for pair in content["pairs"]:
        print(pair["sentence"] + ".")
    print(f"Verdict: {args.report}/verdict.json; report: {args.report}/index.html; records: {folder}")
    if args.require is not None:
        others = [arm.name for arm in design.arms[1:]]
        if missing := [name for name in others if not is_faster(content, design.arms[0].name, name)]:
            raise Unmet(f"--require faster: {design.arms[0].name} is not shown faster than {missing[0]}")


def is_faster(content: Mapping[str, Any], first: str, second: str) -> bool:
    """Whether a verdict says that one optimizer is faster than another."""
    wanted = {(first, second): "faster", (second, first): "slower"}
    return any(wanted.get((p["first"], p["second"])) == p["answer"] for p in content["pairs"])


def parser() -> argparse.ArgumentParser:
    """The command line. Options that a plan fixes have no default here: `complete` sets them."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", metavar="NAME", help="as in run.py; two or more")
    p.add_argument(
        "--baseline", metavar="NAME", help="whose quality is matched; default: adam, or the last --opt"
    )
    p.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="as in run.py: a hyperparameter that is given, and so not tuned",
    )
    p.add_argument("--no-tune", action="store_true", help="hyperparameters are the defaults, or --hp")
    p.add_argument(
        "--points", type=count, metavar="N", help=f"tried of each optimizer; default: {POINTS}"
    )
    p.add_argument(
        "--extend",
        action="store_true",
        help="search as many points again of each; beyond an edge of its space, if the best is there",
    )
    p.add_argument(
        "--precision",
        dest="ratio",
        type=float,
        metavar="R",
        help=f"the ratio to be detected, in nine of ten comparisons; default: {PRECISION}",
    )
    p.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"at most, after tuning; default: {MINUTES:g}. The pilot of {PILOT} blocks always runs",
    )
    p.add_argument(
        "--students",
        type=count,
        metavar="N",
        help="of each optimizer in a block; default: what the precision needs, 2 to 16",
    )
    p.add_argument(
        "--seed", type=natural, metavar="S", help="another one repeats it on fresh lessons and students"
    )
    p.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="written before the pilot; if it is there, it is followed: hyperparameters, seeds, budget",
    )
    p.add_argument(
        "--require",
        choices=["faster"],
        help="exit with status 1 unless the first --opt is shown faster than all others",
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: runs/compare"
    )
    p.add_argument("--report", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    add_debug_option(p)
    engines.add_options(p)
    add_task_options(p, precision=False)
    p.set_defaults(**dict.fromkeys(("task", "protocol", "horizon", "steps", "lessons_from")))
    return p
