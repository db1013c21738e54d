"""What the commands share: from words to trials, running them, and ending with the right status."""

import argparse
import dataclasses
import difflib
import math
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
from tqdm import tqdm

from benchmarks.loggers import LOGGERS, Loggers
from optimizers import registry
from optimizers.spec import Spec
from testbed import compilation, devices, records, teachers
from testbed.errors import RequestError
from testbed.programs import Optimizer
from testbed.tasks import LESSONS, TASKS, lessons_from
from testbed.tasks.task import Task, has_precision
from testbed.trial import Progress, Start, Trial, run

Value = TypeVar("Value")


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user, or whoever manages the machine, asked for an end."""


class Parser(argparse.ArgumentParser):
    """A command line whose faults are told in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise RequestError(f"error: {message}")


def serve(main: Callable[[], None]) -> None:
    """Runs a command and exits: 0 done; 1 failed; 2 cannot be served; 130 interrupted.

    What goes wrong is told in one line; `--debug` anywhere on the command line shows the traceback.
    """
    debug = "--debug" in sys.argv
    try:
        main()
    except (Interrupted, KeyboardInterrupt, Exception) as error:
        status, line = _ending(error)
        if debug:
            traceback.print_exc()
    else:
        sys.exit(0)
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit status, and what is said about it."""
    if isinstance(error, RequestError):
        return 2, str(error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return 130, f"interrupted{f': {error}' if str(error) else ''}"
    return 1, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"


def choose(option: str, name: str, among: Mapping[str, Value]) -> Value:
    """among[name].

    Raises:
      RequestError: there is no such name; the message has the nearest.
    """
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"{option} {name}: no such choice; the nearest is {near!r}, of {', '.join(among)}"
        )
    return among[name]


def positive(text: str) -> int:
    """A whole number from 1."""
    if (value := natural(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 to 2^31 - 1")
    return int(text)


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
    """A trial; `hp` are values that replace the optimizer's defaults, the rest is as in `Trial`.

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


def choose_task(args: argparse.Namespace) -> tuple[Task, int, Mapping[str, Mapping[str, float]]]:
    """What `add_task_options` added: the task, its steps, and hyperparameters published for them.

    Joins the hosts and chooses the devices, too.

    Raises:
      RequestError: a name or a number that cannot be served.
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
    """bfloat16 by default where there is an accelerator and a network that can compute in it."""
    networks = [task.student, *(teachers.TEACHERS[name].network for name in task.teachers)]
    able = any(has_precision(network) for network in networks)
    if name != "auto":
        if not able and name != task.precision:
            raise RequestError(
                f"--precision {name}: the networks of {task.name} compute in float32 only"
            )
        return name
    return "bfloat16" if able and jax.default_backend() != "cpu" else "float32"


def add_task_options(p: argparse.ArgumentParser, *, protocol: bool = True) -> None:
    """The options that say what is learned, and where."""
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
    length.add_argument("--steps", type=positive, metavar="N", help="a horizon of your own")
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
    where.add_argument("--devices", type=positive, metavar="N", help="default: all there are")
    where.add_argument(
        "--hosts", metavar="auto|HOST:PORT", help="join several hosts; auto on TPU pods and SLURM"
    )
    where.add_argument("--processes", type=positive, metavar="N", help="with HOST:PORT: how many hosts")
    where.add_argument("--process", type=natural, metavar="I", help="with HOST:PORT: which one this is")


def add_log_option(p: argparse.ArgumentParser, when: str) -> None:
    """The option that says who follows the records; `loggers.choose` serves it."""
    p.add_argument(
        "--log",
        action="append",
        default=[],
        choices=list(LOGGERS),
        help=f"tensorboard, in <out>/tensorboard, or wandb: follows the records, off the clock, {when}; "
        "may be given twice",
    )


def run_all(
    trials: Sequence[Trial], out: Path, *, fresh: bool = False, log: Loggers | None = None
) -> list[Path]:
    """Runs what is not finished of the trials, with progress on a terminal; their records.

    Loggers are sent the records of all, also of those that are finished.

    Raises:
      Interrupted: on the first SIGINT or SIGTERM, once the running trial has saved a checkpoint.
    """
    compilation.enable_cache()
    command = shlex.join(["python", *sys.argv])
    log = log or Loggers({}, out)
    with interrupts() as interrupted:
        for number, trial in enumerate(trials, start=1):
            progress = run(trial, out, command=command, fresh=fresh)
            label = f"{trial.task.name} {trial.optimizer.name} seed {trial.seed}"
            if len(trials) > 1:
                label = f"[{number}/{len(trials)}] {label}"
            with log.following(trial.record_path(out)) as send, _bar(label, trial.total_steps) as show:
                for at in progress:
                    show(at)
                    send(at.step)
                    if devices.agree_any(interrupted()):
                        progress.close()
                        raise Interrupted(
                            f"{label} at step {at.step} of {at.total_steps}; the same command resumes it"
                        )
                send(math.inf)
    return [trial.record_path(out) for trial in trials]


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[Progress], None]]:
    """A progress bar; yields what brings it up to date."""
    shown = False
    # None: shown on a terminal, silent in a pipe.
    quiet = None if devices.is_first() else True
    with tqdm(total=total, desc=label, unit="step", disable=quiet) as bar:

        def show(at: Progress) -> None:
            nonlocal shown
            if not shown:  # set-up and what a resumed trial has are no speed
                bar.initial = at.step
                bar.unpause()
            shown = True
            bar.n = at.step
            bar.set_postfix(
                kl=_short(at.measurement.get("validation_kl")),
                agree=_short(at.measurement.get("validation_agreement")),
                train=f"{at.train_seconds:.1f}s",
            )

        yield show


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only makes the yielded function true; a second one ends."""
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_table(paths: Sequence[Path]) -> None:
    """One line per record: how it ended, at what, and when it reached the target."""
    if not devices.is_first():
        return
    head = ("optimizer", "seed", "status", "steps", "seconds", "KL", "agreement", "accuracy")
    rows = [(*head, "steps to target", "record")]
    target = ""
    for path in paths:
        record = records.read(path)
        last, header = record.measurements[-1], record.header
        metric, value, mode = header["target"].values()
        target = f"{metric} {'<=' if mode == 'min' else '>='} {value:g}"
        reached = records.first_reaching(record.measurements, header["target"])
        rows.append(
            (
                header["optimizer"],
                str(header["seed"]),
                record.end["status"] if record.end else "interrupted",
                str(record.end["step"] if record.end else last["step"]),
                f"{last['train_seconds']:.1f}" if "train_seconds" in last else "-",
                _short(last["validation_kl"]),
                _short(last["validation_agreement"]),
                _short(last["validation_accuracy"]),
                str(reached["step"]) if reached else "not reached",
                str(path),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"KL, agreement and accuracy on validation data; target: {target}")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
