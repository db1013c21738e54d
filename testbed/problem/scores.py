"""Scores: how well a student does on examples, one number for each.

The same functions score data that fit the device and streams; `evaluation` averages the scores. A new
metric is one function here (or in a task's `scores`) and one row in `testbed.metrics` (or in a task's
`metrics`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from testbed.devices import in_full_precision
from testbed.errors import RequestError
from testbed.problem import distances, protocols
from testbed.problem.distances import Distance
from testbed.problem.protocols import Lesson


class Outputs(NamedTuple):
    """What a score may read: a student's outputs on examples, and their references."""

    inputs: Array  # [b, ...], as the student saw them
    labels: Array | None  # [b] or [b, positions] integers
    teacher: Array  # [b, ...]: logits of the teachers' average in probability
    student: Array  # [b, ...]: logits


class Score(NamedTuple):
    """A score of held-out examples.

    Attributes:
      on: "views", the task's random views of examples; "central": the examples themselves; or "mixed":
        random views mixed as in lessons, of tasks that have `mixed_per_input`.
      of: distance, outputs -> the scores, [b] or one for each position.
      needs_labels: whether it is left out if data have no labels.
    """

    on: Literal["views", "central", "mixed"]
    of: Callable[[Distance, Outputs], Array]
    needs_labels: bool = False


def _kl(distance: Distance, outputs: Outputs) -> Array:
    return distance.kl(outputs.teacher, outputs.student)


def _agreement(distance: Distance, outputs: Outputs) -> Array:
    return distance.agreement(outputs.teacher, outputs.student)


def _accuracy(distance: Distance, outputs: Outputs) -> Array:
    del distance
    assert outputs.labels is not None
    if outputs.labels.shape != outputs.student.shape[:-1]:
        raise RequestError(
            f"labels have the shape {outputs.labels.shape}, the student's logits "
            f"{outputs.student.shape}; give one label for each position, or none"
        )
    return distances.accuracy(outputs.labels, outputs.student)


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "kl": Score("views", _kl),
        "agreement": Score("views", _agreement),
        "accuracy": Score("central", _accuracy, needs_labels=True),
        "central_agreement": Score("central", _agreement),
        "mixed_kl": Score("mixed", _kl),
    }
)


@in_full_precision
def scores(
    table: Mapping[str, Score], on: str, distance: Distance, outputs: Outputs
) -> dict[str, Array]:
    """Scores [b] of the examples on one kind of view; means over positions."""
    return {
        name: per_example(score.of(distance, outputs))
        for name, score in table.items()
        if score.on == on and not (score.needs_labels and outputs.labels is None)
    }


@in_full_precision
def lesson_scores(distance: Distance, lesson: Lesson, student: Array) -> tuple[Array, Array]:
    """The training loss, and the KL at temperature 1 to the lesson's own teacher: scalars."""
    kl = jnp.mean(distance.kl(distance.ensemble(lesson.logits), student))
    return protocols.loss(distance, lesson, student), kl


def per_example(values: Array) -> Array:
    """[b, positions, ...] -> [b], means over positions."""
    return values if values.ndim == 1 else jnp.mean(values, axis=tuple(range(1, values.ndim)))
