"""From words on a command line to trials: the task, the optimizer, its hyperparameters, the start."""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from optimizers import registry
from optimizers.spec import Spec
from testbed import devices, plugins
from testbed.cli import count, natural, positive
from testbed.errors import RequestError, choose, printable
from testbed.models.network import has_precision
from testbed.problem.problem import Problem, open_problem
from testbed.problem.task import Task
from testbed.tasks import LESSONS, find, lessons_from
from testbed.training.optimizer import from_spec, require_effect
from testbed.training.trial import InitCheckpoint, Trial

TASK, PROTOCOL = "digits", "function_matching"  # by default


def add_task_options(
    p: argparse.ArgumentParser, *, protocol: bool = True, precision: bool = True
) -> None:
    """The options that say what is learned, and where; `choose_task` reads them.

    Args:
      p: gets the options.
      protocol: whether there is --protocol.
      precision: whether there is --precision; if not, it is auto.
    """
    p.add_argument(
        "--task",
        default=TASK,
        metavar="NAME",
        help=f"a registered name, or a file that defines TASK; default: {TASK}",
    )
    if protocol:
        p.add_argument(
            "--protocol",
            default=PROTOCOL,
            metavar="NAME",
            help=f"how a batch becomes a lesson; default: {PROTOCOL}",
        )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--horizon", metavar="NAME", help="such as short, medium, long; default: the task's first"
    )
    length.add_argument("--steps", type=positive, metavar="N", help="a custom horizon, in steps")
    p.add_argument(
        "--lessons-from", metavar="NAME", help=f"training images of other data: {', '.join(LESSONS)}"
    )
    where = p.add_argument_group("where it runs")
    p.set_defaults(precision="auto")
    if precision:
        where.add_argument(
            "--precision",
            default="auto",
            choices=["auto", "float32", "bfloat16"],
            help="of activations and convolutions; auto: bfloat16 on accelerators, float32 on CPU",
        )
    where.add_argument("--devices", type=count, metavar="N", help="default: all")
    where.add_argument(
        "--hosts", metavar="auto|HOST:PORT", help="join several hosts; auto on TPU pods and SLURM"
    )
    where.add_argument("--processes", type=count, metavar="N", help="with HOST:PORT: how many hosts")
    where.add_argument("--process", type=natural, metavar="I", help="with HOST:PORT: which one this is")


def choose_task(args: argparse.Namespace) -> tuple[Task, int, Mapping[str, Mapping[str, float]]]:
    """The task that the options of `add_task_options` name, its steps, and published hyperparameters.

    Joins the hosts and chooses the devices, too.

    Returns:
      task, total_steps, optimizer -> the hyperparameters that are published for them.

    Raises:
      RequestError: an unknown name, or a number that does not go with the others.
    """
    if args.hosts is None and (args.processes is not None or args.process is not None):
        raise RequestError("--processes, --process: they need --hosts HOST:PORT")
    if args.hosts is not None:
        require_address(args.hosts)
        devices.connect(args.hosts, args.processes, args.process)
    task = find(args.task)
    horizon = next(iter(task.horizons)) if args.horizon is None else args.horizon
    steps = choose("--horizon", horizon, task.horizons)
    published = task.published.get(horizon)
    task = task.at(horizon)
    if args.lessons_from is not None:
        choose("--lessons-from", args.lessons_from, LESSONS)
        task = lessons_from(task, args.lessons_from)
    if (precision := choose_precision(args.precision, task)) != task.precision:
        task = dataclasses.replace(task, precision=precision)
    devices.use(args.devices, task.batch_size)
    devices.require_divisible(task.batch_size)
    return task, args.steps or steps, published.hyperparameters if published else {}


def require_address(hosts: str) -> None:
    """Raises RequestError where it is neither auto nor HOST:PORT: JAX would wait for minutes."""
    host, _, port = hosts.rpartition(":")
    if hosts != "auto" and not (host and port.isascii() and port.isdecimal() and 0 < len(port) <= 5):
        raise RequestError(
            f"--hosts {hosts}: give auto, or HOST:PORT of the first, such as 10.0.0.1:1234"
        )


def choose_precision(name: str, task: Task) -> str:
    """The precision that `--precision` names; auto is bfloat16 where accelerator and networks have it.

    Raises:
      RequestError: no network of the task can compute in it.
    """
    able = has_precision(task.student) or any(
        teacher.precision("bfloat16") == "bfloat16" for teacher in task.teachers
    )
    if name != "auto":
        if not able and name != task.precision:
            raise RequestError(
                f"--precision {name}: the networks of {task.name} compute in float32 only"
            )
        return name
    return "bfloat16" if able and jax.default_backend() != "cpu" else "float32"


class Choice(NamedTuple):
    """What `choose_problem` returns."""

    problem: Problem
    steps: int
    published: Mapping[str, Mapping[str, float]]  # optimizer -> hyperparameters


def choose_problem(args: argparse.Namespace) -> Choice:
    """As `choose_task`, with the protocol that `--protocol` names: a problem.

    Raises:
      RequestError: as `choose_task`; or the task has not what the protocol needs.
    """
    task, steps, published = choose_task(args)
    return Choice(open_problem(task, args.protocol), steps, published)


def make_init(args: argparse.Namespace) -> InitCheckpoint | None:
    """The checkpoint that `--init` names.

    Raises:
      RequestError: there is none.
    """
    if args.init is None:
        if args.fresh_head:
            raise RequestError("--fresh-head: it needs --init PATH; students start with one anyway")
        return None
    return InitCheckpoint.read(args.init, fresh_head=args.fresh_head)


def hyperparameters(
    spec: Spec, specs: Sequence[Spec], given: Sequence[str], published: Mapping[str, float]
) -> dict[str, Any]:
    """All hyperparameters of an optimizer: its defaults, replaced by published values, and by `--hp`.

    Args:
      spec: the optimizer.
      specs: all optimizers of the command, which `--hp OPT.NAME=VALUE` may name.
      given: the values of `--hp`.
      published: of this optimizer, on this task.

    Raises:
      RequestError: an unknown hyperparameter or optimizer, or a value that is not allowed.
    """
    values = {name: repr(value) for name, value in published.items()}
    return registry.configure(spec, values | given_values(spec, specs, given))


def given_values(spec: Spec, specs: Sequence[Spec], given: Sequence[str]) -> dict[str, str]:
    """What `--hp` gives an optimizer: name -> text; arguments and errors as for `hyperparameters`."""
    values = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator:
            raise RequestError(f"--hp {item}: write NAME=VALUE, such as learning_rate=0.01")
        owner, _, short = name.rpartition(".")  # owners' names may have dots, hyperparameters' have none
        if owner and owner not in (names := [s.name for s in specs]):
            raise RequestError(
                f"--hp {printable(item, 100)}: {owner!r} is not among the optimizers of this run: "
                f"{', '.join(names)}"
            )
        if owner in ("", spec.name):
            values[short] = value
    return values


def require_effects(trials: Iterable[Trial], given: Sequence[str]) -> None:
    """Refuses hyperparameters that are accepted and change nothing.

    Args:
      trials: of one seed, a trial for each optimizer.
      given: the values of `--hp`.

    Raises:
      RequestError: a value that is not its default changes nothing about an optimizer's updates.
    """
    names = {item.partition("=")[0].rpartition(".")[2] for item in given}
    for trial in trials:
        defaults = plugins.defaults(trial.optimizer.build)
        own = {name: default for name, default in defaults.items() if name in names}
        require_effect(trial.optimizer, trial.problem, trial.total_steps, own)


def make_trial(
    problem: Problem,
    spec: Spec,
    total_steps: int,
    seed: int,
    hp: Mapping[str, Any],
    init: InitCheckpoint | None = None,
    lesson_seed: int | None = None,
) -> Trial:
    """A trial of an optimizer's SPEC; `hp` replace its defaults, the rest is as in `Trial`."""
    return Trial(problem, from_spec(spec, hp), total_steps, seed, lesson_seed, init)
