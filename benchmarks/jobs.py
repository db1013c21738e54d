"""A part of a sweep, in words that any process can make trials of again, and running it."""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.commands import Interrupted, choose_task, interrupts, make_trial
from optimizers import registry
from optimizers.spec import Spec
from testbed import compilation, devices, records
from testbed.tasks.task import Task
from testbed.trial import Trial, run


class Request(NamedTuple):
    """One trial."""

    opt: str  # as behind --opt; a path to a file is absolute
    steps: int
    seed: int
    hyperparameters: Mapping[str, Any]  # all that differ from the defaults


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker runs at a time."""

    task: Mapping[str, Any]  # what the options of `add_task_options` say
    requests: tuple[Request, ...]
    out: str  # folder of records, absolute
    command: str  # for headers
    batched: bool


def make_trials(job: Job) -> list[Trial]:
    """The trials of a job, in the order of its requests.

    Raises:
      RequestError: the task cannot be served here.
      OptimizerError: an optimizer cannot be found here.
    """
    task = _choose(tuple(sorted(job.task.items())))
    return [
        make_trial(task, job.task["protocol"], _find(r.opt), r.steps, r.seed, r.hyperparameters)
        for r in job.requests
    ]


@functools.cache
def _choose(options: tuple[tuple[str, Any], ...]) -> Task:
    """The same object each time: programs and data are kept by it."""
    task, *_ = choose_task(argparse.Namespace(**dict(options)))
    return task


def _find(opt: str) -> Spec:
    """`registry.find`, but the same each time until its file changes: programs are compiled once."""
    path = Path(opt)
    return _found(opt, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.cache
def _found(opt: str, modified: int) -> Spec:
    del modified  # part of the cache's key
    return registry.find(opt)


def run_job(job: Job, progress: Callable[[int], None] = lambda steps: None) -> None:
    """Runs what is not finished of a job; what other processes run, it waits for.

    Args:
      job: what to run.
      progress: told, again and again, how many steps of the job's trials are done.

    Raises:
      Interrupted: on SIGINT or SIGTERM, once the running trial has saved a checkpoint.
      RequestError: a trial cannot be run.
    """
    compilation.enable_cache()
    out, done, left = Path(job.out), 0, make_trials(job)
    with interrupts() as interrupted:
        while left:
            busy = []
            for trial in left:
                try:
                    for at in (steps := run(trial, out, command=job.command)):
                        progress(done + at.step)
                        if devices.agree_any(interrupted()):
                            steps.close()
                            raise Interrupted("the same command resumes it")
                    done += trial.total_steps
                except records.Busy:
                    if jax.process_count() > 1:  # the other hosts have given up
                        raise
                    busy.append(trial)
            if busy and not _sleep(interrupted):
                raise Interrupted("the same command goes on")
            left = busy


def _sleep(interrupted: Callable[[], bool]) -> bool:
    """A second, unless interrupted."""
    for _ in range(10):
        if interrupted():
            return False
        time.sleep(0.1)
    return True
