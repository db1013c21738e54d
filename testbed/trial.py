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
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax import Array, random

from testbed import (
    compilation,
    devices,
    lessons,
    provenance,
    records,
    resident,
    streamed,
    teachers,
)
from testbed.checkpoints import Checkpoints
from testbed.clock import Ledger
from testbed.errors import RequestError
from testbed.lessons import Lesson
from testbed.models import public
from testbed.tasks.task import Task, has_precision
from testbed.world import Course, Keys, Params, Student, World, make_keys, make_lesson

# A kill costs a second, or twenty times what a checkpoint does: they take 5 % of the time at most.
CHECKPOINT_EVERY, CHECKPOINT_SHARE = 1.0, 1 / 20
DISPATCH = 0.5  # seconds that one dispatch should take at most: how soon an interrupt is heard


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the loop must know of an optimizer.

    Attributes:
      name: as it stands in the record.
      build: total_steps, **hyperparameters -> an optax transformation.
      hyperparameters: all of them, defaults included.
      sha256: of the optimizer's source.
      eval_params: opt_state, params -> the parameters to evaluate; on the clock.
    """

    name: str
    build: Callable[..., optax.GradientTransformation]
    hyperparameters: Mapping[str, Any]
    sha256: str
    eval_params: Callable[[Any, Params], Params] | None = None


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
    """One optimizer on one task, once."""

    task: Task
    protocol: str
    optimizer: Optimizer
    total_steps: int
    seed: int
    start: Start | None = None

    def identity(self) -> dict[str, Any]:
        """All that determines the trial, as it stands in the header of its record."""
        return {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint(_teacher_sha256(self.task)),
            "teacher_sha256": list(_teacher_sha256(self.task)),
            "protocol": self.protocol,
            "optimizer": self.optimizer.name,
            "optimizer_sha256": self.optimizer.sha256,
            "hyperparameters": dict(self.optimizer.hyperparameters),
            "seed": self.seed,
            "total_steps": self.total_steps,
        } | self._start()

    def _start(self) -> dict[str, Any]:
        if not self.start:
            return {}
        return {"init": {"sha256": self.start.sha256, "fresh_head": self.start.fresh_head}}

    def record_path(self, out: Path) -> Path:
        """`<out>/<task>/<optimizer>/<run_id>.jsonl`."""
        return out / self.task.name / self.optimizer.name / f"{records.run_id(self.identity())}.jsonl"


class State(NamedTuple):
    """What a step hands to the next."""

    step: Array  # [] int32: updates so far
    params: Params
    opt_state: Any
    loss: Array  # []: of the last step, before its update
    finite: Array  # [] bool: the last loss and the parameters are


class Progress(NamedTuple):
    """Where a trial stands."""

    step: int
    total_steps: int
    train_seconds: float
    measurement: dict[str, Any]  # the latest


def learn(
    state: State,
    lesson: Lesson,
    key: Array,
    student: Student,
    optimizer: optax.GradientTransformationExtraArgs,
) -> State:
    """One step: loss, gradient, update. Knows neither protocol nor optimizer.

    The optimizer receives optax's extra arguments: `value`, `grad`, `value_fn` (parameters -> loss on
    this lesson), `logits_fn` (parameters -> student's logits) and `key`, fresh at every step.
    """

    def logits_fn(params: Params) -> Array:
        return student(params, lesson.images)

    # optax's line searches hand the other extra arguments on to value_fn, by these names.
    def value_fn(params: Params, key: Any = None, logits_fn: Any = None) -> Array:
        del key, logits_fn
        return lessons.loss(lesson, student(params, lesson.images))

    value, grad = jax.value_and_grad(value_fn)(state.params)
    updates, opt_state = optimizer.update(
        grad,
        state.opt_state,
        state.params,
        value=value,
        grad=grad,
        value_fn=value_fn,
        logits_fn=logits_fn,
        key=key,
    )
    _require_same_tree("update returned", updates, "the parameters", state.params)
    _require_same_tree("update returned a state", opt_state, "the one of init", state.opt_state)
    params = optax.apply_updates(state.params, updates)
    finite = functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    )
    return State(state.step + 1, params, opt_state, value, finite & jnp.isfinite(value))


def _require_same_tree(what: str, tree: Any, other: str, like: Any) -> None:
    """Raises RequestError naming the first path at which two trees differ in structure or shape."""
    ours, theirs = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (tree, like)
    )
    for path in [*theirs, *ours]:
        if ours.get(path) != theirs.get(path):
            raise RequestError(
                f"{what} {ours.get(path, 'nothing')} at {path or 'the root'}, where {other} "
                f"has {theirs.get(path, 'nothing')}; return one array for each, of its shape"
            )


class Programs(NamedTuple):
    """Compiled for one task, protocol, optimizer and horizon; hyperparameters are arguments."""

    init: Callable[..., State]  # keys, hyperparameters, parameters to start from or None -> state
    advance: Callable[..., State]  # state, stop, world, keys, hyperparameters -> state
    eval_params: Callable[[Any, Params], Params]
    examine: Callable[[Params], dict[str, float]]
    hyperparameters: tuple[str, ...]  # those that are arguments and not compiled in
    params: Params  # shapes of the student's parameters


def load_course(task: Task, protocol: str) -> Course:
    """What a task's trials are taught from and examined on."""
    return (streamed if task.streamed else resident).load_course(task, protocol)


def compile_programs(trial: Trial) -> Programs:
    """Compiles ahead all that a trial runs.

    A trial that differs in seed or in floating-point hyperparameters alone gets the same programs.

    Raises:
      RequestError: the optimizer fails on the student's parameters.
    """
    values = trial.optimizer.hyperparameters
    traced = tuple(sorted(name for name, value in values.items() if type(value) is float))
    try:
        try:
            return _compile_programs(trial, traced)
        except jax.errors.JAXTypeError:
            # The optimizer branches in Python on a hyperparameter: it is compiled in.
            return _compile_programs(trial, ())
    except RequestError as error:
        raise RequestError(f"optimizer {trial.optimizer.name}: {error}") from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise RequestError(
            f"optimizer {trial.optimizer.name}: {type(error).__name__}: {message[:300]}; "
            "--debug shows where"
        ) from error


def _compile_programs(trial: Trial, traced: tuple[str, ...]) -> Programs:
    optimizer = trial.optimizer
    static = tuple((k, v) for k, v in sorted(optimizer.hyperparameters.items()) if k not in traced)
    return _programs(
        trial.task,
        trial.protocol,
        optimizer.name,
        optimizer.build,
        optimizer.eval_params,
        trial.total_steps,
        static,
        traced,
        trial.start is not None,
        devices.mesh(),
    )


@functools.lru_cache(maxsize=64)
def _programs(
    task: Task,
    protocol: str,
    name: str,
    build: Callable[..., optax.GradientTransformation],
    eval_params: Callable[[Any, Params], Params] | None,
    total_steps: int,
    static: tuple[tuple[str, Any], ...],
    traced: tuple[str, ...],
    from_start: bool,
    mesh: Any,
) -> Programs:
    del name, mesh  # parts of the cache's key
    course = load_course(task, protocol)
    world, network = course.world, task.in_precision(task.student)

    def student(params: Params, images: Array) -> Array:
        return network.apply({"params": params}, images)  # type: ignore[return-value]

    def make_optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(build(total_steps, **dict(static), **hp))

    def init(keys: Keys, hp: Mapping[str, Any], start: Params | None) -> State:
        view = jnp.zeros((1, *world.images.shape[1:]))
        params = network.init(keys.weights, view)["params"] if start is None else start
        opt_state = jax.tree.map(jnp.asarray, make_optimizer(hp).init(params))
        return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.bool(True))

    def advance(state: State, stop: Array, world: World, keys: Keys, hp: Mapping[str, Any]) -> State:
        optimizer = make_optimizer(hp)

        def step(state: State) -> State:
            lesson = make_lesson(task, protocol, world, keys.lessons, state.step)
            return learn(state, lesson, random.fold_in(keys.optimizer, state.step), student, optimizer)

        # One body, compiled once, however many steps are asked for: where a trial stops between
        # dispatches changes no bit of it.
        return jax.lax.while_loop(lambda s: (s.step < stop) & s.finite, step, state)

    keys, hp = make_keys(0), dict.fromkeys(traced, 0.0)
    params = jax.eval_shape(lambda: init(keys, hp, None).params)
    begin = _compile_init(init, keys, hp, params if from_start else None)
    state = jax.tree.map(_placed, jax.eval_shape(init, keys, hp, None), begin.output_shardings)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    evaluated = eval_params or (lambda opt_state, params: params)
    shapes = jax.eval_shape(evaluated, state.opt_state, state.params)
    _require_same_tree("eval_params returned", shapes, "the parameters", state.params)
    stepped = jax.jit(advance, donate_argnums=0, out_shardings=placed)
    chosen = jax.jit(evaluated, out_shardings=placed.params)
    return Programs(
        init=begin,
        advance=stepped.lower(state, jnp.int32(0), world, keys, hp).compile(),
        eval_params=chosen.lower(state.opt_state, state.params).compile() if eval_params else evaluated,
        examine=course.make_examine(student, state.params),
        hyperparameters=traced,
        params=params,
    )


def _compile_init(init: Callable[..., State], keys: Keys, hp: Mapping[str, Any], start: Params) -> Any:
    """Decides where a state goes: parameters as `devices` says, the rest as its optimizer lets it."""
    params = jax.eval_shape(init, keys, hp, start).params
    whole = devices.whole()
    # Copies: the parameters, their gradient, and an optimizer's state of about two.
    placed: Any = (whole, devices.parameters(params, copies=4), None, whole, whole)
    return jax.jit(init, out_shardings=State(*placed)).lower(keys, hp, start).compile()


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def measured_steps(task: Task, total_steps: int) -> list[int]:
    """The steps after which a trial is measured, from 0 to total_steps."""
    every = max(1, min(task.measure_every, total_steps // 10), math.ceil(total_steps / 100))
    return [*range(0, total_steps, every), total_steps]


def run(trial: Trial, out: Path, *, command: str = "", fresh: bool = False) -> Generator[Progress]:
    """Runs a trial, or what is left of it, and tells its progress after every dispatch.

    A finished trial is not run again; an interrupted one goes on from its checkpoint and ends
    bit-identical to one that was never interrupted. Whoever closes the iterator interrupts the
    trial.

    Args:
      trial: what to run.
      out: folder of records; the trial's own is `trial.record_path(out)`.
      command: for the header.
      fresh: forget what is there of this trial.

    Raises:
      RequestError: the optimizer fails on the student's parameters, `out` cannot be written, or
        another process runs this trial. No record is begun.
    """
    path = trial.record_path(out)
    first = devices.is_first()
    with ExitStack() as stack:
        if first:
            stack.enter_context(records.lock(path))
        checkpoints = Checkpoints(path.with_suffix(".checkpoint"))
        stack.callback(checkpoints.close)
        if fresh and first:
            path.unlink(missing_ok=True)
            checkpoints.delete()
        if not devices.agree(first and is_finished(path)):
            yield from _run(trial, path, checkpoints, command)
        checkpoints.close()
        devices.agree(True)  # all have written what they write
        if first:
            checkpoints.delete()


def is_finished(path: Path) -> bool:
    """Whether a record has come to its end (a divergence is an end, a failure is not)."""
    if not path.exists():
        return False
    end = records.read(path).end
    return end is not None and end["status"] in ("finished", "diverged")


def _run(trial: Trial, path: Path, checkpoints: Checkpoints, command: str) -> Generator[Progress]:
    ledger, task, total = Ledger(), trial.task, trial.total_steps
    with ledger.on("setup_s"):
        course = load_course(task, trial.protocol)
        keys, due = make_keys(trial.seed), measured_steps(task, total)
    with ledger.on("compile_s"), compilation.counted() as cache:
        programs = compile_programs(trial)
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
        worlds, world, served = course.worlds(trial.seed, int(state.step)), course.world, 0

    def save() -> None:
        with ledger.on("checkpoint_s"):
            done = {"length": length, "measurement": latest, "resumed": resumed + 1}
            checkpoints.save(state, done | {"ledger": ledger.rows()})

    step, finite, dispatch = int(state.step), True, 1
    next_save = time.monotonic() + CHECKPOINT_EVERY
    try:
        while True:
            if finite and step in due and (latest is None or latest["step"] < step):
                with ledger.on("eval_s"):
                    scores = programs.examine(params)
                with ledger.on("record_s"):
                    latest = _measurement(trial, course.n, step, ledger.train_s, scores)
                    rows = (
                        [latest] if length else [_header(trial, course, state, cache, command), latest]
                    )
                    length = _append(path, *rows, at=length)
            if step == total or not finite:
                break
            begun = time.monotonic()
            if devices.agree(begun > next_save):
                save()
                cost = time.monotonic() - begun
                next_save = begun + cost + max(CHECKPOINT_EVERY, cost / CHECKPOINT_SHARE)
            with ledger.on("record_s"):
                yield Progress(step, total, ledger.train_s, latest or {})
            stop = min(next(s for s in due if s > step), step + int(devices.agree(dispatch)))
            with ledger.on("train_s"):
                begun, first = time.perf_counter(), step
                while step < stop:
                    if step >= served:
                        with ledger.waiting():
                            world, served = next(worlds)
                    step = min(stop, served)
                    state = programs.advance(state, np.int32(step), world, keys, hp)
                params = programs.eval_params(state.opt_state, state.params)
                jax.block_until_ready((state, params))
                per_step = (time.perf_counter() - begun) / (stop - first)
                step, finite = int(state.step), bool(state.finite)
            dispatch = max(1, min(4 * dispatch, int(DISPATCH / per_step)))
    except GeneratorExit:
        save()
        raise
    except Exception as error:
        if length:
            reason = f"{type(error).__name__}: {error}"
            _append(path, _end("failed", step, reason, None, ledger, resumed), at=length)
        raise
    with ledger.on("record_s"):
        digest = params_sha256(state.params)
    status, reason = ("finished", "") if finite else ("diverged", _not_finite(state))
    _append(path, _end(status, step, reason, digest, ledger, resumed), at=length)
    yield Progress(step, total, ledger.train_s, latest or {})


def _append(path: Path, *rows: Mapping[str, Any], at: int) -> int:
    """`records.append` by the host that writes; the others only need to know that there is a record."""
    return records.append(path, *rows, at=at) if devices.is_first() else 1


def _restore(checkpoints: Checkpoints, path: Path, start: State) -> tuple[State, dict[str, Any]]:
    """What the checkpoint of a record holds, or the start of a trial where there is none to use."""
    written = path.stat().st_size if devices.is_first() and path.exists() else 0
    restored = checkpoints.restore(start) if devices.agree(written) else None
    if restored and devices.agree(written >= restored[1]["length"]):
        return restored
    return start, {"length": 0, "measurement": None, "resumed": 0, "ledger": {}}


def _end(
    status: str, step: int, reason: str, digest: str | None, ledger: Ledger, resumed: int
) -> dict[str, Any]:
    return {
        "kind": "end",
        "status": status,
        "step": step,
        "reason": reason,
        "params_sha256": digest,
        "ledger": ledger.rows(),
        "resumed": resumed,
    }


def _measurement(
    trial: Trial, n: int, step: int, train_seconds: float, scores: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "measurement",
        "step": step,
        "epoch": step * trial.task.batch_size / n,
        "train_seconds": train_seconds,
        **{name: float(score) for name, score in scores.items()},
    }


def _not_finite(state: State) -> str:
    return "parameters are not finite" if jnp.isfinite(state.loss) else "loss is not finite"


def params_sha256(params: Params) -> str:
    """SHA-256 of the parameters' paths and bytes."""
    digest = hashlib.sha256()
    whole = jax.jit(lambda x: x, out_shardings=devices.whole())(params)
    for path, leaf in sorted(flatten_dict(whole, sep="/").items()):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _header(
    trial: Trial, course: Course, state: State, cache: Mapping[str, int], command: str
) -> dict[str, Any]:
    task, identity = trial.task, trial.identity()
    return {
        "kind": "header",
        "schema": records.SCHEMA,
        "run_id": records.run_id(identity),
        **identity,
        "batch_size": task.batch_size,
        "target": task.target._asdict(),
        "timed": True,
        "versions": provenance.versions(),
        "device": provenance.device() | {"used": jax.tree.leaves(state.params)[0].sharding.num_devices},
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
        "compilation_cache": dict(cache),
        "student": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "flops_per_example": _flops_per_example(task, state.params, course.world.images.shape[1:]),
        },
        "teacher": {
            name: {
                "parameters": card["parameters"],
                "test_accuracy": card["test_accuracy"],
            }
            for name, card in ((name, teachers.load(name).card) for name in task.teachers)
        },
    }


def _flops_per_example(task: Task, params: Params, image_shape: tuple[int, ...]) -> float | None:
    """FLOPs of the student's forward pass, as XLA counts them; None where it does not."""
    batch = jax.ShapeDtypeStruct((8, *image_shape), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    network = task.in_precision(task.student)
    cost = jax.jit(network.apply).lower({"params": shapes}, batch).cost_analysis()
    return cost["flops"] / batch.shape[0] if cost and "flops" in cost else None


@functools.cache
def _teacher_sha256(task: Task) -> tuple[str, ...]:
    return tuple(teachers.load(name).sha256 for name in task.teachers)
