"""A serializable part of a sweep, and running it in any process."""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from benchmarks.runner import interrupts, pause
from benchmarks.trials import choose_problem
from optimizers import registry
from optimizers.spec import Spec
from testbed import compilation_cache, devices, plugins, records
from testbed.cli import Interrupted, command_line
from testbed.problem.problem import Problem
from testbed.training.alone import is_done, iterate
from testbed.training.batch import iterate_batch, sharing_lessons
from testbed.training.groups import TooLarge
from testbed.training.optimizer import Optimizer, from_spec
from testbed.training.trial import Trial

LEAST = 8  # trials of a batch, however many workers there are: fewer save little


class Request(NamedTuple):
    """One trial."""

    opt: str  # as behind --opt; a path to a file is absolute
    steps: int
    seed: int
    hyperparameters: Mapping[str, Any]  # all that differ from the defaults
    lesson_seed: int | None = None  # as in Trial


@dataclasses.dataclass(frozen=True)
class Job:
    """Trials that one worker runs: alone, one after the other, or as batches."""

    task: Mapping[str, Any]  # option of `add_task_options` -> value
    requests: tuple[Request, ...]
    out: str  # folder of records, absolute
    command: str  # for headers
    batched: bool
    save_params: bool = False  # whether parameters are written beside records


def make_jobs(args: argparse.Namespace, trials: Sequence[Trial], out: Path, at_once: int) -> list[Job]:
    """Trials as jobs: in batches of trials that share their lessons, or alone.

    Args:
      args: the options of `add_task_options`, and `opt`, `batch`, `no_batch`.
      trials: all of them, finished or not, so that the batches of a resumed command are what they were.
      out: folder of records.
      at_once: how many jobs run at a time.
    """
    size = min(args.batch, max(LEAST, math.ceil(len(trials) / at_once)))
    specs = registry.find_all(args.opt)
    opts = {spec.name: absolute(opt) for spec, opt in zip(specs, args.opt, strict=True)}
    names = ("task", "protocol", "horizon", "steps", "lessons_from", "precision", "devices")
    options = {name: getattr(args, name) for name in names}
    # As decided here: a worker's devices may be of another kind than this machine's.
    options["precision"] = trials[0].task.precision
    options["task"] = absolute(args.task)
    batches = [[trial] for trial in trials] if args.no_batch else sharing_lessons(trials, size)
    return [
        Job(
            task=options | {"hosts": None, "processes": None, "process": None},
            requests=tuple(_request(opts[trial.optimizer.name], trial) for trial in batch),
            out=str(out.absolute()),
            command=command_line(),
            batched=not args.no_batch,
        )
        for batch in batches
    ]


def _request(opt: str, trial: Trial) -> Request:
    return Request(opt, trial.total_steps, trial.seed, chosen(trial.optimizer), trial.lesson_seed)


def absolute(word: str) -> str:
    """A task or an optimizer as a process in any folder finds it: the path of a file is absolute."""
    wrapper, inner = registry.split_wrapper(word)
    found = str(Path(inner).absolute()) if inner.endswith(".py") or "/" in inner else inner
    return f"{wrapper}+{found}" if wrapper else found


def chosen(optimizer: Optimizer) -> dict[str, Any]:
    """The hyperparameters that are not the defaults: numbers, which any process can read.

    A default may be of a type that is defined in a user's file.
    """
    defaults = plugins.defaults(optimizer.build)
    return {
        name: value
        for name, value in optimizer.hyperparameters.items()
        if name not in defaults or value is not defaults[name]
    }


def make_trials(job: Job) -> list[Trial]:
    """The trials of a job, in the order of its requests.

    Raises:
      RequestError: the task cannot be run, or an optimizer not be found, on this machine.
    """
    if job.batched:
        devices.use_cores(job.task["devices"])
    problem = _problem(tuple(sorted(job.task.items())), _modified(job.task["task"]))
    made: dict[Any, Optimizer] = {}  # one for all trials of a kind: its checksum takes long
    for r in job.requests:
        if _kind(r) not in made:
            made[_kind(r)] = from_spec(_find(r.opt), r.hyperparameters)
    return [Trial(problem, made[_kind(r)], r.steps, r.seed, r.lesson_seed) for r in job.requests]


def _kind(request: Request) -> tuple[Any, ...]:
    """What its optimizer follows from."""
    return request.opt, repr(sorted(request.hyperparameters.items()))


@functools.cache
def _problem(options: tuple[tuple[str, Any], ...], modified: int) -> Problem:
    """The same object each time, with its data and programs."""
    del modified  # part of the cache's key
    return choose_problem(argparse.Namespace(**dict(options))).problem


def _modified(path: str) -> int:
    """When a file was last modified, in nanoseconds; 0 for what is not a file."""
    return Path(path).stat().st_mtime_ns if Path(path).is_file() else 0


def _find(opt: str) -> Spec:
    """`registry.find`, but the same each time until its file changes: programs are compiled once."""
    return _found(opt, _modified(registry.split_wrapper(opt)[1]))


@functools.cache
def _found(opt: str, modified: int) -> Spec:
    del modified  # part of the cache's key
    return registry.find(opt)


def run_job(job: Job, progress: Callable[[], None] = lambda: None) -> None:
    """Runs the trials of a job that are not finished, and waits for those that other processes run.

    Args:
      job: what to run.
      progress: called after every dispatch.

    Raises:
      Interrupted: on SIGINT, SIGTERM or SIGHUP, once the running trial has saved a checkpoint.
      RequestError: a trial cannot be run.
    """
    compilation_cache.enable_cache()
    out, left = Path(job.out), make_trials(job)
    with interrupts() as interrupted:
        while left:
            run = _in_batches if job.batched else _in_turn
            for at in (steps := run(left, out, command=job.command, save_params=job.save_params)):
                del at
                progress()
                if devices.any_host(interrupted()):
                    steps.close()
                    raise Interrupted("the same command resumes it")
            left = [trial for trial in left if not _is_done(trial, job)]
            progress()
            if left and not pause(interrupted):
                raise Interrupted("the same command resumes it")


def _is_done(trial: Trial, job: Job) -> bool:
    """Whether it is, as the host that writes sees it."""
    path = trial.record_path(Path(job.out))
    return devices.any_host(devices.is_first() and is_done(path, job.save_params))


def _in_turn(trials: Sequence[Trial], out: Path, **options: Any) -> Generator[Any]:
    """Trials alone, one after the other, but for those that another process runs."""
    for trial in trials:
        # Of several hosts, the others have given up.
        with suppress(*([records.Busy] if jax.process_count() == 1 else [])):
            yield from iterate(trial, out, **options)


def _in_batches(trials: Sequence[Trial], out: Path, **options: Any) -> Generator[Any]:
    """Trials in batches, as large as the memory allows."""
    size = len(trials)
    waiting = sharing_lessons(trials, size)
    while waiting:
        batch = waiting.pop(0)
        try:
            yield from iterate_batch(batch, out, **options)
        except TooLarge as error:
            tqdm.write(str(error), file=sys.stderr)
            if not error.fits:
                yield from _in_turn(batch, out, **options)
                continue
            size = min(size, error.fits)
            waiting = sharing_lessons([t for b in [batch, *waiting] for t in b], size)
