"""Batched trials: one lesson per step, which all trials of a batch learn from.

Trials of one seed see the same lessons. So the teacher, the dear part of distillation, is asked once
for all of them, whatever their optimizers (`groups.py` has what they compute).
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from testbed import compilation, devices, records
from testbed.checkpoints import Cadence, Checkpoints
from testbed.clock import Ledger
from testbed.errors import RequestError
from testbed.groups import Group, compile_groups, compile_teach, require_fits, too_large
from testbed.lessons import Lesson
from testbed.programs import State, load_course
from testbed.trial import (
    DISPATCH,
    Trial,
    end_row,
    ending,
    header_row,
    is_finished,
    measured_steps,
    measurement_row,
    params_sha256,
    run,
)
from testbed.world import Course


class Progress(NamedTuple):
    """Where a batch stands."""

    step: int
    total_steps: int
    trials: int
    diverged: int


def sharing_lessons(trials: Sequence[Trial], size: int) -> list[list[Trial]]:
    """The trials in batches of at most `size`, in their order, alike in all that lessons depend on."""
    kinds: dict[Any, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(_kind(trial), []).append(trial)
    return [kind[i : i + size] for kind in kinds.values() for i in range(0, len(kind), size)]


def _kind(trial: Trial) -> tuple[Any, ...]:
    return trial.task, trial.protocol, trial.total_steps, trial.lessons, trial.start


def run_batch(
    trials: Sequence[Trial], out: Path, *, command: str = "", together: bool | None = None
) -> Generator[Progress]:
    """Runs trials that share their lessons, or what is left of them; tells progress as `trial.run`.

    Left out are trials that are finished, and those that another process runs. A trial whose optimizer
    branches in Python on a hyperparameter runs after the others, alone and timed. An interrupted batch
    goes on from its checkpoint, if the same trials are left; otherwise it starts again.

    Args:
      trials: alike in task, protocol, total steps, seed of their lessons, and start.
      out: folder of records.
      command: for the headers.
      together: see `groups.compile_groups`.

    Raises:
      TooLarge: the batch does not fit the memory.
      RequestError: as `trial.run`; or there are several hosts.
    """
    if jax.process_count() > 1:
        raise RequestError("batched trials run on one host; spread batches over hosts instead")
    if len({_kind(trial) for trial in trials}) != 1:
        raise ValueError("a batch's trials share their lessons")
    with ExitStack() as stack:
        # In an order of their own, since a checkpoint knows them by it.
        ordered = sorted(trials, key=lambda t: (t.optimizer.name, t.record_path(out).stem))
        mine = [trial for trial in ordered if _claim(stack, trial, out)]
        if not mine:
            return
        with _splitting(len(mine)):
            alone = yield from _run_batch(stack, mine, out, command, together)
    for trial in alone:
        with suppress(records.Busy):
            for at in run(trial, out, command=command):
                yield Progress(at.step, at.total_steps, 1, 0)


@contextmanager
def _splitting(trials: int) -> Iterator[None]:
    """Inside, what a device says of its memory is said of the batch."""
    try:
        yield
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise too_large(trials, "more memory than there is") from error
        raise


def _claim(stack: ExitStack, trial: Trial, out: Path) -> bool:
    """Takes a trial's lock until the stack is closed, if it is to be run here."""
    path = trial.record_path(out)
    with ExitStack() as mine:
        try:
            mine.enter_context(records.lock(path))
        except records.Busy:
            return False
        if is_finished(path):
            return False
        stack.enter_context(mine.pop_all())
    return True


def _run_batch(
    stack: ExitStack, mine: list[Trial], out: Path, command: str, together: bool | None
) -> Generator[Progress, None, list[Trial]]:
    """The batch; returns the trials that cannot be part of one."""
    ledger, one = Ledger(), mine[0]
    with ledger.on("setup_s"):
        course, due = load_course(one.task, one.protocol), measured_steps(one.task, one.total_steps)
    with ledger.on("compile_s"), compilation.counted() as cache:
        teach, shapes = compile_teach(one.task, one.protocol, most=due[1])
        groups, alone = compile_groups(mine, shapes, together)
        if not groups:
            return alone
        require_fits(groups, shapes)
    with ledger.on("setup_s"):
        states = jax.block_until_ready([group.start() for group in groups])
        about = {"command": command, "compilation_cache": cache}
        books = _Books(groups, course.n, out, about)
        folder = out / one.task.name
        checkpoints = Checkpoints(folder / f"batch-{books.id}.checkpoint")
        stack.callback(checkpoints.close)
        books.clear(folder)
    with ledger.on("checkpoint_s"):
        try:
            restored = checkpoints.restore(states)
        except RequestError:  # of another number of devices, in whose places it was
            restored = None
        if restored and books.resume(restored[1]["books"]):
            states = restored[0]
            ledger.resume(restored[1]["ledger"])
    with ledger.on("setup_s"):
        count = shapes.temperature.shape[0]
        lessons = _lessons(one, course, teach, count, books.step)
    yield from _learn(states, groups, lessons, due, books, checkpoints, ledger)
    return alone


def _learn(
    states: list[State],
    groups: Sequence[Group],
    lessons: Iterator["_Lessons"],
    due: Sequence[int],
    books: "_Books",
    checkpoints: Checkpoints,
    ledger: Ledger,
) -> Generator[Progress]:
    """The loop: lessons, learning, measurements, until the last step or until all have diverged."""
    step, alive, total = books.step, books.alive(states), due[-1]
    taught: _Lessons | None = None
    dispatch, cadence = 1, Cadence()

    def save() -> None:
        with ledger.on("checkpoint_s"), cadence.saving():
            checkpoints.save(states, {"books": books.saved(step), "ledger": ledger.rows()})

    try:
        while True:
            if step in due and books.measured < step:
                with ledger.on("eval_s"):
                    parts = zip(groups, states, strict=True)
                    scores = [row for group, state in parts for row in group.examine(state)]
                with ledger.on("record_s"):
                    books.measure(step, scores, alive)
            if step == total or not alive.any():
                break
            if cadence.is_due():
                save()
            with ledger.on("record_s"):
                yield Progress(step, total, len(alive), int(np.sum(~alive)))
                stop = min(next(s for s in due if s > step), step + dispatch)
            with ledger.on("train_s"):
                begun, first = time.perf_counter(), step
                while step < stop:
                    if taught is None or step >= taught.until:
                        taught = next(lessons)
                    step = min(stop, taught.until)
                    parts = zip(groups, states, strict=True)
                    states = [g.learn(s, taught.stack, taught.first, step) for g, s in parts]
                jax.block_until_ready(states)
                per_step = (time.perf_counter() - begun) / (stop - first)
                alive = books.alive(states)
            dispatch = max(1, min(4 * dispatch, int(DISPATCH / per_step)))
    except GeneratorExit:
        save()
        raise
    except Exception as error:
        books.fail(step, f"{type(error).__name__}: {error}", ledger)
        raise
    books.end(states, ledger)
    checkpoints.close()
    checkpoints.delete()
    yield Progress(step, total, len(alive), int(np.sum(~alive)))


class _Lessons(NamedTuple):
    """Lessons [k], the step of the first, and the step up to which they serve."""

    stack: Lesson
    first: int
    until: int


def _lessons(trial: Trial, course: Course, teach: Any, count: int, step: int) -> Iterator[_Lessons]:
    """The lessons from a step on, so many at a time."""
    key = trial.keys().lessons
    for world, until in course.worlds(trial.lessons, step):
        while step < until:
            served = min(step + count, until)
            yield _Lessons(teach(world, key, np.int32(step)), step, served)
            step = served


class _Books:
    """The records of a batch's trials, in the order of its groups."""

    def __init__(self, groups: Sequence[Group], n: int, out: Path, about: Mapping[str, Any]) -> None:
        self._groups, self._n, self._about = groups, n, about
        self._trials = [trial for group in groups for trial in group.trials]
        self._paths = [trial.record_path(out) for trial in self._trials]
        self._lengths = [0] * len(self._trials)
        self.id = records.run_id({"batch": sorted(path.stem for path in self._paths)})
        self.step, self.measured, self._resumed = 0, -1, 0

    def clear(self, folder: Path) -> None:
        """Deletes what is of no use here: checkpoints of other batches, and of trials alone."""
        for path in self._paths:
            Checkpoints(path.with_suffix(".checkpoint")).delete()
            other = records.read(path).header.get("batch", {}).get("id", self.id)
            if other != self.id:  # nobody runs it: its trials are locked here
                Checkpoints(folder / f"batch-{other}.checkpoint").delete()

    def saved(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {
            "lengths": self._lengths,
            "step": step,
            "measured": self.measured,
            "resumed": self._resumed + 1,
        }

    def resume(self, saved: Mapping[str, Any]) -> bool:
        """Goes on from a checkpoint, if the records are still what this batch has written."""
        for path, length in zip(self._paths, saved["lengths"], strict=True):
            if not path.exists() or path.stat().st_size < length:
                return False
            if records.read(path).header.get("batch", {}).get("id") != self.id:
                return False
        self._lengths, self.step = list(saved["lengths"]), saved["step"]
        self.measured, self._resumed = saved["measured"], saved["resumed"]
        return True

    def alive(self, states: Sequence[State]) -> NDArray[np.bool_]:
        """Which trials have not diverged."""
        parts = zip(self._groups, states, strict=True)
        return np.concatenate([np.asarray(s.finite)[: len(g.trials)] for g, s in parts])

    def measure(
        self, step: int, scores: Sequence[Mapping[str, float]], alive: NDArray[np.bool_]
    ) -> None:
        """Appends a measurement to the records of trials that have not diverged."""
        for i in np.flatnonzero(alive).tolist():
            row = measurement_row(self._trials[i], self._n, step, scores[i])
            self._append(i, *([row] if self._lengths[i] else [self._header(i), row]))
        self.measured = step

    def end(self, states: Sequence[State], ledger: Ledger) -> None:
        """Ends all records."""
        ends = []
        with ledger.on("record_s"):
            for group, state in zip(self._groups, jax.device_get(list(states)), strict=True):
                for i in range(len(group.trials)):
                    one = jax.tree.map(lambda x, i=i: x[i], state)
                    ends.append((*ending(one), int(one.step), params_sha256(one.params)))
        for i, (status, reason, step, digest) in enumerate(ends):
            self._append(i, end_row(status, step, reason, digest, ledger, self._resumed))

    def fail(self, step: int, reason: str, ledger: Ledger) -> None:
        """Ends the records that have begun; the trials are run again when they are asked for again."""
        for i, length in enumerate(self._lengths):
            if length:
                self._append(i, end_row("failed", step, reason, None, ledger, self._resumed))

    def _append(self, i: int, *rows: Mapping[str, Any]) -> None:
        self._lengths[i] = records.append(self._paths[i], *rows, at=self._lengths[i])

    def _header(self, i: int) -> dict[str, Any]:
        owners = [group for group in self._groups for _ in group.trials]
        batch = {"id": self.id, "size": len(self._trials), "vectorized": owners[i].vectorized}
        shapes = owners[i].programs.params
        return header_row(self._trials[i], shapes, devices.count(), batch=batch, **self._about)
