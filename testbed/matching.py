"""Distances between functions, example by example, from their logits.

Logits are [..., classes]; results drop the last axis.
"""

import jax
import jax.numpy as jnp
from jax import Array


def kl(teacher: Array, student: Array, temperature: float | Array = 1.0) -> Array:
    """t^2 * KL(softmax(teacher / t) || softmax(student / t)), in nats.

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
