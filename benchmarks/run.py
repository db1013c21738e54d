"""Runs trials: each optimizer on a task, once per seed; a record for each, and a closing table.

python benchmarks/run.py --opt shampoo --opt adam --opt my_optimizer.py
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import loggers
from benchmarks.commands import (
    Parser,
    add_log_option,
    add_task_options,
    choose,
    choose_task,
    make_trial,
    natural,
    positive,
    print_table,
    run_all,
    serve,
)
from optimizers import registry
from optimizers.spec import Spec
from testbed.errors import RequestError
from testbed.lessons import PROTOCOLS
from testbed.tasks import TASKS
from testbed.trial import Start


def main() -> None:
    """Parses the command line, runs the trials, prints the table."""
    args = parser().parse_args()
    if args.list:
        print_list()
        return
    if not args.opt:
        raise RequestError("--opt: name at least one optimizer (--list shows all)")
    task, steps, published = choose_task(args)
    choose("--protocol", args.protocol, PROTOCOLS)
    log = loggers.choose(args.log, args.out)
    start = make_start(args)
    lessons = args.lesson_seed
    seeds = [args.seed] if args.seeds is None else list(range(args.seeds))
    specs = [registry.find(opt) for opt in args.opt]
    chosen = {
        spec.name: hyperparameters(spec, specs, args.hp, published.get(spec.name, {})) for spec in specs
    }
    trials = [
        make_trial(task, args.protocol, spec, steps, seed, chosen[spec.name], start, lessons)
        for seed in seeds
        for spec in specs
    ]
    print_table(run_all(trials, args.out, fresh=args.fresh, log=log))
    print(f"Figures: python analysis/report.py {args.out} --out report")


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
    seeds.add_argument("--seed", type=natural, default=0, metavar="S", help="default: 0")
    seeds.add_argument("--seeds", type=positive, metavar="N", help="run seeds 0 to N - 1")
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
    p.add_argument("--fresh", action="store_true", help="start over, also what is finished")
    add_log_option(p, "while trials run")
    p.add_argument("--list", action="store_true", help="show tasks, protocols and optimizers")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_task_options(p)
    return p


def make_start(args: argparse.Namespace) -> Start | None:
    """The checkpoint that `--init` names.

    Raises:
      RequestError: there is none.
    """
    if args.init is None:
        if args.fresh_head:
            raise RequestError("--fresh-head: it needs --init PATH; students start with one anyway")
        return None
    try:
        with args.init.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RequestError(f"--init {args.init}: cannot be read ({error.strerror})") from error
    return Start(args.init, sha256, args.fresh_head)


def hyperparameters(
    spec: Spec, specs: Sequence[Spec], given: Sequence[str], published: Mapping[str, float]
) -> dict[str, Any]:
    """The hyperparameters of `spec`: what `--hp` sets, for all or for it alone; published; default."""
    values = {name: repr(value) for name, value in published.items()}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator:
            raise RequestError(f"--hp {item}: write NAME=VALUE, such as learning_rate=0.01")
        owner, _, short = name.rpartition(".")
        if owner and owner not in [s.name for s in specs]:
            raise RequestError(f"--hp {item}: {owner!r} is not among the optimizers of this run")
        if owner in ("", spec.name):
            values[short] = value
    return registry.configure(spec, values)


def print_list() -> None:
    """Tasks, protocols, and optimizers with their hyperparameters."""
    print("Tasks (--task)")
    for task in TASKS.values():
        horizons = ", ".join(f"{name} {steps:,}" for name, steps in task.horizons.items())
        print(f"  {task.name:18}{task.summary}\n{'':20}batch {task.batch_size}; steps: {horizons}")
    print("\nProtocols (--protocol)")
    for name, protocol in PROTOCOLS.items():
        print(f"  {name:22}{(protocol.__doc__ or '').splitlines()[0]}")
    print("\nOptimizers (--opt); also a file with build(), optax.NAME, package.module:function")
    for spec in registry.registered().values():
        print(f"  {spec.name}: {spec.reference}")
        for name, value in registry.defaults(spec).items():
            space = spec.space.get(name)
            searched = f"  searched {space.low:g} to {space.high:g}" if space else ""
            allowed = f"  allowed {spec.bounds[name]}" if name in spec.bounds else ""
            print(f"      {name:16}{value!s:10}{allowed:32}{searched}".rstrip())


if __name__ == "__main__":
    serve(main)
