"""Makes a step's lesson, as a pure function of (task, protocol, seed, step)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed import devices
from testbed.data.arrays import Generated
from testbed.problem.protocols import PROTOCOLS, Batch, Lesson, Views
from testbed.problem.task import Task

Params = Any  # nested dictionaries of arrays
GENERATOR = "threefry2x32"  # whatever JAX's default is in this process


class TrainingData(NamedTuple):
    """The data that lessons are made of: a pytree, passed to compiled programs as an argument.

    It has all training inputs if they fit the device; for a stream, those of one step, in its order; for
    a generator, the arrays that it draws with.
    """

    teachers: tuple[Params, ...]  # their weights
    inputs: Array | None = None  # [n, ...]
    labels: Array | None = None  # [n, ...]
    central_logits: Array | None = None  # [n, teachers, ...]; if the protocol needs them
    second: Array | None = None  # other crops of these inputs; if the protocol needs them
    generator: Any = None  # a generator's arrays


class Keys(NamedTuple):
    """The random keys of one seed. Use of the optimizer's key does not change the others."""

    weights: Array
    lessons: Array
    optimizer: Array


def make_keys(seed: int, lesson_seed: int | None = None) -> Keys:
    """Keys of a student's seed, and of its lessons' seed if that differs; on all devices."""
    of_lessons = seed if lesson_seed is None else lesson_seed
    return jax.jit(split_seeds, out_shardings=devices.replicated())(seed, of_lessons)


def split_seeds(seed: Array, lesson_seed: Array) -> Keys:
    """Keys of a student's seed and of its lessons'."""
    weights, _, optimizer = random.split(random.key(seed, impl=GENERATOR), 3)
    return Keys(weights, random.split(random.key(lesson_seed, impl=GENERATOR), 3)[1], optimizer)


@devices.in_full_precision
def make_lesson(task: Task, protocol: str, data: TrainingData, key: Array, step: Array) -> Lesson:
    """The lesson of a step.

    Args:
      task: the task to learn.
      protocol: a name in PROTOCOLS.
      data: the data that the step's batch is drawn from.
      key: `Keys.lessons` of a seed.
      step: [] integer, from 0.
    """
    step_key = random.fold_in(key, step)
    batch = devices.constrain(draw(task, data, key, step))
    if batch.central_logits is not None:
        batch = batch._replace(central_logits=jnp.moveaxis(batch.central_logits, 1, 0))
    return PROTOCOLS[protocol].make_lesson(step_key, batch, _views(task, data))


def _views(task: Task, data: TrainingData) -> Views:
    logits_of = functools.partial(teacher_logits, task, data.teachers)

    def certain(labels: Array, views: Array) -> Array:
        assert task.distance.certain is not None
        classes = jax.eval_shape(logits_of, views).shape[-1]
        return task.distance.certain(labels, classes)

    return Views(
        augment=task.augment or _unchanged,
        mix=task.mix or _unchanged,
        teacher_logits=logits_of,
        certain=certain,
        temperature=task.temperature,
    )


def _unchanged(key: Array, inputs: Array) -> Array:
    del key
    return inputs


def draw(task: Task, data: TrainingData, key: Array, step: Array) -> Batch:
    """The batch of a step; its central logits are still [b, teachers, ...]."""
    if isinstance(task.source, Generated):
        # A stream of keys apart from the steps' own, which count up from 0.
        step_key = random.fold_in(random.fold_in(key, 2**31), step)
        inputs, labels = task.source.draw(data.generator, step_key, task.batch_size)
        return Batch(inputs, inputs, labels, None)
    assert data.inputs is not None
    if not task.streamed:
        index = epoch_order(key, step, task.batch_size, len(data.inputs))
        arrays = data._replace(teachers=(), generator=None)  # those with an axis of examples
        taken = jax.tree.map(lambda array: array[index], arrays)
        data = taken._replace(teachers=data.teachers)
    return Batch(
        inputs=data.inputs,  # type: ignore[arg-type]  # asserted above
        second=data.inputs if data.second is None else data.second,  # type: ignore[arg-type]
        labels=data.labels,
        central_logits=data.central_logits,
    )


@devices.in_full_precision
def teacher_logits(task: Task, params: tuple[Params, ...], inputs: Array) -> Array:
    """Logits [teachers, b, ...] of all teachers of a task on inputs [b, ...]."""
    pairs = zip(task.teachers, params, strict=True)
    logits = [teacher.logits(p, inputs, task.precision) for teacher, p in pairs]
    return jax.lax.stop_gradient(jnp.stack(logits))


def epoch_order(key: Array, step: Array, batch_size: int, n: int) -> Array:
    """Indices [batch_size] of a step's inputs: shuffled epochs in sequence, cut into batches.

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
