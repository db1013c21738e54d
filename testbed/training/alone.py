"""Runs a trial alone: to its end, timed, resumed after an interruption.

task, seed -> batch -> lesson -> train_step -> state
state -> evaluation (off the clock) -> measurement -> record
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from testbed import compilation_cache, devices, process, records
from testbed.errors import notify, refusing
from testbed.models import public
from testbed.problem.lessons import Params
from testbed.training import diagnostics, loop
from testbed.training.checkpoints import Checkpoints, require_fields
from testbed.training.clock import Ledger
from testbed.training.loop import Progress
from testbed.training.rows import (
    LEDGER,
    WRITTEN,
    RecordWriter,
    RowList,
    end_row,
    header_row,
    measurement_row,
    params_sha256,
)
from testbed.training.step import State, ending
from testbed.training.trial import Trial

# What a checkpoint has besides the state.
SAVED = {"record": WRITTEN, "measurement": dict, "resumed": int, "ledger": LEDGER}


class Result(NamedTuple):
    """What `train` returns."""

    measurements: list[dict[str, Any]]  # step, epoch, train_seconds, train_kl, validation_kl, ...
    params: Params  # the evaluated parameters, after the last step
    opt_state: Any
    end: dict[str, Any]  # status ("finished" or "diverged"), step, ledger, ...


def train(trial: Trial, *, diagnose: Sequence[str] = ()) -> Result:
    """Runs a trial and writes nothing.

    Args:
      trial: the trial to run.
      diagnose: names of diagnostics.

    Raises:
      RequestError: the optimizer fails on the student's parameters, or a diagnostic is unknown.
    """
    rows = RowList()
    alone = Alone(trial, rows, diagnose=diagnostics.choose(diagnose))
    for _ in alone.run():
        pass
    _, *measurements, end = rows.rows
    return Result(measurements, alone.params, alone.state.opt_state, end)


def run(
    trial: Trial,
    out: Path | str = "runs",
    *,
    save_params: bool = False,
    diagnose: Sequence[str] = (),
    fresh: bool = False,
) -> records.Record:
    """Runs a trial, or the rest of it, and returns its record, as `benchmarks/run.py` does.

    A finished trial is not run again; an interrupted one continues from its checkpoint (at most one a
    second, and at most 5 % of the time), and ends bit-identical to an uninterrupted one.

    Args:
      trial: the trial to run.
      out: folder of records; the trial's own is `trial.record_path(out)`.
      save_params: write the evaluated parameters beside the record, as an .npz that `Trial(init=...)`
        and `--init` read. A finished trial without that file is run again.
      diagnose: names of diagnostics, to be measured in addition to the scores: grad_norm, update_norm,
        sharpness, optimizer. A finished trial is not run again for them.
      fresh: run it again, even if it is finished.

    Raises:
      RequestError: the optimizer fails on the student's parameters, `out` cannot be written, or
        another process runs this trial. No record is started.
    """
    compilation_cache.enable_cache()
    out = Path(out)
    for _ in iterate(trial, out, save_params=save_params, diagnose=diagnose, fresh=fresh):
        pass
    return records.read(trial.record_path(out))


def iterate(
    trial: Trial,
    out: Path,
    *,
    command: str = "",
    fresh: bool = False,
    longest: float = math.inf,
    save_params: bool = False,
    diagnose: Sequence[str] = (),
) -> Generator[Progress]:
    """Runs a trial, or the rest of it, and yields its progress after every dispatch.

    A finished trial is not run again; an interrupted one continues from its checkpoint and ends
    bit-identical to an uninterrupted one. Closing the iterator interrupts the trial.

    Args:
      trial: the trial to run.
      out: folder of records; the trial's own is `trial.record_path(out)`.
      command: the command line, for the header.
      fresh: run it again, even if it is finished; the earlier record is replaced.
      longest: target limit of a dispatch, in seconds, if less than `loop.DISPATCH`.
      save_params: write the evaluated parameters beside the record, as an .npz that `--init` reads. A
        finished trial without that file is run again.
      diagnose: names of `diagnostics`, to be measured in addition to the scores.

    Raises:
      RequestError: the optimizer fails on the student's parameters, `out` cannot be written, or
        another process runs this trial. No record is started.
    """
    out = out.absolute()  # wherever an optimizer's code goes
    path = devices.try_on_all_hosts(lambda: trial.record_path(out))
    names, first = diagnostics.choose(diagnose), devices.is_first()
    params_path = path.with_suffix(".npz") if save_params else None
    with ExitStack() as stack, process.preserved(f"optimizer {trial.optimizer.name}"):
        devices.try_on_all_hosts(lambda: stack.enter_context(records.lock(path)) if first else None)
        checkpoints = Checkpoints(path.with_suffix(".checkpoint"))
        stack.callback(checkpoints.close)
        again = fresh or (records.is_finished(path) and not is_done(path, save_params))
        if first and again:  # the record is replaced with its first row, not before
            checkpoints.delete()
            path.with_suffix(".npz").unlink(missing_ok=True)
        if not devices.any_host(first and not again and records.is_finished(path)):
            if first and not path.exists():
                notify_of_other_versions(trial, path)
            writer = RecordWriter(path)
            alone = Alone(trial, writer, checkpoints, command, names, params_path)
            yield from alone.run(longest)
        checkpoints.close()
        devices.any_host(True)  # all hosts have written their files
        if first:
            checkpoints.delete()


def is_done(path: Path, save_params: bool) -> bool:
    """Whether a record is finished and, where they are asked for, its parameters are beside it."""
    return records.is_finished(path) and (not save_params or path.with_suffix(".npz").exists())


def notify_of_other_versions(trial: Trial, path: Path) -> None:
    """Says so where an interrupted trial was the same, but for what its optimizer was then."""
    now = trial.identity()
    for checkpoint in sorted(path.parent.glob("*.checkpoint")):
        header = records.read(checkpoint.with_suffix(".jsonl")).header
        differs = [name for name, value in now.items() if header.get(name) != value]
        if differs == ["optimizer_sha256"]:
            notify(
                f"optimizer {trial.optimizer.name} has changed since trial {checkpoint.stem} was "
                "interrupted: its source, or what it reads when it is imported, such as the "
                "environment; this is another trial, and starts at step 0"
            )


class Alone:
    """Runs a trial alone; a runner for `loop.drive`.

    Args:
      trial: the trial to run.
      writer: of its record.
      checkpoints: the trial's own; None: the trial cannot be resumed.
      command: the command line, for the header.
      diagnose: from `diagnostics.choose`.
      params_path: where the evaluated parameters are written at the end.
    """

    def __init__(
        self,
        trial: Trial,
        writer: RecordWriter | RowList,
        checkpoints: Checkpoints | None = None,
        command: str = "",
        diagnose: tuple[str, ...] = (),
        params_path: Path | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._trial, self._writer, self._checkpoints = trial, writer, checkpoints
        self._command, self._params_path = command, params_path
        with self.ledger.on("setup_s"):
            trial.problem.prepare()
            source, self._keys = trial.problem.source, trial.keys()
        with self.ledger.on("compile_s"), compilation_cache.counted() as self._cache:
            self._compiled = trial.compile()
        with self.ledger.on("setup_s"):
            names = self._compiled.hyperparameters
            self._hp = {name: trial.optimizer.hyperparameters[name] for name in names}
            start = trial.init.params(self._compiled.params) if trial.init else None
            self.state: State = jax.block_until_ready(self._compiled.init(self._keys, self._hp, start))
        self._latest, self._resumed = dict[str, Any](), 0
        with self.ledger.on("checkpoint_s"):
            self._restore()
            self._wait()
        with self.ledger.on("compile_s"):
            self._diagnose = self._compile_diagnose(diagnose)
            with refusing(f"optimizer {trial.optimizer.name}, diagnostics"):
                self._counts = diagnostics.make_counts(trial.optimizer.diagnostics, devices.mesh())
                self._counts(self.state.opt_state)
        with self.ledger.on("setup_s"):
            self._batches = source.batches(trial.lessons, self.step)
            self._data, self._served = source.data, 0

    def run(self, longest: float = math.inf) -> Generator[Progress]:
        """Runs the remaining steps."""
        due = loop.due_steps(self._trial.task, self._trial.total_steps)
        yield from loop.drive(self, due, longest)

    @property
    def measured(self) -> int:
        """See Runner."""
        return self._latest.get("step", -1)

    def advance(self, stop: int) -> None:
        """See Runner."""
        step = self.step
        while step < stop:
            if step >= self._served:
                # While devices still compute, nothing waits for data.
                idle = self.state.step.is_ready()  # type: ignore[attr-defined]
                with self.ledger.waiting() if idle else nullcontext():
                    self._data, self._served = next(self._batches)
            step = min(stop, self._served)
            arguments = (np.int32(step), self._data, self._keys, self._hp)
            self.state = self._compiled.advance(self.state, *arguments)
        self._wait()

    def _wait(self) -> None:
        """Blocks until the state and the parameters to evaluate are computed."""
        self.params = self._compiled.eval_params(self.state.opt_state, self.state.params)
        jax.block_until_ready((self.state, self.params))
        self.step, self.alive = int(self.state.step), bool(self.state.finite)

    def measure(self) -> None:
        """See Runner."""
        with self.ledger.on("eval_s"):
            scores: Mapping[str, Any] = self._compiled.evaluate(
                self.params, self.step == self._trial.total_steps
            )
            if self._diagnose:
                scores = {**scores, **self._diagnose(*self._next_step())}
        with self.ledger.on("record_s"):
            row = measurement_row(self._trial, self.step, scores, self.ledger.train_s)
            self._latest = row
            self._writer.append(*([row] if self._writer.length else [self._header(), row]))

    def _next_step(self) -> tuple[Any, ...]:
        """What the next step is given; the training stream does not advance."""
        data = self._trial.problem.source.batch_at(self._trial.lessons, self.step)
        return self.state, data, self._keys, self._hp

    def save(self, last: bool = False) -> bool:
        """See Runner."""
        if self._checkpoints is None or isinstance(self._writer, RowList):
            return True
        with self.ledger.on("checkpoint_s"):
            meta: dict[str, Any] = {"record": self._writer.written, "measurement": self._latest}
            meta |= {"resumed": self._resumed + 1, "ledger": self.ledger.rows()}
            program = self._compiled.sha256
            return self._checkpoints.save(self.state, meta, program=program, last=last)

    def end(self) -> None:
        """See Runner."""
        with self.ledger.on("record_s"):
            params = _replicated(self.state.params)
            digest = params_sha256(params)
            if self._params_path:
                evaluated = _replicated(self.params)
                if devices.is_first():
                    public.save(self._params_path, evaluated)
            counts = self._counts(self.state.opt_state)
        status, reason = ending(self.state)
        row = end_row(status, self.step, reason, digest, self.ledger, self._resumed, counts)
        self._writer.append(row)

    def fail(self, reason: str) -> None:
        """See Runner."""
        if self._writer.length:
            self._writer.append(end_row("failed", self.step, reason, None, self.ledger, self._resumed))

    def progress(self) -> Progress:
        """See Runner."""
        return Progress(self.step, self._trial.total_steps, self.ledger.train_s, self._latest)

    def _restore(self) -> None:
        """Continues from the newest checkpoint that fits the record, if there is one."""
        writer = self._writer
        if self._checkpoints is None or isinstance(writer, RowList):
            return

        def fits(meta: Mapping[str, Any]) -> bool:
            require_fields(meta, SAVED)
            return writer.fits(meta["record"])

        restored = self._checkpoints.restore(self.state, fits, program=self._compiled.sha256)
        if restored:
            self.state, done = restored
            self._latest, self._resumed = done["measurement"], done["resumed"]
            self.ledger.resume(done["ledger"])
            writer.resume(done["record"])
        else:
            writer.start_over()

    def _header(self) -> dict[str, Any]:
        return header_row(
            self._trial,
            self._compiled.params,
            jax.tree.leaves(self.state.params)[0].sharding.num_devices,
            compilation_cache=self._cache,
            command=self._command,
            checkpointed=self._compiled.checkpointed,
        )

    def _compile_diagnose(self, names: tuple[str, ...]) -> Any:
        """The diagnostics as a function of `_next_step`, compiled once for all trials, or None."""
        if not names:
            return None
        compiled, optimizer = self._compiled, self._trial.optimizer
        with refusing(f"optimizer {optimizer.name}, --diagnose"):
            diagnose = diagnostics.make_diagnose(
                names, compiled.key, optimizer.diagnostics, checkpointed=compiled.checkpointed
            )
            jax.block_until_ready(diagnose(*self._next_step()))  # compiles, unless a trial before has
        return diagnose


def _replicated(params: Params) -> Params:
    return jax.jit(lambda x: x, out_shardings=devices.replicated())(params)
