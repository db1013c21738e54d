"""Courses of tasks whose images fit the device, all at once."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed import devices
from testbed.examination import Exam, HeldOut, examine, prepare
from testbed.tasks.task import Task
from testbed.world import Course, Params, Student, World, load_teachers, make_lesson, teach_all

SERVES = 2**31 - 1  # steps: all of them


def load_course(task: Task, protocol: str) -> Course:
    """The course of a task."""
    world, exam = load_world(task), load_exam(task, protocol)

    def worlds(seed: int, step: int) -> Iterator[tuple[World, int]]:
        del seed, step
        yield world, SERVES

    def make_examine(student: Student, params: Params) -> Callable[[Params], dict[str, float]]:
        compiled = jax.jit(functools.partial(examine, student)).lower(params, exam).compile()
        return lambda params: jax.device_get(compiled(params, exam))

    return Course(len(world.images), world, worlds, make_examine, exam)


def load_world(task: Task) -> World:
    """The task's training images and teachers, on the devices."""
    return _load_world(task, devices.mesh())


@functools.cache
def _load_world(task: Task, mesh: Any) -> World:
    params = load_teachers(task, mesh)
    images, labels = (devices.put(array, devices.whole()) for array in task.arrays().training)

    def central(params: tuple[Params, ...], images: Array) -> Array:
        return jnp.moveaxis(teach_all(task, params, images), 1, 0)

    logits = jax.jit(central, out_shardings=devices.whole())(params, images)
    return World(images, labels, params, central_logits=logits)


def load_exam(task: Task, protocol: str) -> Exam:
    """The examination of a task under a protocol; the same for every seed and optimizer."""
    return _load_exam(task, protocol, devices.mesh())


@functools.cache
def _load_exam(task: Task, protocol: str, mesh: Any) -> Exam:
    del mesh  # part of the cache's key
    world = load_world(task)
    steps = jnp.arange(8)
    lesson_at = functools.partial(make_lesson, task, protocol)
    whole = devices.whole()

    # A key that no seed has: seeds split theirs.
    def train(world: World) -> Any:
        return jax.lax.map(lambda i: lesson_at(world, random.key(2**31), i), steps)

    def prepare_part(params: tuple[Params, ...], images: Array, labels: Array) -> HeldOut:
        teach = functools.partial(teach_all, task, params)
        return prepare(images, labels, task.crop, teach, task.views_per_image)

    data = task.arrays()
    prepared = jax.jit(prepare_part, out_shardings=whole)
    validation, test = (prepared(world.teachers, *part) for part in (data.validation, data.test))
    return Exam(jax.jit(train, out_shardings=whole)(world), validation, test)
