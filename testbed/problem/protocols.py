"""The five protocols: how a batch of inputs becomes a lesson (docs/protocol.md, table 1).

They differ in nothing else. With the same key, the student's views are the same in all of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, random

from testbed.errors import RequestError
from testbed.problem.distances import Distance


class Batch(NamedTuple):
    """Training inputs before any view is taken of them."""

    inputs: Array  # [b, ...]: what the student's view is taken of
    second: Array  # the same inputs, for a second view; cut separately on the host if the first one is
    labels: Array | None  # [b] or [b, positions] integers; only the control `labels` reads them
    central_logits: (
        Array | None
    )  # [teachers, b, ...]: the teachers' logits on central views, computed once


class Lesson(NamedTuple):
    """The distillation batch of one step."""

    inputs: Array  # [b, ...]: what the student sees
    logits: Array  # [teachers, b, ...]: the teachers' outputs, which are the student's targets
    temperature: Array  # []: of the distance between the two


class Views(NamedTuple):
    """What a task provides to a protocol.

    Attributes:
      augment: key, inputs -> one random view of each.
      mix: key, views -> views mixed with each other.
      teacher_logits: views [b, ...] -> logits [teachers, b, ...].
      certain: labels, views -> logits [b, ...] of a teacher that is certain of the labels.
      temperature: of the distance.
    """

    augment: Callable[[Array, Array], Array]
    mix: Callable[[Array, Array], Array]
    teacher_logits: Callable[[Array], Array]
    certain: Callable[[Array, Array], Array]
    temperature: float


class Protocol(NamedTuple):
    """A way to make lessons.

    Attributes:
      make_lesson: key, batch, views -> lesson.
      needs: what a task must have, of "augment", "mix", "labels", "finite" (training inputs that
        repeat); and what its batches must hold besides inputs: "second_view", "central_logits".
    """

    make_lesson: Callable[[Array, Batch, Views], Lesson]
    needs: frozenset[str] = frozenset()


def fixed_teacher(key: Array, batch: Batch, views: Views) -> Lesson:
    """The student sees a fresh view; the teacher saw the central view, once."""
    assert batch.central_logits is not None
    student_key, _ = random.split(key)
    inputs = views.augment(student_key, batch.inputs)
    return Lesson(inputs, batch.central_logits, jnp.float32(views.temperature))


def independent_noise(key: Array, batch: Batch, views: Views) -> Lesson:
    """Student and teacher see separate fresh views."""
    student_key, teacher_key = random.split(key)
    inputs = views.augment(student_key, batch.inputs)
    logits = views.teacher_logits(views.augment(teacher_key, batch.second))
    return Lesson(inputs, logits, jnp.float32(views.temperature))


def consistent_teaching(key: Array, batch: Batch, views: Views) -> Lesson:
    """Student and teacher see the same fresh view."""
    student_key, _ = random.split(key)
    inputs = views.augment(student_key, batch.inputs)
    return Lesson(inputs, views.teacher_logits(inputs), jnp.float32(views.temperature))


def function_matching(key: Array, batch: Batch, views: Views) -> Lesson:
    """Student and teacher see the same fresh views after mixup: the paper's method."""
    student_key, mixup_key = random.split(key)
    inputs = views.mix(mixup_key, views.augment(student_key, batch.inputs))
    return Lesson(inputs, views.teacher_logits(inputs), jnp.float32(views.temperature))


def labels(key: Array, batch: Batch, views: Views) -> Lesson:
    """The control: no teacher, cross-entropy with the true label on a fresh view.

    A certain teacher (probability 1 on the label) at temperature 1: the KL to it is the
    cross-entropy, so that `train_step` needs no second loss.
    """
    assert batch.labels is not None
    student_key, _ = random.split(key)
    inputs = views.augment(student_key, batch.inputs)
    return Lesson(inputs, views.certain(batch.labels, inputs)[None], jnp.float32(1.0))


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "function_matching": Protocol(function_matching),
        "consistent_teaching": Protocol(consistent_teaching, frozenset({"mix"})),
        "independent_noise": Protocol(independent_noise, frozenset({"augment", "second_view"})),
        "fixed_teacher": Protocol(fixed_teacher, frozenset({"augment", "finite", "central_logits"})),
        "labels": Protocol(labels, frozenset({"labels"})),
    }
)

# Why a task that lacks what a protocol needs cannot use it.
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "augment": "it has no random views (augment): teacher and student would see the same inputs",
        "mix": "it mixes no inputs (mix), so this equals function_matching",
        "labels": "its lessons have no labels of the task's classes",
        "finite": "its training inputs never repeat, so no view of them can be fixed",
    }
)


def loss(distance: Distance, lesson: Lesson, student_logits: Array) -> Array:
    """Mean over batch and positions of the distances to each teacher, summed over teachers: a scalar."""
    if lesson.logits.shape[1:] != student_logits.shape:
        raise RequestError(
            f"the student's logits have the shape {student_logits.shape}, the teachers' "
            f"{lesson.logits.shape[1:]}; they must have the same"
        )
    distances = distance.kl(lesson.logits, student_logits[None], lesson.temperature)
    return jnp.sum(jnp.mean(distances, axis=tuple(range(1, distances.ndim))))
