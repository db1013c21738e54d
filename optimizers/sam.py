"""SAM: Adam on the gradient at the worst point near by."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds


def direction(
    *, rho: float = 0.01, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction for the gradient at p + rho g / |g|: two gradients a step."""
    return optax.chain(at_worst_point(rho), optax.scale_by_adam(b1, b2, eps))


def at_worst_point(rho: float) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradient g at p by the one at p + rho g / |g|, on the same lesson."""

    def update(
        grads: Any,
        state: optax.EmptyState,
        params: Any,
        *,
        value_fn: Callable[[Any], Array],
        **extra: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del extra
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        scale = rho / jnp.maximum(norm, 1e-12)
        return jax.grad(value_fn)(jax.tree.map(lambda p, g: p + scale * g, params, grads)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


build = in_recipe(direction, learning_rate=0.0195, weight_decay=5.5e-06)

SPEC = Spec(
    name="sam",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, rho=Bounds(0.0)),
    reference=(
        "Foret et al. 2021 (arXiv 2010.01412), with Adam as the base. Clipping bounds the gradient that "
        "points to the worst point, not the one there."
    ),
)
