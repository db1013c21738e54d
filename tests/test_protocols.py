"""Which pixels teacher and student see: the teachers here return their inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from testbed.data.views import mixup
from testbed.problem.distances import BERNOULLI, CATEGORICAL, certain
from testbed.problem.protocols import PROTOCOLS, Batch, Lesson, Views, loss
from testbed.tasks import TASKS

CROP = TASKS["digits"].augment
KEY = random.key(11)
STUDENT_KEY, SECOND_KEY = random.split(KEY)


def say_pixels(images):
    """Two teachers whose logits are the pixels that they see."""
    pixels = images.reshape(len(images), -1)
    return jnp.stack([pixels, 2 * pixels])


@pytest.fixture
def batch() -> Batch:
    images = random.uniform(random.key(1), (8, 8, 8, 1))
    return Batch(images, images, jnp.arange(8), say_pixels(images))


def lesson_of(protocol, batch):
    views = Views(CROP, mixup, say_pixels, lambda labels, views: certain(labels, 64), 3.0)
    return PROTOCOLS[protocol].make_lesson(KEY, batch, views)


def teacher_saw(lesson):
    return lesson.logits[0].reshape(lesson.inputs.shape)


def test_every_protocol_is_under_test():
    assert set(PROTOCOLS) == {
        "function_matching",
        "consistent_teaching",
        "independent_noise",
        "fixed_teacher",
        "labels",
    }


def test_function_matching_teacher_sees_the_students_mixed_crops(batch):
    lesson = lesson_of("function_matching", batch)
    np.testing.assert_array_equal(lesson.inputs, mixup(SECOND_KEY, CROP(STUDENT_KEY, batch.inputs)))
    np.testing.assert_array_equal(teacher_saw(lesson), lesson.inputs)


def test_consistent_teaching_teacher_sees_the_students_crops(batch):
    lesson = lesson_of("consistent_teaching", batch)
    np.testing.assert_array_equal(lesson.inputs, CROP(STUDENT_KEY, batch.inputs))
    np.testing.assert_array_equal(teacher_saw(lesson), lesson.inputs)


def test_independent_noise_teacher_sees_other_crops_of_the_same_images(batch):
    lesson = lesson_of("independent_noise", batch)
    np.testing.assert_array_equal(lesson.inputs, CROP(STUDENT_KEY, batch.inputs))
    np.testing.assert_array_equal(teacher_saw(lesson), CROP(SECOND_KEY, batch.inputs))
    assert np.all(np.any(np.asarray(teacher_saw(lesson)) != lesson.inputs, axis=(1, 2, 3)))


def test_independent_noise_takes_its_second_crop_of_what_the_host_cut_for_it(batch):
    other = batch._replace(second=batch.inputs[::-1])
    lesson = lesson_of("independent_noise", other)
    np.testing.assert_array_equal(lesson.inputs, CROP(STUDENT_KEY, batch.inputs))
    np.testing.assert_array_equal(teacher_saw(lesson), CROP(SECOND_KEY, batch.inputs[::-1]))


def test_fixed_teacher_saw_the_central_view(batch):
    lesson = lesson_of("fixed_teacher", batch)
    np.testing.assert_array_equal(lesson.inputs, CROP(STUDENT_KEY, batch.inputs))
    np.testing.assert_array_equal(teacher_saw(lesson), batch.inputs)


def test_labels_has_no_teacher_and_is_cross_entropy(batch):
    lesson = lesson_of("labels", batch)
    np.testing.assert_array_equal(lesson.inputs, CROP(STUDENT_KEY, batch.inputs))
    logits = random.normal(random.key(2), (8, 64))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
    np.testing.assert_allclose(loss(CATEGORICAL, lesson, logits), expected, rtol=1e-6)


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "labels"])
def test_true_labels_never_enter_a_lesson_with_a_teacher(protocol, batch):
    other = batch._replace(labels=batch.labels[::-1])
    jax.tree.map(np.testing.assert_array_equal, lesson_of(protocol, batch), lesson_of(protocol, other))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_loss_is_the_sum_over_teachers_of_the_mean_distance(protocol, batch):
    lesson = lesson_of(protocol, batch)
    logits = random.normal(random.key(2), (8, 64))
    t = 1.0 if protocol == "labels" else 3.0
    expected = sum(_kl(teacher, logits, t).mean() for teacher in np.asarray(lesson.logits, np.float64))
    np.testing.assert_allclose(loss(CATEGORICAL, lesson, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("distance", [CATEGORICAL, BERNOULLI])
def test_the_loss_of_many_positions_is_the_mean_over_them(distance):
    """As if each position were an example of its own: no factor of the batch or of the positions."""
    teachers, student = random.normal(KEY, (3, 4, 5, 6)), random.normal(SECOND_KEY, (4, 5, 6))
    lesson = Lesson(student, teachers, jnp.float32(2.0))
    flat = Lesson(student, teachers.reshape(3, 20, 6), jnp.float32(2.0))
    expected = loss(distance, flat, student.reshape(20, 6))
    np.testing.assert_allclose(loss(distance, lesson, student), expected, rtol=1e-6)


def _kl(teacher, student, t):
    from scipy.special import rel_entr, softmax

    p, q = softmax(teacher / t, -1), softmax(np.asarray(student, np.float64) / t, -1)
    return t**2 * rel_entr(p, q).sum(-1)
