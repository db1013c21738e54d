"""Batched trials: one lesson per step, which all trials of a batch train on.

Trials of one seed see the same lessons. So one forward pass of the teachers, the expensive part of
distillation, serves them all, with any optimizers (`groups.py` has the trials' computation).
"""

import functools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from testbed import compilation_cache, devices, process, records
from testbed.errors import RequestError
from testbed.models import public
from testbed.problem.lessons import Params
from testbed.problem.protocols import Lesson
from testbed.records import is_finished
from testbed.training import loop
from testbed.training.alone import is_done, iterate
from testbed.training.checkpoints import Checkpoints, require_fields
from testbed.training.clock import Ledger
from testbed.training.diagnostics import make_counts
from testbed.training.groups import (
    Group,
    compile_groups,
    compile_lessons,
    require_fits,
    too_large,
)
from testbed.training.loop import Progress
from testbed.training.rows import (
    LEDGER,
    RecordWriter,
    end_row,
    header_row,
    measurement_row,
    params_sha256,
)
from testbed.training.step import ending
from testbed.training.trial import Trial

# What a checkpoint has besides the states.
SAVED = {"records": list, "step": int, "measured": int, "resumed": int, "ledger": LEDGER}


def sharing_lessons(trials: Sequence[Trial], size: int) -> list[list[Trial]]:
    """The trials in batches of at most `size`, in their order, equal in all that lessons depend on."""
    kinds: dict[Any, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(_kind(trial), []).append(trial)
    return [kind[i : i + size] for kind in kinds.values() for i in range(0, len(kind), size)]


def _kind(trial: Trial) -> tuple[Any, ...]:
    return trial.problem, trial.total_steps, trial.lessons, trial.init


def iterate_batch(
    trials: Sequence[Trial],
    out: Path,
    *,
    command: str = "",
    vmapped: bool | None = None,
    save_params: bool = False,
) -> Generator[Progress]:
    """Runs trials that share their lessons, or the rest of them; yields progress as `alone.iterate`.

    It skips trials that are finished, and those that another process runs. A trial whose optimizer
    branches in Python on a hyperparameter runs after the others, alone and timed. An interrupted batch
    continues from its checkpoint if the same trials are asked for; otherwise it restarts.

    Args:
      trials: equal in problem, total steps, seed of their lessons, and first weights' checkpoint.
      out: folder of records.
      command: the command line, for the headers.
      vmapped: see `groups.compile_groups`.
      save_params: as in `alone.iterate`.

    Raises:
      TooLarge: the batch does not fit in memory.
      RequestError: as in `alone.iterate`; or there are several hosts.
    """
    if jax.process_count() > 1:
        raise RequestError("batched trials run on one host; spread batches over hosts instead")
    if len({_kind(trial) for trial in trials}) != 1:
        raise ValueError("a batch's trials share their lessons")
    out = out.absolute()  # wherever an optimizer's code goes
    names = ", ".join(dict.fromkeys(trial.optimizer.name for trial in trials))
    with ExitStack() as stack, process.preserved(f"one of the optimizers {names}"):
        # In a fixed order, by which a checkpoint identifies them.
        ordered = sorted(trials, key=lambda t: (t.optimizer.name, t.record_path(out).stem))
        mine = [trial for trial in ordered if _claim(stack, trial, out, save_params)]
        others = [trial for trial in ordered if not any(trial is one for one in mine)]
        ended = [trial for trial in others if _is_ended(trial, out)]
        if not mine:
            _forget(ended, out)
            return
        both = [trial for trial in ordered if any(trial is one for one in (*mine, *ended))]
        run = functools.partial(_run, stack, out, command, vmapped, save_params)
        with _splitting(len(both)):
            try:
                alone = yield from run(both, ended)
            except _NotOne:
                alone = yield from run(mine)
    for trial in alone:
        with suppress(records.Busy):
            yield from iterate(trial, out, command=command, save_params=save_params)


@contextmanager
def _splitting(trials: int) -> Iterator[None]:
    """Inside this context, a device's out-of-memory error becomes TooLarge for the batch."""
    try:
        yield
    except Exception as error:
        # XLA's own, which may be the cause of an optimizer's refusal; of full disks, others say it too.
        cause = error.__cause__ if isinstance(error, RequestError) else error
        if isinstance(cause, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(cause):
            raise too_large(trials, "more memory than a device has") from error
        raise


def _claim(stack: ExitStack, trial: Trial, out: Path, save_params: bool) -> bool:
    """Locks a trial until the stack is closed, unless it is done or another process has it."""
    path = trial.record_path(out)
    with ExitStack() as mine:
        try:
            mine.enter_context(records.lock(path))
        except records.Busy:
            return False
        if is_done(path, save_params):
            return False
        stack.enter_context(mine.pop_all())
    return True


class _NotOne(Exception):  # noqa: N818 (caught where it is raised from)
    """Trials that were ended and those that are left are not all of one batch."""


def _batch_of(path: Path) -> str:
    """The batch that wrote a record; empty: none did."""
    batch = records.read(path).header.get("batch")
    return str(batch.get("id", "")) if isinstance(batch, dict) else ""


def _checkpoint_of(path: Path, batch: str) -> Path:
    """The folder of a batch's checkpoints, from the path of a record."""
    return path.parents[1] / f"batch-{batch}.checkpoint"


def _is_ended(trial: Trial, out: Path) -> bool:
    """Whether its batch ended it, and was killed before it had ended all: its checkpoint is there."""
    path = trial.record_path(out)
    if not any(path.parents[1].glob("batch-*.checkpoint")):
        return False
    batch = _batch_of(path)
    return batch != "" and _checkpoint_of(path, batch).is_dir() and is_finished(path)


def _forget(ended: Sequence[Trial], out: Path) -> None:
    """Deletes the checkpoint of a batch that was killed after it had ended all of its trials."""
    paths = [trial.record_path(out) for trial in ended]
    for path in paths:
        if _batch_of(path) == _id(paths):
            Checkpoints(_checkpoint_of(path, _id(paths))).delete()


def _id(paths: Sequence[Path]) -> str:
    return records.run_id({"batch": sorted(path.stem for path in paths)})


def _run(
    stack: ExitStack,
    out: Path,
    command: str,
    vmapped: bool | None,
    save_params: bool,
    trials: list[Trial],
    ended: Sequence[Trial] = (),
) -> Generator[Progress, None, list[Trial]]:
    """Runs the batch; returns the trials that cannot be batched.

    Raises:
      _NotOne: those of `ended` are not of this batch.
    """
    ledger, one = Ledger(), trials[0]
    due = loop.due_steps(one.task, one.total_steps)
    with ledger.on("setup_s"):
        one.problem.prepare()
    with ledger.on("compile_s"), compilation_cache.counted() as cache:
        make_lessons, shapes = compile_lessons(one.problem, longest=due[1])
        groups, alone = compile_groups(trials, shapes, vmapped)
        if not groups:
            return alone
        require_fits(groups, shapes)
    with ledger.on("setup_s"):
        about = {"command": command, "compilation_cache": cache}
        writers = RecordWriters(groups, out, about, ended)
        checkpoints = Checkpoints(_checkpoint_of(writers.paths[0], writers.id))
        if any(_batch_of(trial.record_path(out)) != writers.id for trial in ended):
            raise _NotOne
        stack.callback(checkpoints.close)
        writers.clear()
    together = Together(ledger, groups, writers, checkpoints, due[-1], save_params)
    with ledger.on("setup_s"):
        count = shapes.temperature.shape[0]
        together.lessons = _lessons(one, make_lessons, count, together.step)
    yield from loop.drive(together, due)
    return alone


class _Lessons(NamedTuple):
    """Lessons [k], the step of the first, and the step up to which they are used."""

    stack: Lesson
    first: int
    until: int


def _lessons(trial: Trial, make: Any, count: int, step: int) -> Iterator[_Lessons]:
    """The lessons from a step on, `count` at a time."""
    key = trial.keys().lessons
    for data, until in trial.problem.source.batches(trial.lessons, step):
        while step < until:
            end = min(step + count, until)
            yield _Lessons(make(data, key, np.int32(step)), step, end)
            step = end


class Together:
    """Runs the trials of a batch together; a runner for `loop.drive`.

    Args:
      ledger: of the whole batch.
      groups: the trials, compiled.
      writers: of their records.
      checkpoints: the batch's own.
      total_steps: the horizon.
      save_params: write the evaluated parameters beside each record at the end.

    Attributes:
      lessons: those from `step` on; to be set before the first advance.
    """

    lessons: Iterator[_Lessons]

    def __init__(
        self,
        ledger: Ledger,
        groups: Sequence[Group],
        writers: "RecordWriters",
        checkpoints: Checkpoints,
        total_steps: int,
        save_params: bool = False,
    ) -> None:
        self.ledger, self.step, self.measured = ledger, 0, -1
        self._groups, self._writers, self._checkpoints = groups, writers, checkpoints
        self._total_steps, self._resumed, self._save_params = total_steps, 0, save_params
        self._current: _Lessons | None = None
        self._program = " ".join(group.programs.sha256 for group in groups)
        with ledger.on("setup_s"):
            self._states = jax.block_until_ready([group.start() for group in groups])
        with ledger.on("checkpoint_s"):
            self._restore()
        self._finite = self._wait()

    @property
    def alive(self) -> bool:
        """See Runner."""
        return bool(self._finite.any())

    def _wait(self) -> NDArray[np.bool_]:
        """Blocks until the states are computed; returns which trials have not diverged."""
        jax.block_until_ready(self._states)
        pairs = zip(self._groups, self._states, strict=True)
        return np.concatenate([np.asarray(s.finite)[: len(g.trials)] for g, s in pairs])

    def advance(self, stop: int) -> None:
        """See Runner."""
        while self.step < stop:
            if self._current is None or self.step >= self._current.until:
                self._current = next(self.lessons)
            lessons, self.step = self._current, min(stop, self._current.until)
            pairs = zip(self._groups, self._states, strict=True)
            self._states = [g.train(s, lessons.stack, lessons.first, self.step) for g, s in pairs]
        self._finite = self._wait()

    def measure(self) -> None:
        """See Runner."""
        with self.ledger.on("eval_s"):
            pairs, end = zip(self._groups, self._states, strict=True), self.step == self._total_steps
            scores = [row for group, state in pairs for row in group.evaluate(state, end)]
        with self.ledger.on("record_s"):
            for i in np.flatnonzero(self._finite).tolist():
                self._writers.measure(i, self.step, scores[i])
        self.measured = self.step

    def save(self, last: bool = False) -> bool:
        """See Runner."""
        with self.ledger.on("checkpoint_s"):
            saved = {"records": self._writers.written, "step": self.step, "measured": self.measured}
            saved |= {"resumed": self._resumed + 1, "ledger": self.ledger.rows()}
            return self._checkpoints.save(self._states, saved, program=self._program, last=last)

    def _restore(self) -> None:
        """Continues from the batch's newest checkpoint that fits its records, if there is one."""

        def fits(meta: Mapping[str, Any]) -> bool:
            require_fields(meta, SAVED)
            return self._writers.fit(meta["records"])

        try:
            restored = self._checkpoints.restore(self._states, fits, program=self._program)
        except RequestError:  # from another number of devices, over which it was divided differently
            restored = None
        if restored:
            self._states, saved = restored
            self.step, self.measured = saved["step"], saved["measured"]
            self._resumed = saved["resumed"]
            self.ledger.resume(saved["ledger"])
            self._writers.resume(saved["records"])
        else:
            self._writers.start_over()

    def end(self) -> None:
        """See Runner."""
        self.save(last=True)  # if it is killed while it ends its records, the rest are ended from here
        ends = []
        with self.ledger.on("record_s"):
            if self._save_params:  # before any record says that its trial is finished
                self._write_params()
            states = jax.device_get(list(self._states))
            for group, stacked in zip(self._groups, states, strict=True):
                counts = make_counts(group.trials[0].optimizer.diagnostics, devices.mesh())
                for i in range(len(group.trials)):
                    state = jax.tree.map(lambda x, i=i: x[i], stacked)
                    counted = counts(state.opt_state)
                    ends.append((*ending(state), int(state.step), params_sha256(state.params), counted))
        for i, (status, reason, step, digest, counted) in enumerate(ends):
            row = end_row(status, step, reason, digest, self.ledger, self._resumed, counted)
            self._writers.append(i, row)
        self._checkpoints.close()
        self._checkpoints.delete()

    def _write_params(self) -> None:
        """Writes the evaluated parameters of every trial whose record has not ended."""
        evaluated = []
        for group, state in zip(self._groups, self._states, strict=True):
            stacked = jax.device_get(group.programs.eval_params(state))
            evaluated += [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(group.trials))]
        self._writers.write_params(evaluated)

    def fail(self, reason: str) -> None:
        """See `Runner`. The trials are rerun at the next request for them."""
        for i, written in enumerate(self._writers.written):
            if written["length"]:
                row = end_row("failed", self.step, reason, None, self.ledger, self._resumed)
                self._writers.append(i, row)

    def progress(self) -> Progress:
        """See Runner."""
        diverged = int(np.sum(~self._finite))
        seconds, trials = self.ledger.train_s, len(self._finite)
        return Progress(self.step, self._total_steps, seconds, {}, trials, diverged)


class RecordWriters:
    """The records of a batch's trials, in the order of its groups.

    Args:
      groups: the trials.
      out: folder of records.
      about: what headers say of the process.
      ended: those of the trials whose records are whole already; nothing is written to them.
    """

    def __init__(
        self, groups: Sequence[Group], out: Path, about: Mapping[str, Any], ended: Sequence[Trial] = ()
    ) -> None:
        self._about = about
        self._owners = [group for group in groups for _ in group.trials]
        self._trials = [trial for group in groups for trial in group.trials]
        self.paths = [trial.record_path(out) for trial in self._trials]
        self._writers = [RecordWriter(path) for path in self.paths]
        self._ended = {trial.record_path(out) for trial in ended}
        self.id = _id(self.paths)

    @property
    def written(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of each record."""
        return [writer.written for writer in self._writers]

    def clear(self) -> None:
        """Deletes checkpoints that this batch cannot use: of other batches, and of trials alone."""
        for path in self.paths:
            Checkpoints(path.with_suffix(".checkpoint")).delete()
            other = _batch_of(path)
            if other not in ("", self.id):  # no process runs it: its trials are locked here
                Checkpoints(_checkpoint_of(path, other)).delete()

    def fit(self, written: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the records are this batch's, and still begin with what they held at a checkpoint."""
        pairs = zip(self._writers, written, strict=True)
        return all(_batch_of(path) == self.id for path in self.paths) and all(
            kept["length"] > 0 and writer.fits(kept) for writer, kept in pairs
        )

    def resume(self, written: Sequence[Mapping[str, Any]]) -> None:
        """Continues the records after what they held at a checkpoint."""
        for writer, kept in zip(self._writers, written, strict=True):
            writer.resume(kept, cut=writer.path not in self._ended)

    def start_over(self) -> None:
        """See `RecordWriter`."""
        for writer in self._writers:
            if writer.path not in self._ended:
                writer.start_over()

    def measure(self, i: int, step: int, scores: Mapping[str, float]) -> None:
        """Appends a measurement to a trial's record."""
        row = measurement_row(self._trials[i], step, scores)
        self.append(i, *([row] if self._writers[i].length else [self._header(i), row]))

    def append(self, i: int, *rows: Mapping[str, Any]) -> None:
        """Appends rows to a trial's record, unless it is whole."""
        if self.paths[i] not in self._ended:
            self._writers[i].append(*rows)

    def write_params(self, evaluated: Sequence[Params]) -> None:
        """Writes each trial's parameters beside its record, unless that is whole."""
        for path, params in zip(self.paths, evaluated, strict=True):
            if path not in self._ended:
                public.save(path.with_suffix(".npz"), params)

    def _header(self, i: int) -> dict[str, Any]:
        owner = self._owners[i]
        batch = {"id": self.id, "size": len(self._trials), "vectorized": owner.vmapped}
        shapes = owner.programs.params
        return header_row(self._trials[i], shapes, devices.count(), batch=batch, **self._about)
