"""The five protocols: how a batch of images becomes a lesson (docs/protocol.md, table 1).

They differ in nothing else. With one key, the student's crops are the same in all of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed.matching import kl
from testbed.views import mixup

Crop = Callable[[Array, Array], Array]  # key, images [b, h, w, c] -> images
Teach = Callable[[Array], Array]  # images [b, h, w, c] -> logits [teachers, b, classes]


class Batch(NamedTuple):
    """Training images before any view is taken of them."""

    images: Array  # [b, h, w, c]: what the student's crop is taken of
    second: Array  # the same images, for a second crop; on the host cut apart where the first one is
    labels: Array  # [b] integers; only the control `labels` reads them
    central_logits: Array  # [teachers, b, classes]: the teachers on central views, computed once for all


class Lesson(NamedTuple):
    """What one step is taught from."""

    images: Array  # [b, h, w, c]: what the student sees
    logits: Array  # [teachers, b, classes]: what it should say
    temperature: Array  # []: of the distance between the two


Protocol = Callable[[Array, Batch, Crop, Teach, float], Lesson]


def fixed_teacher(key: Array, batch: Batch, crop: Crop, teach: Teach, temperature: float) -> Lesson:
    """The student sees a fresh crop; the teacher saw the central view, once for all."""
    del teach
    student_key, _ = random.split(key)
    views = crop(student_key, batch.images)
    return Lesson(views, batch.central_logits, jnp.float32(temperature))


def independent_noise(key: Array, batch: Batch, crop: Crop, teach: Teach, temperature: float) -> Lesson:
    """Student and teacher each see a fresh crop of their own."""
    student_key, teacher_key = random.split(key)
    views = crop(student_key, batch.images)
    return Lesson(views, teach(crop(teacher_key, batch.second)), jnp.float32(temperature))


def consistent_teaching(
    key: Array, batch: Batch, crop: Crop, teach: Teach, temperature: float
) -> Lesson:
    """Student and teacher see the same fresh crop."""
    student_key, _ = random.split(key)
    views = crop(student_key, batch.images)
    return Lesson(views, teach(views), jnp.float32(temperature))


def function_matching(key: Array, batch: Batch, crop: Crop, teach: Teach, temperature: float) -> Lesson:
    """Student and teacher see the same fresh crops, mixed up: the paper's method."""
    student_key, mixup_key = random.split(key)
    views = mixup(mixup_key, crop(student_key, batch.images))
    return Lesson(views, teach(views), jnp.float32(temperature))


def labels(key: Array, batch: Batch, crop: Crop, teach: Teach, temperature: float) -> Lesson:
    """The control: no teacher, cross-entropy with the true label on a fresh crop.

    A certain teacher (probability 1 on the label) at temperature 1: the KL to it is the
    cross-entropy, so that `learn` needs no second loss.
    """
    del temperature
    student_key, _ = random.split(key)
    views = crop(student_key, batch.images)
    classes = batch.central_logits.shape[-1]
    certain = jnp.where(jax.nn.one_hot(batch.labels, classes, dtype=bool), 0.0, -1e9)
    return Lesson(views, certain[None], jnp.float32(1.0))


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "function_matching": function_matching,
        "consistent_teaching": consistent_teaching,
        "independent_noise": independent_noise,
        "fixed_teacher": fixed_teacher,
        "labels": labels,
    }
)


def loss(lesson: Lesson, student_logits: Array) -> Array:
    """Mean over the batch of the distances to each teacher, summed over teachers: a scalar."""
    return jnp.sum(jnp.mean(kl(lesson.logits, student_logits[None], lesson.temperature), axis=-1))
