"""Runs trials: each optimizer on a task, once per seed; a record for each, and a table.

python benchmarks/run.py --opt shampoo --opt adam --opt my_optimizer.py
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.run")

import argparse
from pathlib import Path

from benchmarks import loggers
from benchmarks.runner import print_table, run_all
from benchmarks.trials import (
    add_task_options,
    choose_problem,
    hyperparameters,
    make_init,
    make_trial,
    require_effects,
)
from optimizers import registry
from testbed.cli import (
    Parser,
    add_debug_option,
    count,
    invocation,
    natural,
    require_writable,
)
from testbed.errors import RequestError
from testbed.problem.protocols import PROTOCOLS
from testbed.tasks import TASKS
from testbed.training import diagnostics


def main() -> None:
    """Parses the command line, runs the trials, prints the table."""
    args = parser().parse_args()
    if args.list:
        print_list()
        return
    if not args.opt:
        raise RequestError("--opt: name at least one optimizer (--list shows all)")
    diagnose = diagnostics.choose(args.diagnose.split(",") if args.diagnose is not None else [])
    require_writable("--out", args.out)
    problem, steps, published = choose_problem(args)
    log = loggers.choose(args.log, args.out)
    init = make_init(args)
    seeds = [args.seed or 0] if args.seeds is None else list(range(args.seeds))
    specs = list({spec.name: spec for spec in registry.find_all(args.opt)}.values())
    chosen = {
        spec.name: hyperparameters(spec, specs, args.hp, published.get(spec.name, {})) for spec in specs
    }
    trials = [
        make_trial(problem, spec, steps, seed, chosen[spec.name], init, args.lesson_seed)
        for seed in seeds
        for spec in specs
    ]
    require_effects(trials[: len(specs)], args.hp)
    options = {"fresh": args.fresh, "save_params": args.save_params, "diagnose": diagnose}
    print_table(run_all(trials, args.out, log=log, **options))
    print(f"Figures: {invocation('report')} {args.out} --out report")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--opt",
        action="append",
        metavar="NAME",
        help="optimizer: a registered name, a file with build(), optax.NAME, or "
        "package.module:function; may be given several times",
    )
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=natural, metavar="S", help="default: 0")
    seeds.add_argument("--seeds", type=count, metavar="N", help="run seeds 0 to N - 1")
    p.add_argument(
        "--lesson-seed",
        type=natural,
        metavar="S",
        help="the lessons of this seed for all students, which then differ in first weights; default: "
        "each seed has its own",
    )
    p.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of all optimizers, or of one: OPT.NAME=VALUE",
    )
    p.add_argument(
        "--init", type=Path, metavar="PATH", help="checkpoint (.npz) that students start from"
    )
    p.add_argument(
        "--fresh-head", action="store_true", help="with --init: but their classifiers start at zero"
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="records; default: runs"
    )
    p.add_argument("--fresh", action="store_true", help="rerun trials, including finished ones")
    p.add_argument(
        "--save-params",
        action="store_true",
        help="write the final parameters beside each record, as an .npz that --init reads",
    )
    p.add_argument(
        "--diagnose",
        metavar="NAME[,NAME...]",
        help="measure these too, off the clock: "
        f"{', '.join((*diagnostics.DIAGNOSTICS, diagnostics.OWN))} (the optimizer's own counts); "
        "finished trials are not run again for it without --fresh",
    )
    loggers.add_option(p, "while trials run")
    p.add_argument("--list", action="store_true", help="show tasks, protocols and optimizers")
    add_debug_option(p)
    add_task_options(p)
    return p


def print_list() -> None:
    """Tasks, protocols, and optimizers with their hyperparameters."""
    print("Tasks (--task)")
    width = max(map(len, TASKS)) + 2
    for task in TASKS.values():
        horizons = ", ".join(f"{name} {steps:,}" for name, steps in task.horizons.items())
        print(f"  {task.name:{width}}{task.summary}")
        print(f"  {'':{width}}batch {task.batch_size}; steps: {horizons}")
    print("\nProtocols (--protocol)")
    width = max(map(len, PROTOCOLS)) + 2
    for name, protocol in PROTOCOLS.items():
        print(f"  {name:{width}}{(protocol.make_lesson.__doc__ or '').splitlines()[0]}")
    print("\nOptimizers (--opt); also a file with build(), optax.NAME, package.module:function")
    for spec in registry.registered().values():
        print(f"  {spec.name}: {spec.reference}")
        for name, value in registry.defaults(spec).items():
            space = spec.space.get(name)
            searched = f"  searched {space.low:g} to {space.high:g}" if space else ""
            allowed = f"  allowed {spec.bounds[name]}" if name in spec.bounds else ""
            print(f"      {name:16}{value!s:10}{allowed:32}{searched}".rstrip())
