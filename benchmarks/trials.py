"""From words on a command line to trials: the task, the optimizer, its hyperparameters, the start."""

import argparse
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks.cli import choose, natural, positive
from optimizers import registry
from optimizers.spec import Spec
from testbed import devices, teachers
from testbed.errors import RequestError
from testbed.programs import Optimizer
from testbed.tasks import LESSONS, TASKS, lessons_from
from testbed.tasks.task import Task, has_precision
from testbed.trial import Start, Trial


def add_task_options(p: argparse.ArgumentParser, *, protocol: bool = True) -> None:
    """The options that say what is learned, and where; `choose_task` reads them."""
    p.add_argument("--task", default="digits", metavar="NAME", help="default: %(default)s")
    if protocol:
        p.add_argument(
            "--protocol",
            default="function_matching",
            metavar="NAME",
            help="how a batch becomes a lesson; default: %(default)s",
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
    where.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="of activations and convolutions; auto: bfloat16 on accelerators, float32 on CPU",
    )
    where.add_argument("--devices", type=positive, metavar="N", help="default: all")
    where.add_argument(
        "--hosts", metavar="auto|HOST:PORT", help="join several hosts; auto on TPU pods and SLURM"
    )
    where.add_argument("--processes", type=positive, metavar="N", help="with HOST:PORT: how many hosts")
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
    if args.hosts:
        devices.connect(args.hosts, args.processes, args.process)
    task = choose("--task", args.task, TASKS)
    horizon = args.horizon or next(iter(task.horizons))
    steps = choose("--horizon", horizon, task.horizons)
    published = task.published.get(horizon)
    task = task.at(horizon)
    if args.lessons_from:
        choose("--lessons-from", args.lessons_from, LESSONS)
        task = lessons_from(task, args.lessons_from)
    if (precision := choose_precision(args.precision, task)) != task.precision:
        task = dataclasses.replace(task, precision=precision)
    devices.use(args.devices, task.batch_size)
    devices.require_divisible(task.batch_size)
    return task, args.steps or steps, published.hyperparameters if published else {}


def choose_precision(name: str, task: Task) -> str:
    """The precision that `--precision` names; auto is bfloat16 where accelerator and networks have it.

    Raises:
      RequestError: no network of the task can compute in it.
    """
    networks = [task.student, *(teachers.TEACHERS[name].network for name in task.teachers)]
    able = any(has_precision(network) for network in networks)
    if name != "auto":
        if not able and name != task.precision:
            raise RequestError(
                f"--precision {name}: the networks of {task.name} compute in float32 only"
            )
        return name
    return "bfloat16" if able and jax.default_backend() != "cpu" else "float32"


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


def make_trial(
    task: Task,
    protocol: str,
    spec: Spec,
    total_steps: int,
    seed: int,
    hp: Mapping[str, Any],
    start: Start | None = None,
    lesson_seed: int | None = None,
) -> Trial:
    """A trial.

    Args:
      task: what is learned.
      protocol: how a batch becomes a lesson.
      spec: the optimizer.
      total_steps: of the trial.
      seed: of the trial.
      hp: values that replace the optimizer's defaults.
      start: a checkpoint instead of random weights.
      lesson_seed: of its lessons, if it is not `seed`.

    Raises:
      RequestError: the protocol needs labels, and the task's lessons have none.
    """
    if protocol == "labels" and not task.own_lessons:
        raise RequestError(
            f"--protocol labels: the lessons of {task.name} are from other data, whose labels are not "
            "the task's; choose a protocol with a teacher"
        )
    optimizer = Optimizer(
        name=spec.name,
        build=spec.build,
        hyperparameters=registry.defaults(spec) | dict(hp),
        sha256=registry.source_sha256(spec),
        eval_params=spec.eval_params,
        vectorizes=spec.vmappable,
    )
    return Trial(task, protocol, optimizer, total_steps, seed, start, lesson_seed)
