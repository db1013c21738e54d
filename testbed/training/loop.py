"""The loop, shared by a trial alone and a batch of trials.

    state -> advance (on the clock) -> measure, save (off the clock) -> ... -> end

Steps at which measurements are due, the size of dispatches, checkpoints, interruption, failure and end
are implemented here once. The runner defines what is advanced and measured: `alone.Alone` or
`batch.Together`.
"""

import math
import time
from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

from testbed import devices
from testbed.errors import describe, notify
from testbed.problem.task import Task
from testbed.records import NotWritten
from testbed.training.checkpoints import Cadence
from testbed.training.clock import Ledger

DISPATCH = 0.5  # target limit of one dispatch, in seconds: the delay until an interrupt is noticed


class Progress(NamedTuple):
    """The progress of a trial or a batch."""

    step: int
    total_steps: int
    train_seconds: float
    measurement: dict[str, Any]  # the latest; empty for a batch
    trials: int = 1
    diverged: int = 0


class Runner(Protocol):
    """The interface that the loop drives. Each method adds its time to its own row of the ledger."""

    ledger: Ledger

    @property
    def step(self) -> int:
        """Updates so far."""

    @property
    def measured(self) -> int:
        """The step of the latest measurement; -1: none."""

    @property
    def alive(self) -> bool:
        """Whether any trial has not diverged."""

    def advance(self, stop: int) -> None:
        """Trains up to step `stop`, or to a divergence; blocks until it is done. The loop times it."""

    def measure(self) -> None:
        """Evaluates, and records the scores."""

    def save(self, last: bool = False) -> bool:
        """Saves a checkpoint; `last`: and waits for it. False: it is known that it was not written."""

    def end(self) -> None:
        """Ends the records."""

    def fail(self, reason: str) -> None:
        """Ends the started records, as failed. They can be resumed."""

    def progress(self) -> Progress:
        """The current progress."""


def due_steps(task: Task, total_steps: int) -> list[int]:
    """The steps after which a trial is measured, from 0 to total_steps."""
    every = max(1, min(task.measure_every, total_steps // 10), math.ceil(total_steps / 100))
    return [*range(0, total_steps, every), total_steps]


def drive(runner: Runner, due: list[int], longest: float = math.inf) -> Generator[Progress]:
    """Runs to the last step, or until all have diverged; yields after every dispatch.

    Closing the iterator interrupts the run, and a checkpoint is saved.

    Args:
      runner: the runner, which starts from its current step.
      due: steps of measurements, ascending; the last is the end.
      longest: target limit of a dispatch, in seconds, if less than DISPATCH.
    """
    ledger, cadence, size = runner.ledger, Cadence(), 1
    try:
        while True:
            if runner.alive and runner.step in due and runner.measured < runner.step:
                runner.measure()
            if runner.step == due[-1] or not runner.alive:
                break
            with ledger.on("checkpoint_s"):
                save_now = devices.any_host(cadence.is_due())
            if save_now:
                with cadence.saving():
                    runner.save()
            with ledger.on("record_s"):
                yield runner.progress()
                stop = next(step for step in due if step > runner.step)
                stop = min(stop, runner.step + int(devices.from_host_0(size)))
            with ledger.training():
                begun, first = time.perf_counter(), runner.step
                runner.advance(stop)
                per_step = (time.perf_counter() - begun) / (stop - first)
            size = max(1, min(4 * size, int(min(longest, DISPATCH) / per_step)))
    except GeneratorExit:
        if not runner.save(last=True):
            notify(
                f"step {runner.step} could not be saved: the same command goes on from an earlier "
                "checkpoint, or starts over"
            )
        raise
    except NotWritten:  # nothing is wrong with the trial, and a record cannot say that it failed
        raise
    except Exception as error:
        runner.fail(describe(error))
        raise
    runner.end()
    yield runner.progress()
