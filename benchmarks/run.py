"""Runs trials: each optimizer on a task, once per seed; a record for each, and a closing table.

python benchmarks/run.py --opt shampoo --opt adam --opt my_optimizer.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import choose, make_trial, natural, positive, print_table, run_all, serve
from optimizers import registry
from optimizers.spec import Spec
from testbed.errors import RequestError
from testbed.lessons import PROTOCOLS
from testbed.tasks import TASKS


def main() -> None:
    """Parses the command line, runs the trials, prints the table."""
    args = parser().parse_args()
    if args.list:
        print_list()
        return
    if not args.opt:
        raise RequestError("--opt: name at least one optimizer (--list shows all)")
    task = choose("--task", args.task, TASKS)
    choose("--protocol", args.protocol, PROTOCOLS)
    steps = args.steps or choose("--horizon", args.horizon, task.horizons)
    seeds = [args.seed] if args.seeds is None else list(range(args.seeds))
    specs = [registry.find(opt) for opt in args.opt]
    trials = [
        make_trial(task, args.protocol, spec, steps, seed, hyperparameters(spec, specs, args.hp))
        for seed in seeds
        for spec in specs
    ]
    print_table(run_all(trials, args.out, fresh=args.fresh))
    print(f"Figures: python analysis/report.py {args.out} --out report")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--opt",
        action="append",
        metavar="NAME",
        help="optimizer: a registered name, a file with build(), optax.NAME, or "
        "package.module:function; may be given several times",
    )
    p.add_argument("--task", default="digits", metavar="NAME", help="default: %(default)s")
    p.add_argument(
        "--protocol",
        default="function_matching",
        metavar="NAME",
        help="how a batch becomes a lesson; default: %(default)s",
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--horizon", default="short", metavar="NAME", help="short (default), medium or long"
    )
    length.add_argument("--steps", type=positive, metavar="N", help="a horizon of your own")
    seeds = p.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=natural, default=0, metavar="S", help="default: 0")
    seeds.add_argument("--seeds", type=positive, metavar="N", help="run seeds 0 to N - 1")
    p.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of all optimizers, or of one: OPT.NAME=VALUE",
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="records; default: runs"
    )
    p.add_argument("--fresh", action="store_true", help="start over, also what is finished")
    p.add_argument("--list", action="store_true", help="show tasks, protocols and optimizers")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def hyperparameters(spec: Spec, specs: Sequence[Spec], given: Sequence[str]) -> dict[str, Any]:
    """Those hyperparameters of `spec` that `--hp` sets, for all optimizers or for it alone."""
    values = {}
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
            allowed = f"  allowed {spec.allowed[name]}" if name in spec.allowed else ""
            print(f"      {name:16}{value!s:10}{allowed:32}{searched}".rstrip())


if __name__ == "__main__":
    serve(main)
