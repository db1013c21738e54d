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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax import Array, random

from testbed import checkpoints, compilation, lessons, provenance, records, teachers
from testbed.clock import Ledger
from testbed.errors import RequestError
from testbed.examination import Exam, HeldOut, examine, prepare
from testbed.lessons import PROTOCOLS, Batch, Lesson
from testbed.tasks.task import Task

Params = Any  # nested dictionaries of arrays

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


@dataclasses.dataclass(frozen=True)
class Trial:
    """One optimizer on one task, once."""

    task: Task
    protocol: str
    optimizer: Optimizer
    total_steps: int
    seed: int

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
        }

    def record_path(self, out: Path) -> Path:
        """`<out>/<task>/<optimizer>/<run_id>.jsonl`."""
        return out / self.task.name / self.optimizer.name / f"{records.run_id(self.identity())}.jsonl"


class World(NamedTuple):
    """What a trial is taught from; the same arrays for all trials of a task."""

    images: Array  # [n, h, w, c]
    labels: Array  # [n]
    central_logits: Array  # [teachers, n, classes]
    teachers: tuple[Params, ...]


class Keys(NamedTuple):
    """The streams of randomness of one seed. The optimizer's own leaves the others untouched."""

    weights: Array
    lessons: Array
    optimizer: Array


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


def make_keys(seed: int) -> Keys:
    """Keys of a seed."""
    return Keys(*random.split(random.key(seed), 3))


def make_lesson(task: Task, protocol: str, world: World, key: Array, step: Array) -> Lesson:
    """The lesson of a step: a function of task, protocol, seed and step alone."""
    step_key = random.fold_in(key, step)
    index = epoch_order(key, step, task.batch_size, len(world.images))
    batch = Batch(world.images[index], world.labels[index], world.central_logits[:, index])
    teach = functools.partial(teach_all, task, world.teachers)
    return PROTOCOLS[protocol](step_key, batch, task.crop, teach, task.temperature)


def teach_all(task: Task, params: tuple[Params, ...], images: Array) -> Array:
    """Logits [teachers, b, classes] of all teachers of a task."""
    networks = [teachers.NETWORKS[name] for name in task.teachers]
    logits = [network.apply({"params": p}, images) for network, p in zip(networks, params, strict=True)]
    return jax.lax.stop_gradient(jnp.stack(logits))  # type: ignore[arg-type]  # flax: apply is Any


def epoch_order(key: Array, step: Array, batch_size: int, n: int) -> Array:
    """Which images [batch_size] a step sees: shuffled epochs one after the other, then cut in batches.

    Epochs do not align with batches, as in the paper's input pipeline.
    """
    position = step * batch_size + jnp.arange(batch_size)
    first = step * batch_size // n
    # Streams apart from the steps' keys, which count up from 0.
    epoch_keys = jax.vmap(lambda e: random.fold_in(random.fold_in(key, 2**31), first + e))(
        jnp.arange(batch_size // n + 2)
    )
    orders = jax.vmap(lambda k: random.permutation(k, n))(epoch_keys)
    return orders[position // n - first, position % n]


def learn(
    state: State,
    lesson: Lesson,
    key: Array,
    student: Callable[[Params, Array], Array],
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

    init: Callable[..., State]  # world, keys, hyperparameters -> state
    advance: Callable[..., State]  # state, stop, world, keys, hyperparameters -> state
    eval_params: Callable[[Any, Params], Params]
    examine: Callable[[Params, Exam], dict[str, Array]]
    hyperparameters: tuple[str, ...]  # those that are arguments and not compiled in


@functools.cache
def load_world(task: Task) -> World:
    """The task's training images and teachers, on the device."""
    data = task.load()
    params = tuple(jax.device_put(teachers.load(name).params) for name in task.teachers)
    images, labels = (jnp.asarray(array) for array in data.training)
    central_logits = jax.jit(functools.partial(teach_all, task))(params, images)
    return World(images, labels, central_logits, params)


@functools.cache
def load_exam(task: Task, protocol: str) -> Exam:
    """The examination of a task under a protocol; the same for every seed and optimizer."""
    world = load_world(task)
    steps = jnp.arange(8)
    lesson_at = functools.partial(make_lesson, task, protocol)
    # A key that no seed has: seeds split theirs.
    training = jax.jit(lambda w: jax.lax.map(lambda i: lesson_at(w, random.key(2**31), i), steps))(world)
    data = task.load()

    def prepare_part(params: tuple[Params, ...], images: Array, labels: Array) -> HeldOut:
        teach = functools.partial(teach_all, task, params)
        return prepare(images, labels, task.crop, teach, task.views_per_image)

    validation, test = (
        jax.jit(prepare_part)(world.teachers, *part) for part in (data.validation, data.test)
    )
    return Exam(training, validation, test)


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
) -> Programs:
    del name  # part of the cache's key
    world, exam = load_world(task), load_exam(task, protocol)

    def student(params: Params, images: Array) -> Array:
        return task.student.apply({"params": params}, images)  # type: ignore[return-value]

    def make_optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(build(total_steps, **dict(static), **hp))

    def init(world: World, keys: Keys, hp: Mapping[str, Any]) -> State:
        params = task.student.init(keys.weights, world.images[:1])["params"]
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
    state = jax.eval_shape(init, world, keys, hp)
    evaluated = eval_params or (lambda opt_state, params: params)
    params = jax.eval_shape(evaluated, state.opt_state, state.params)
    _require_same_tree("eval_params returned", params, "the parameters", state.params)
    return Programs(
        init=jax.jit(init).lower(world, keys, hp).compile(),
        advance=jax.jit(advance, donate_argnums=0).lower(state, jnp.int32(0), world, keys, hp).compile(),
        eval_params=jax.jit(evaluated).lower(state.opt_state, state.params).compile()
        if eval_params
        else evaluated,
        examine=jax.jit(functools.partial(examine, student)).lower(params, exam).compile(),
        hyperparameters=traced,
    )


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
    with records.lock(path):
        checkpoint = path.with_suffix(".checkpoint.npz")
        if fresh:
            path.unlink(missing_ok=True)
            checkpoint.unlink(missing_ok=True)
        if not is_finished(path):
            yield from _run(trial, path, checkpoint, command)
        checkpoint.unlink(missing_ok=True)


def is_finished(path: Path) -> bool:
    """Whether a record has come to its end (a divergence is an end, a failure is not)."""
    if not path.exists():
        return False
    end = records.read(path).end
    return end is not None and end["status"] in ("finished", "diverged")


def _run(trial: Trial, path: Path, checkpoint: Path, command: str) -> Generator[Progress]:
    ledger, task, total = Ledger(), trial.task, trial.total_steps
    with ledger.on("setup_s"):
        world, exam = load_world(task), load_exam(task, trial.protocol)
        keys, due = make_keys(trial.seed), measured_steps(task, total)
    with ledger.on("compile_s"), compilation.counted() as cache:
        programs = compile_programs(trial)
    with ledger.on("setup_s"):
        hp = {name: trial.optimizer.hyperparameters[name] for name in programs.hyperparameters}
        state = jax.block_until_ready(programs.init(world, keys, hp))
    with ledger.on("checkpoint_s"):
        state, done = _restore(checkpoint, path, state)
        length, latest, resumed = done["length"], done["measurement"], done["resumed"]
        ledger.resume(done["ledger"])
        params = programs.eval_params(state.opt_state, state.params)

    def save() -> None:
        with ledger.on("checkpoint_s"):
            done = {"length": length, "measurement": latest, "resumed": resumed + 1}
            checkpoints.save(checkpoint, state, done | {"ledger": ledger.rows()})

    step, finite, dispatch = int(state.step), True, 1
    next_save = time.monotonic() + CHECKPOINT_EVERY
    try:
        while True:
            if finite and step in due and (latest is None or latest["step"] < step):
                with ledger.on("eval_s"):
                    scores = jax.device_get(programs.examine(params, exam))
                with ledger.on("record_s"):
                    latest = _measurement(trial, len(world.images), step, ledger.train_s, scores)
                    rows = [latest] if length else [_header(trial, state, cache, command), latest]
                    length = records.append(path, *rows, at=length)
            if step == total or not finite:
                break
            if (begun := time.monotonic()) > next_save:
                save()
                cost = time.monotonic() - begun
                next_save = begun + cost + max(CHECKPOINT_EVERY, cost / CHECKPOINT_SHARE)
            with ledger.on("record_s"):
                yield Progress(step, total, ledger.train_s, latest or {})
            stop = min(next(s for s in due if s > step), step + dispatch)
            with ledger.on("train_s"):
                begun = time.perf_counter()
                state = programs.advance(state, np.int32(stop), world, keys, hp)
                params = programs.eval_params(state.opt_state, state.params)
                jax.block_until_ready((state, params))
                per_step = (time.perf_counter() - begun) / (stop - step)
                step, finite = int(state.step), bool(state.finite)
            dispatch = max(1, min(4 * dispatch, int(DISPATCH / per_step)))
    except GeneratorExit:
        save()
        raise
    except Exception as error:
        if length:
            reason = f"{type(error).__name__}: {error}"
            records.append(path, _end("failed", step, reason, None, ledger, resumed), at=length)
        raise
    with ledger.on("record_s"):
        digest = params_sha256(state.params)
    status, reason = ("finished", "") if finite else ("diverged", _not_finite(state))
    records.append(path, _end(status, step, reason, digest, ledger, resumed), at=length)
    yield Progress(step, total, ledger.train_s, latest or {})


def _restore(checkpoint: Path, path: Path, start: State) -> tuple[State, dict[str, Any]]:
    """What the checkpoint of a record holds, or the start of a trial where there is none to use."""
    restored = checkpoints.load(checkpoint, start) if path.exists() else None
    if restored and path.stat().st_size >= restored[1]["length"]:
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
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _header(trial: Trial, state: State, cache: Mapping[str, int], command: str) -> dict[str, Any]:
    task = trial.task
    identity = trial.identity()
    world = load_world(task)
    return {
        "kind": "header",
        "schema": records.SCHEMA,
        "run_id": records.run_id(identity),
        **identity,
        "batch_size": task.batch_size,
        "target": task.target._asdict(),
        "timed": True,
        "versions": provenance.versions(),
        "device": provenance.device(),
        "git": provenance.git(),
        "command": command,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "compilation_cache": dict(cache),
        "student": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "flops_per_example": _flops_per_example(task, state.params, world.images),
        },
        "teacher": {
            name: {
                "parameters": card["parameters"],
                "test_accuracy": card["test_accuracy"],
            }
            for name, card in ((name, teachers.load(name).card) for name in task.teachers)
        },
    }


def _flops_per_example(task: Task, params: Params, images: Array) -> float | None:
    """FLOPs of the student's forward pass, as XLA counts them; None where it does not."""
    batch = images[: task.batch_size]
    cost = jax.jit(task.student.apply).lower({"params": params}, batch).cost_analysis()
    return cost["flops"] / len(batch) if cost and "flops" in cost else None


@functools.cache
def _teacher_sha256(task: Task) -> tuple[str, ...]:
    return tuple(teachers.load(name).sha256 for name in task.teachers)
