"""Sophia-G: momentum over a diagonal Gauss-Newton estimate, clipped entry by entry."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds


class SophiaState(NamedTuple):
    """State of `scale_by_sophia`; trees like the parameters."""

    step: Array  # [] int32: updates so far
    average: Any  # of gradients
    curvature: Any  # average of the estimates of the Hessian's diagonal


def direction(
    *, b1: float = 0.96, b2: float = 0.99, gamma: float = 0.05, interval: int = 10, eps: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
    """Momentum over a diagonal Gauss-Newton estimate, clipped entry by entry."""
    return scale_by_sophia(b1, b2, gamma, interval, eps)


def scale_by_sophia(
    b1: float, b2: float, gamma: float, interval: int, eps: float
) -> optax.GradientTransformationExtraArgs:
    """clip(m / max(gamma h, eps), -1, 1), with h renewed once in `interval` steps.

    The estimate is Gauss-Newton-Bartlett: n g^2, with g the gradient of the mean cross-entropy of the n
    examples to labels drawn from the model's own distribution.
    """

    def init(params: Any) -> SophiaState:
        # Not one tree twice: a donated buffer can be given away only once.
        average, curvature = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return SophiaState(jnp.zeros([], jnp.int32), average, curvature)

    def update(
        grads: Any,
        state: SophiaState,
        params: Any,
        *,
        logits_fn: Callable[[Any], Array],
        key: Array,
        **extra: Any,
    ) -> tuple[Any, SophiaState]:
        del extra

        def renew(curvature: Any) -> Any:
            estimate = gauss_newton_bartlett(logits_fn, params, key)
            return jax.tree.map(lambda h, e: b2 * h + (1 - b2) * e, curvature, estimate)

        average = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.average, grads)
        due = state.step % interval == 0
        curvature = lax.cond(due, renew, lambda h: h, state.curvature)
        updates = jax.tree.map(
            lambda m, h: jnp.clip(m / jnp.maximum(gamma * h, eps), -1, 1), average, curvature
        )
        return updates, SophiaState(state.step + 1, average, curvature)

    return optax.GradientTransformationExtraArgs(init, update)


def gauss_newton_bartlett(logits_fn: Callable[[Any], Array], params: Any, key: Array) -> Any:
    """An unbiased estimate of the diagonal of the cross-entropy's Gauss-Newton matrix at `params`."""

    def sampled_loss(params: Any) -> tuple[Array, int]:
        logits = logits_fn(params)
        labels = jax.random.categorical(key, lax.stop_gradient(logits))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(loss), loss.size

    grad, n = jax.grad(sampled_loss, has_aux=True)(params)
    return jax.tree.map(lambda g: n * g**2, grad)


build = in_recipe(direction, learning_rate=0.00139, weight_decay=0.00055)

SPEC = Spec(
    name="sophia",
    build=build,
    # A third of Adam's range: many entries of its direction are at their limit, 1.
    space={"learning_rate": Range(3e-4, 3e-2), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, gamma=Bounds(0.0), eps=Bounds(1e-30)),
    reference=(
        "Liu et al. 2023 (arXiv 2305.14342), Sophia-G. The curvature is of the cross-entropy at "
        "temperature 1, also where the task's loss has another: gamma takes the factor."
    ),
)
