"""Prodigy: Adam that estimates its own learning rate."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.recipe import WEIGHT_DECAY, decay, height_above_zero
from optimizers.spec import Range, Spec, bounds


class ProdigyState(NamedTuple):
    """State of `prodigy`; trees like the parameters."""

    step: Array  # [] int32: updates so far
    d: Array  # []: the estimate of the distance to the solution, which is the learning rate
    r: Array  # []: averaged, the gradients' products with the way gone so far
    s: Any  # averaged gradients
    average: Any  # of d g
    second_moment: Any  # of d g
    start: Any  # the first parameters


def build(
    total_steps: int,
    *,
    learning_rate: float = 6.16,
    weight_decay: float = 0.00033,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy under the shared recipe's schedule, with its clipping and its decay.

    learning_rate multiplies the estimated one; 1 is the method's.
    """

    def height(step: Array) -> Array:
        return learning_rate * height_above_zero(step, total_steps, warmup)

    return optax.chain(
        optax.clip_by_global_norm(clip),
        prodigy(height, b1, b2, eps),
        decay(weight_decay, total_steps, warmup),
    )


def prodigy(
    height: Callable[[Array], Array], b1: float, b2: float, eps: float, start: float = 1e-6
) -> optax.GradientTransformation:
    """The method's updates (not directions: they contain its learning rate).

    Args:
      height: step -> factor of the estimated learning rate.
      b1: decay of the average.
      b2: decay of the second moment, and its root that of r and s.
      eps: of Adam, relative to the estimate.
      start: the first estimate, an under-estimate.
    """

    def init(params: Any) -> ProdigyState:
        zeros = functools.partial(jax.tree.map, jnp.zeros_like, params)
        # A copy: a donated buffer can be given away only once.
        first = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
        begin, d, r = jnp.zeros([], jnp.int32), jnp.float32(start), jnp.float32(0)
        return ProdigyState(begin, d, r, zeros(), zeros(), zeros(), first)

    def update(grads: Any, state: ProdigyState, params: Any) -> tuple[Any, ProdigyState]:
        step, d, b3 = state.step + 1, state.d, b2**0.5
        debias = jnp.sqrt(1 - b2**step) / (1 - b1**step)
        rate = d * height(state.step) * debias
        way = jax.tree.map(lambda first, now: first - now, state.start, params)
        product = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, way)))
        r = b3 * state.r + (d / start) * rate * product
        s = jax.tree.map(lambda s, g: b3 * s + rate * (d / start) * g, state.s, grads)
        size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(s))
        new_d = jnp.maximum(d, jnp.where(size > 0, r / jnp.where(size > 0, size, 1.0), 0.0))
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * d * g, state.average, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (d * g) ** 2, state.second_moment, grads)
        updates = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + new_d * eps), m, v)
        return updates, ProdigyState(step, new_d, r, s, m, v, state.start)

    return optax.GradientTransformation(init, update)


SPEC = Spec(
    name="prodigy",
    build=build,
    # It multiplies the rate that Prodigy finds; 1 is meant to do.
    space={"learning_rate": Range(1e-1, 1e1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build),
    reference=(
        "Mishchenko and Defazio 2024 (arXiv 2306.06101), as optax.contrib.prodigy, which divides by "
        "zero where all gradients have been zero."
    ),
)
