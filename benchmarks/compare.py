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
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import frames, report
from analysis.output.files import replacing
from benchmarks import engines, plans, verdict
from benchmarks.comparison import (
    MOST_STUDENTS,
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
from benchmarks.trials import add_task_options, hyperparameters
from optimizers import registry
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
    "task": "digits",
    "protocol": "function_matching",
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

    arms, tuned = choose_arms(args, problem, steps, published, run, frozen)
    baseline = choose_baseline(args, [arm.name for arm in arms])
    design = Design(problem, arms, baseline, steps, args.students, args.seed)
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
        if given in (None, [], False):
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
    if args.students is not None and args.students > MOST_STUDENTS:
        raise RequestError(f"--students {args.students}: give {MOST_STUDENTS} at most")
    if args.plan is not None and args.plan.is_dir():
        raise RequestError(f"--plan {args.plan}: a folder; give a file")
    if args.no_tune and args.extend:
        raise RequestError("--extend: it goes with tuning, not with --no-tune")
    return frozen


def choose_arms(
    args: argparse.Namespace,
    problem: Problem,
    steps: int,
    published: Mapping[str, Mapping[str, float]],
    run: Run,
    frozen: Mapping[str, Any] | None,
) -> tuple[tuple[Arm, ...], Mapping[str, Tuned]]:
    """The optimizers with their hyperparameters: of the plan, given, or tuned; and what tuning found."""
    specs = registry.find_all(args.opt)
    names = [spec.name for spec in specs]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise RequestError(
                f"--opt {args.opt[i]}: {name} is taken; give it a name of its own in SPEC"
            )
    pairs = list(zip(args.opt, specs, strict=True))
    if frozen is not None:
        fixed = {arm["name"]: arm["hyperparameters"] for arm in frozen["arms"]}
        if missing := [name for name in names if name not in fixed]:
            raise RequestError(
                f"--plan {args.plan}: it has no optimizer {missing[0]}; make another plan"
            )
        return tuple(Arm(opt, s, fixed[s.name]) for opt, s in pairs), frozen["tuned"]
    given = {
        spec.name: hyperparameters(spec, specs, args.hp, published.get(spec.name, {})) for spec in specs
    }
    own = {
        spec.name: {
            k: v for k, v in given[spec.name].items() if v != plugins.defaults(spec.build).get(k)
        }
        for spec in specs
    }
    tuned: Mapping[str, Tuned] = {}
    if not args.no_tune:
        print(f"tuning: {args.points} points of each of {', '.join(names)}", flush=True)
        tuned = tune(problem, steps, specs, own, args.points, args.extend, run, args.out / "tuning")
        for name, found in tuned.items():
            best = ", ".join(f"{key} {value:.3g}" for key, value in found["best"].items())
            print(f"{name}: best of {found['points']}: {best}", flush=True)
    arms = [
        Arm(opt, s, {**own[s.name], **(tuned[s.name]["best"] if s.name in tuned else {})})
        for opt, s in pairs
    ]
    return tuple(arms), tuned


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
        return plans.from_json(frozen), 1
    request = {name: getattr(args, name) for name in FIXED}
    budget = (args.ratio, args.minutes)
    known = sorted(folder.glob("plan-*.json"))
    before = [plans.read(path) for path in known]
    contents = [c for c in before if (c["request"]["ratio"], c["request"]["minutes"]) == budget]
    if contents:
        plan, content = plans.from_json(contents[0]), contents[0]
    else:
        print("scouting: where each optimizer ends at one quality", flush=True)
        options = {"precision": args.ratio, "minutes": args.minutes, "at_once": at_once}
        plan = make_plan(design, run, folder / "scouting", **options)
        content = plans.as_json(design, plan, request, tuned)
        plans.write(folder / f"plan-{len(known) + 1}.json", content)
        known.append(folder)
    if args.plan is not None:
        plans.write(args.plan, content)
    return plan, len(known)


def announcer(design: Design, plan: Plan) -> Any:
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
