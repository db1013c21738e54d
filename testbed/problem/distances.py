"""Distances between functions, from their outputs at one or many positions.

A distance compares a teacher's outputs with a student's, at each position: of outputs [b, classes] the
categorical one makes [b], of [b, positions, classes] it makes [b, positions]; the Bernoulli one has a
variable for each output, [b, ...] -> [b, ...]. The loss and the metrics are means over all positions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Distance(NamedTuple):
    """What the loss and the metrics need from a distance.

    Attributes:
      name: as in a task's fingerprint.
      kl: teacher, student, temperature -> t^2 KL(teacher || student), in nats.
      agreement: teacher, student -> 1.0 where both make the same decision, else 0.0.
      ensemble: outputs [teachers, ...] -> outputs [...] of their average in probability.
      certain: labels [...], classes -> logits [..., classes] of a teacher that is certain of the
        labels; None if outputs are not classes.
    """

    name: str
    kl: Callable[..., Array]
    agreement: Callable[[Array, Array], Array]
    ensemble: Callable[[Array], Array]
    certain: Callable[[Array, int], Array] | None = None


def kl(teacher: Array, student: Array, temperature: float | Array = 1.0) -> Array:
    """t^2 * KL(softmax(teacher / t) || softmax(student / t)) over the last axis, in nats.

    The t^2 keeps the size of the gradient as t grows (Hinton et al. 2015). A teacher's logit that is
    so low that its probability underflows to 0 adds 0, as it should.
    """
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def agreement(teacher: Array, student: Array) -> Array:
    """1.0 where student and teacher choose the same class, else 0.0."""
    return (jnp.argmax(teacher, -1) == jnp.argmax(student, -1)).astype(jnp.float32)


def accuracy(labels: Array, student: Array) -> Array:
    """1.0 where the student chooses the true class (labels: [...] integers), else 0.0."""
    return (labels == jnp.argmax(student, -1)).astype(jnp.float32)


def ensemble(teachers: Array) -> Array:
    """Logits of the teachers' average in probability: [teachers, ..., classes] -> [..., classes].

    The sum over teachers of KL(teacher || student) is their number times KL(average || student),
    plus a constant: both have the same gradient, and only the second reaches zero.
    """
    log_p = jax.nn.log_softmax(teachers)
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(teachers.shape[0])


def certain(labels: Array, classes: int) -> Array:
    """Logits [..., classes] of a teacher that gives the label [...] probability 1."""
    return jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), 0.0, -1e9)


def bernoulli_kl(teacher: Array, student: Array, temperature: float | Array = 1.0) -> Array:
    """t^2 * KL between independent Bernoulli variables, one for each logit, in nats; keeps the shape."""
    t, s = teacher / temperature, student / temperature
    on = jax.nn.sigmoid(t) * (jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(s))
    off = jax.nn.sigmoid(-t) * (jax.nn.log_sigmoid(-t) - jax.nn.log_sigmoid(-s))
    return temperature**2 * (on + off)


def bernoulli_agreement(teacher: Array, student: Array) -> Array:
    """1.0 where both logits have the same sign, else 0.0."""
    return ((teacher > 0) == (student > 0)).astype(jnp.float32)


def bernoulli_ensemble(teachers: Array) -> Array:
    """Logits of the teachers' average in probability: [teachers, ...] -> [...]."""
    on, off = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0) for x in (teachers, -teachers))
    return on - off


CATEGORICAL = Distance("categorical", kl, agreement, ensemble, certain)
BERNOULLI = Distance("bernoulli", bernoulli_kl, bernoulli_agreement, bernoulli_ensemble)
