"""The examination: what a student is measured by, off the clock.

The same views for every seed, optimizer and protocol (but for the training lessons, which are the
protocol's own), so that a difference between two curves is one between two students. Several random
views of each held-out image make KL and agreement fine-grained where there are only a few hundred
images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed import lessons, matching
from testbed.lessons import Crop, Lesson, Teach


class HeldOut(NamedTuple):
    """One held-out part: views of its images, and the images themselves."""

    views: Array  # [n * views, h, w, c]: random crops
    view_logits: Array  # [n * views, classes]: the teachers on them, averaged in probability
    images: Array  # [n, h, w, c]: central views
    labels: Array  # [n]
    logits: Array  # [n, classes]: the teachers on `images`


class Exam(NamedTuple):
    """All that a student is measured on."""

    training: Lesson  # several lessons, stacked on a leading axis
    validation: HeldOut
    test: HeldOut


def prepare(images: Array, labels: Array, crop: Crop, teach: Teach, views_per_image: int) -> HeldOut:
    """Draws the views of a held-out part, always the same, and asks the teachers.

    Args:
      images: [n, h, w, c].
      labels: [n].
      crop: key, images -> one view of each.
      teach: images -> logits [teachers, b, classes].
      views_per_image: views are [n * views_per_image, h, w, c].
    """
    views = crop(random.key(0), jnp.tile(images, (views_per_image, 1, 1, 1)))
    return HeldOut(
        views=views,
        view_logits=matching.ensemble(teach(views)),
        images=images,
        labels=labels,
        logits=matching.ensemble(teach(images)),
    )


def examine(student: Callable[[Any, Array], Array], params: Any, exam: Exam) -> dict[str, Array]:
    """The scores of a measurement, each a scalar.

    `train_loss` and `train_kl` are on fresh lessons of the trial's own protocol, from training
    images: the loss that is trained on, and the KL at temperature 1 to the lesson's own teacher.
    `*_kl` and `*_agreement` are on held-out views (KL at temperature 1, in nats), `*_accuracy` and
    `*_central_agreement` on the held-out images themselves.
    """

    def on_lesson(lesson: Lesson) -> tuple[Array, Array]:
        logits = student(params, lesson.images)
        kl = jnp.mean(matching.kl(matching.ensemble(lesson.logits), logits))
        return lessons.loss(lesson, logits), kl

    train_loss, train_kl = jax.vmap(on_lesson)(exam.training)
    scores = {"train_loss": jnp.mean(train_loss), "train_kl": jnp.mean(train_kl)}
    for name, part in (("validation", exam.validation), ("test", exam.test)):
        on_views, on_images = student(params, part.views), student(params, part.images)
        scores |= {
            f"{name}_kl": jnp.mean(matching.kl(part.view_logits, on_views)),
            f"{name}_agreement": jnp.mean(matching.agreement(part.view_logits, on_views)),
            f"{name}_accuracy": jnp.mean(matching.accuracy(part.labels, on_images)),
            f"{name}_central_agreement": jnp.mean(matching.agreement(part.logits, on_images)),
        }
    return scores
