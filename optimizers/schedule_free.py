"""Schedule-free AdamW: steps at z, gradients at y, evaluation at the average x."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.recipe import WEIGHT_DECAY, kernels
from optimizers.spec import Bounds, Range, Spec, bounds


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`; the parameters that it steps are y = (1 - beta) z + beta x."""

    step: Array  # [] int32: updates so far
    z: Any  # where plain descent would be
    x: Any  # the weighted average of z
    weight: Array  # []: sum of the weights so far
    base: Any  # of the base direction


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.0146,
    weight_decay: float = 0.000119,
    beta: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free, on Adam's direction without momentum. total_steps matters for the warm-up only."""
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    base = optax.chain(optax.clip_by_global_norm(clip), rms)
    return schedule_free(base, learning_rate, weight_decay, beta, warmup * total_steps)


def schedule_free(
    base: optax.GradientTransformation,
    learning_rate: float,
    weight_decay: float,
    beta: float,
    warmup_steps: float,
) -> optax.GradientTransformationExtraArgs:
    """z <- z - s (lr d + wd y), x <- the average of z weighted by s^2, y = (1 - beta) z + beta x.

    Args:
      base: gradients at y -> directions d.
      learning_rate: lr.
      weight_decay: wd, of kernels; as in the shared recipe, not multiplied by the learning rate.
      beta: 0: gradients at z; 1: at x, which is primal averaging.
      warmup_steps: s rises to 1 over this many steps, from above 0.
    """

    def init(params: Any) -> ScheduleFreeState:
        # Copies, since a donated buffer can be given away only once.
        z, x = (jax.tree.map(lambda p: jnp.array(p, copy=True), params) for _ in range(2))
        return ScheduleFreeState(jnp.zeros([], jnp.int32), z, x, jnp.zeros([]), base.init(params))

    def update(
        grads: Any, state: ScheduleFreeState, params: Any, **extra: Any
    ) -> tuple[Any, ScheduleFreeState]:
        del extra
        directions, base_state = base.update(grads, state.base, params)
        rise = jnp.minimum(1.0, (state.step + 1) / jnp.maximum(warmup_steps, 1.0))
        weight = state.weight + rise**2
        share = rise**2 / weight

        def descend(z: Array, d: Array, y: Array, decayed: bool) -> Array:
            return z - rise * (learning_rate * d + (weight_decay * y if decayed else 0.0))

        z = jax.tree.map(descend, state.z, directions, params, kernels(params))
        x = jax.tree.map(lambda x, z: (1 - share) * x + share * z, state.x, z)
        updates = jax.tree.map(lambda x, z, y: (1 - beta) * z + beta * x - y, x, z, params)
        return updates, ScheduleFreeState(state.step + 1, z, x, weight, base_state)

    return optax.GradientTransformationExtraArgs(init, update)


def eval_params(opt_state: ScheduleFreeState, params: Any) -> Any:
    """The average x."""
    del params
    return opt_state.x


SPEC = Spec(
    name="schedule_free",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, beta=Bounds(0.0, 1.0 + 1e-9)),
    reference=(
        "Defazio et al. 2024 (arXiv 2405.15682). Keeps x and z, where optax keeps z and computes x from "
        "it and y, which beta = 0 forbids."
    ),
    eval_params=eval_params,
)
