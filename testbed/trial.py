"""The loop: batch, lesson, learn.

task, seed -> batch -> lesson -> learn -> state
state -> evaluation (off the clock) -> measurement -> record
"""

import dataclasses
import datetime
import functools
import hashlib
import math
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import random

from testbed import compilation, devices, provenance, records, teachers
from testbed.checkpoints import Cadence, Checkpoints
from testbed.clock import Ledger
from testbed.models import public
from testbed.programs import Optimizer, Programs, State, compile_programs, load_course
from testbed.tasks.task import Task, has_precision
from testbed.world import Keys, Params, make_keys

DISPATCH = 0.5  # seconds that one dispatch should take at most: how soon an interrupt is heard


class Start(NamedTuple):
    """A checkpoint that a student starts from, instead of from random weights."""

    path: Path
    sha256: str
    fresh_head: bool  # whether the classifier starts at zero all the same

    def params(self, shapes: Params) -> Params:
        """The student's parameters; see `public.fill` for what is refused."""
        return public.fill(
            self.path.read_bytes(), f"--init {self.path}", shapes, fresh_head=self.fresh_head
        )


@dataclasses.dataclass(frozen=True)
class Trial:
    """One optimizer on one task, once.

    Attributes:
      task: what is learned.
      protocol: how a batch becomes a lesson.
      optimizer: what learns.
      total_steps: what the optimizer is told.
      seed: of first weights, of the optimizer's randomness, and of the lessons, unless
      lesson_seed: says another one for those, which several students then share.
      start: a checkpoint instead of random weights.
    """

    task: Task
    protocol: str
    optimizer: Optimizer
    total_steps: int
    seed: int
    start: Start | None = None
    lesson_seed: int | None = None

    def identity(self) -> dict[str, Any]:
        """All that determines the trial, as it stands in the header of its record."""
        return {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint(_teacher_sha256(self.task)),
            "teacher_sha256": list(_teacher_sha256(self.task)),
            "protocol": self.protocol,
            "temperature": self.task.temperature,
            "optimizer": self.optimizer.name,
            "optimizer_sha256": self.optimizer.sha256,
            "hyperparameters": dict(self.optimizer.hyperparameters),
            "seed": self.seed,
            "total_steps": self.total_steps,
        } | self._rare()

    def _rare(self) -> dict[str, Any]:
        """Of the identity, what few trials have."""
        found: dict[str, Any] = {}
        if self.start:
            found["init"] = {"sha256": self.start.sha256, "fresh_head": self.start.fresh_head}
        if self.lessons != self.seed:
            found["lesson_seed"] = self.lessons
        return found

    @property
    def lessons(self) -> int:
        """The seed of its lessons."""
        return self.seed if self.lesson_seed is None else self.lesson_seed

    def keys(self) -> Keys:
        """Its streams of randomness."""
        return make_keys(self.seed, self.lessons)

    def compile(self) -> Programs:
        """All that it runs, compiled ahead."""
        return compile_programs(
            self.task, self.protocol, self.optimizer, self.total_steps, from_start=self.start is not None
        )

    def record_path(self, out: Path) -> Path:
        """`<out>/<task>/<optimizer>/<run_id>.jsonl`."""
        return out / self.task.name / self.optimizer.name / f"{records.run_id(self.identity())}.jsonl"


class Progress(NamedTuple):
    """Where a trial stands."""

    step: int
    total_steps: int
    train_seconds: float
    measurement: dict[str, Any]  # the latest


def measured_steps(task: Task, total_steps: int) -> list[int]:
    """The steps after which a trial is measured, from 0 to total_steps."""
    every = max(1, min(task.measure_every, total_steps // 10), math.ceil(total_steps / 100))
    return [*range(0, total_steps, every), total_steps]


def run(
    trial: Trial, out: Path, *, command: str = "", fresh: bool = False, dispatch: float = math.inf
) -> Generator[Progress]:
    """Runs a trial, or what is left of it, and tells its progress after every dispatch.

    A finished trial is not run again; an interrupted one goes on from its checkpoint and ends
    bit-identical to one that was never interrupted. Whoever closes the iterator interrupts the
    trial.

    Args:
      trial: what to run.
      out: folder of records; the trial's own is `trial.record_path(out)`.
      command: for the header.
      fresh: forget what is there of this trial.
      dispatch: seconds that a dispatch should take at most, if less than `DISPATCH`.

    Raises:
      RequestError: the optimizer fails on the student's parameters, `out` cannot be written, or
        another process runs this trial. No record is begun.
    """
    path = devices.together(lambda: trial.record_path(out))
    first = devices.is_first()
    with ExitStack() as stack:
        devices.together(lambda: stack.enter_context(records.lock(path)) if first else None)
        checkpoints = Checkpoints(path.with_suffix(".checkpoint"))
        stack.callback(checkpoints.close)
        if fresh and first:
            path.unlink(missing_ok=True)
            checkpoints.delete()
        if not devices.agree_any(first and is_finished(path)):
            yield from _run(trial, path, checkpoints, command, dispatch)
        checkpoints.close()
        devices.agree_any(True)  # all have written what they write
        if first:
            checkpoints.delete()


def is_finished(path: Path) -> bool:
    """Whether a record has come to its end (a divergence is an end, a failure is not)."""
    if not path.exists():
        return False
    end = records.read(path).end
    return end is not None and end["status"] in ("finished", "diverged")


def _run(
    trial: Trial, path: Path, checkpoints: Checkpoints, command: str, most: float
) -> Generator[Progress]:
    ledger, task, total = Ledger(), trial.task, trial.total_steps
    with ledger.on("setup_s"):
        course = load_course(task, trial.protocol)
        keys, due = trial.keys(), measured_steps(task, total)
    with ledger.on("compile_s"), compilation.counted() as cache:
        programs = trial.compile()
    with ledger.on("setup_s"):
        hp = {name: trial.optimizer.hyperparameters[name] for name in programs.hyperparameters}
        start = trial.start.params(programs.params) if trial.start else None
        state = jax.block_until_ready(programs.init(keys, hp, start))
    with ledger.on("checkpoint_s"):
        state, done = _restore(checkpoints, path, state)
        length, latest, resumed = done["length"], done["measurement"], done["resumed"]
        ledger.resume(done["ledger"])
        params = programs.eval_params(state.opt_state, state.params)
    with ledger.on("setup_s"):
        worlds, world, served = course.worlds(trial.lessons, int(state.step)), course.world, 0

    def save() -> None:
        with ledger.on("checkpoint_s"):
            done = {"length": length, "measurement": latest, "resumed": resumed + 1}
            checkpoints.save(state, done | {"ledger": ledger.rows()})

    step, finite, dispatch = int(state.step), True, 1
    cadence = Cadence()
    try:
        while True:
            if finite and step in due and (latest is None or latest["step"] < step):
                with ledger.on("eval_s"):
                    scores = programs.examine(params)
                with ledger.on("record_s"):
                    latest = measurement_row(trial, course.n, step, scores, ledger.train_s)
                    rows = [latest]
                    if not length:
                        used = jax.tree.leaves(state.params)[0].sharding.num_devices
                        header = header_row(
                            trial,
                            programs.params,
                            used,
                            compilation_cache=cache,
                            command=command,
                            checkpointed=programs.checkpointed,
                        )
                        rows = [header, latest]
                    length = _append(path, *rows, at=length)
            if step == total or not finite:
                break
            with ledger.on("checkpoint_s"):
                is_due = devices.agree_any(cadence.is_due())
            if is_due:
                with cadence.saving():
                    save()
            with ledger.on("record_s"):
                yield Progress(step, total, ledger.train_s, latest or {})
                stop = min(next(s for s in due if s > step), step + int(devices.agree(dispatch)))
            with ledger.on("train_s"):
                begun, first = time.perf_counter(), step
                while step < stop:
                    if step >= served:
                        # While devices still compute, nobody waits for data.
                        idle = state.step.is_ready()  # type: ignore[attr-defined]
                        with ledger.waiting() if idle else nullcontext():
                            world, served = next(worlds)
                    step = min(stop, served)
                    state = programs.advance(state, np.int32(step), world, keys, hp)
                params = programs.eval_params(state.opt_state, state.params)
                jax.block_until_ready((state, params))
                per_step = (time.perf_counter() - begun) / (stop - first)
                step, finite = int(state.step), bool(state.finite)
            dispatch = max(1, min(4 * dispatch, int(min(most, DISPATCH) / per_step)))
    except GeneratorExit:
        save()
        raise
    except Exception as error:
        if length:
            reason = f"{type(error).__name__}: {error}"
            _append(path, end_row("failed", step, reason, None, ledger, resumed), at=length)
        raise
    with ledger.on("record_s"):
        digest = params_sha256(jax.jit(lambda x: x, out_shardings=devices.whole())(state.params))
    status, reason = ending(state)
    _append(path, end_row(status, step, reason, digest, ledger, resumed), at=length)
    yield Progress(step, total, ledger.train_s, latest or {})


def _append(path: Path, *rows: Mapping[str, Any], at: int) -> int:
    """`records.append` by the host that writes; the others only need to know that there is a record."""
    return records.append(path, *rows, at=at) if devices.is_first() else 1


def _restore(checkpoints: Checkpoints, path: Path, start: State) -> tuple[State, dict[str, Any]]:
    """What the checkpoint of a record holds, or the start of a trial where there is none to use."""
    written = path.stat().st_size if devices.is_first() and path.exists() else 0
    restored = checkpoints.restore(start) if devices.agree_any(written > 0) else None
    if restored and devices.agree_any(written >= restored[1]["length"]):
        return restored
    return start, {"length": 0, "measurement": None, "resumed": 0, "ledger": {}}


def end_row(
    status: str, step: int, reason: str, digest: str | None, ledger: Ledger, resumed: int
) -> dict[str, Any]:
    """The last line of a record."""
    return {
        "kind": "end",
        "status": status,
        "step": step,
        "reason": reason,
        "params_sha256": digest,
        "ledger": ledger.rows(),
        "resumed": resumed,
    }


def measurement_row(
    trial: Trial, n: int, step: int, scores: Mapping[str, Any], train_seconds: float | None = None
) -> dict[str, Any]:
    """A measurement after a step; n is the number of training images; without seconds if not timed."""
    return {
        "kind": "measurement",
        "step": step,
        "epoch": step * trial.task.batch_size / n,
        **({} if train_seconds is None else {"train_seconds": train_seconds}),
        **{name: float(score) for name, score in scores.items()},
    }


def ending(state: State) -> tuple[str, str]:
    """Status and reason of a trial that ends in this state."""
    if state.finite:
        return "finished", ""
    return "diverged", f"{'parameters are' if np.isfinite(state.loss) else 'loss is'} not finite"


def params_sha256(params: Params) -> str:
    """SHA-256 of the parameters' paths and bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def header_row(
    trial: Trial,
    params: Params,
    used: int,
    *,
    compilation_cache: Mapping[str, int],
    command: str,
    checkpointed: bool = False,
    batch: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The first line of a record.

    Args:
      trial: whose it is.
      params: shapes of the student's parameters.
      used: how many devices it runs on.
      compilation_cache: hits and misses.
      command: what started it.
      checkpointed: whether activations are computed twice, since they do not fit.
      batch: of a batched trial, which is not timed: "id", "size", "vectorized".
    """
    task, identity = trial.task, trial.identity()
    return {
        "kind": "header",
        "schema": records.SCHEMA,
        "run_id": records.run_id(identity),
        **identity,
        "batch_size": task.batch_size,
        "target": task.target._asdict(),
        "timed": batch is None,
        **({"batch": dict(batch)} if batch else {}),
        "versions": provenance.versions(),
        "device": provenance.device() | {"used": used},
        "precision": {
            "parameters": "float32",
            "student": task.precision if has_precision(task.student) else "float32",
            "teachers": [
                task.precision if has_precision(teachers.TEACHERS[name].network) else "float32"
                for name in task.teachers
            ],
        },
        "git": provenance.git(),
        "command": command,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "compilation_cache": dict(compilation_cache),
        "student": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "checkpointed": checkpointed,
            "flops_per_example": _flops_per_example(task, trial.protocol),
        },
        "teacher": {
            name: {
                "parameters": card["parameters"],
                "test_accuracy": card["test_accuracy"],
            }
            for name, card in ((name, teachers.load(name).card) for name in task.teachers)
        },
    }


@functools.cache
def _flops_per_example(task: Task, protocol: str) -> float | None:
    """FLOPs of the student's forward pass, as XLA counts them; None where it does not."""
    image_shape = load_course(task, protocol).world.images.shape[1:]
    batch = jax.ShapeDtypeStruct((8, *image_shape), jnp.float32)
    network = task.in_precision(task.student)
    shapes = jax.eval_shape(network.init, random.key(0), batch)
    cost = jax.jit(network.apply).lower(shapes, batch).cost_analysis()
    return cost["flops"] / batch.shape[0] if cost and "flops" in cost else None


@functools.cache
def _teacher_sha256(task: Task) -> tuple[str, ...]:
    return tuple(teachers.load(name).sha256 for name in task.teachers)
