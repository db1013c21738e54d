"""What a trial is taught from, and how a step's lesson comes of it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed import devices, teachers
from testbed.examination import Exam
from testbed.lessons import PROTOCOLS, Batch, Lesson
from testbed.tasks.task import Task

Params = Any  # nested dictionaries of arrays
Student = Callable[[Params, Array], Array]  # parameters, images [b, h, w, c] -> logits [b, classes]


class World(NamedTuple):
    """All images, where they fit the device; of a stream, those of one step, in its order."""

    images: Array  # [n, h, w, c]
    labels: Array  # [n]
    teachers: tuple[Params, ...]
    central_logits: Array | None = None  # [n, teachers, classes]; where the protocol asks for them
    second: Array | None = None  # other crops of the same images; where the protocol asks for them


class Keys(NamedTuple):
    """The streams of randomness of one seed. The optimizer's own leaves the others untouched."""

    weights: Array
    lessons: Array
    optimizer: Array


class Course(NamedTuple):
    """A task under a protocol, opened: what its trials are taught from, and what they are examined on.

    Attributes:
      n: how many training images there are.
      world: of a step; of a stream, shapes instead of arrays where images would be.
      worlds: seed, first step -> pairs of a world and the step up to which it serves.
      make_examine: student, shapes of its parameters -> a function of parameters to their scores.
      exam: the examination, where it fits the devices.
    """

    n: int
    world: World
    worlds: Callable[[int, int], Iterator[tuple[World, int]]]
    make_examine: Callable[[Student, Params], Callable[[Params], dict[str, float]]]
    exam: Exam | None = None


def make_keys(seed: int, lesson_seed: int | None = None) -> Keys:
    """Keys of a student's seed, and of its lessons' where that is another one; on all devices."""
    of_lessons = seed if lesson_seed is None else lesson_seed
    return jax.jit(split_seeds, out_shardings=devices.whole())(seed, of_lessons)


def split_seeds(seed: Array, lesson_seed: Array) -> Keys:
    """Keys of a student's seed and of its lessons'."""
    weights, _, optimizer = random.split(random.key(seed), 3)
    return Keys(weights, random.split(random.key(lesson_seed), 3)[1], optimizer)


def make_lesson(task: Task, protocol: str, world: World, key: Array, step: Array) -> Lesson:
    """The lesson of a step: a function of task, protocol, seed and step alone."""
    step_key = random.fold_in(key, step)
    batch = devices.constrain(draw(task, world, key, step))
    logits = jnp.moveaxis(batch.central_logits, 1, 0)
    batch = batch._replace(central_logits=logits)
    teach = functools.partial(teach_all, task, world.teachers)
    return PROTOCOLS[protocol](step_key, batch, task.crop, teach, task.temperature)


def draw(task: Task, world: World, key: Array, step: Array) -> Batch:
    """The batch of a step; its central logits still [b, teachers, classes]."""
    if not task.streamed:
        index = epoch_order(key, step, task.batch_size, len(world.images))
        world = world._replace(
            images=world.images[index],
            labels=world.labels[index],
            central_logits=None if world.central_logits is None else world.central_logits[index],
        )
    b = len(world.images)
    # Where no protocol reads them, nothing is computed.
    unread = jnp.zeros((b, len(task.teachers), task.student.classes))
    return Batch(
        images=world.images,
        second=world.images if world.second is None else world.second,
        labels=world.labels,
        central_logits=unread if world.central_logits is None else world.central_logits,
    )


def teach_all(task: Task, params: tuple[Params, ...], images: Array) -> Array:
    """Logits [teachers, b, classes] of all teachers of a task."""
    networks = [task.in_precision(teachers.TEACHERS[name].network) for name in task.teachers]
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


@functools.lru_cache(maxsize=8)
def load_teachers(task: Task, mesh: Any) -> tuple[Params, ...]:
    """The teachers' weights on the devices, whole or, where they do not fit, divided."""
    del mesh  # part of the cache's key
    loaded = [teachers.load(name).params for name in task.teachers]
    return tuple(devices.place(params, devices.parameters(params)) for params in loaded)
