"""The recipe that all optimizers share, so that comparisons differ in the update rule only.

    p <- p - s(i) * (learning_rate * direction_i + weight_decay * p)

The form of big_vision's `optax.py` (Beyer et al. 2021): the gradient is clipped by its global norm,
weight decay touches kernels only, follows the schedule s, and is *not* multiplied by the learning
rate: optax.adamw calls weight_decay / learning_rate what is weight_decay here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.spec import Range

NAMES = ("learning_rate", "weight_decay", "warmup", "clip")  # of the recipe's own hyperparameters
WEIGHT_DECAY = Range(1e-6, 1e-3)


def recipe(
    direction: optax.GradientTransformation,
    total_steps: int,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    clip: float,
) -> optax.GradientTransformationExtraArgs:
    """clip -> direction -> learning rate -> weight decay -> schedule.

    Args:
      direction: gradients -> ascent directions; its extra arguments reach it.
      total_steps: where the schedule ends.
      learning_rate: multiplies the direction.
      weight_decay: share of each kernel taken off per step, at the schedule's height of 1.
      warmup: share of total_steps in which the schedule rises from 0.
      clip: largest global norm of the gradient.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        direction,
        optax.scale(learning_rate),
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.scale_by_schedule(lambda i: -schedule(i, total_steps, warmup)),
    )


def in_recipe(
    direction: Callable[..., optax.GradientTransformation],
    *,
    learning_rate: float,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """An optimizer's `build`: a direction in the shared recipe.

    Args:
      direction: hyperparameters, as keyword-only arguments -> `recipe`'s direction.
      learning_rate: `recipe`'s default here, as are the others.
      weight_decay: the same.
      warmup: the same.
      clip: the same.

    Returns:
      build(total_steps, *, learning_rate, weight_decay, *the direction's*, warmup, clip).
    """
    defaults = {"learning_rate": learning_rate, "weight_decay": weight_decay} | {
        parameter.name: parameter.default
        for parameter in inspect.signature(direction).parameters.values()
    }
    defaults |= {"warmup": warmup, "clip": clip}

    @functools.wraps(direction)
    def build(total_steps: int, **given: Any) -> optax.GradientTransformationExtraArgs:
        values = defaults | given
        shared = {name: values.pop(name) for name in NAMES}
        return recipe(direction(**values), total_steps, **shared)

    keyword, steps = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("total_steps", steps),
            *[inspect.Parameter(name, keyword, default=value) for name, value in defaults.items()],
        ]
    )
    return build


def schedule(step: Array, total_steps: int, warmup: float) -> Array:
    """Linear warm-up times cosine decay, in [0, 1]; `step` counts updates from 0.

    0.5 (1 + cos(pi clip((i - W) / (T - W), 0, 1))) min(1, i / W) with W = warmup * T, as big_vision's
    `create_learning_rate_schedule`: with W > 0 the first update has height 0, and the last one
    is a little above it.
    """
    rise = warmup * total_steps
    decay = jnp.clip((step - rise) / (total_steps - rise), 0, 1)
    height = 0.5 * (1 + jnp.cos(jnp.pi * decay))
    return height * jnp.where(step < rise, step / jnp.maximum(rise, 1e-9), 1.0)


def height_above_zero(step: Array, total_steps: int, warmup: float) -> Array:
    """The schedule one step ahead, for methods that need it above 0 from the first update on."""
    return schedule(step + 1, total_steps + 1, warmup)


def decay(weight_decay: float, total_steps: int, warmup: float) -> optax.GradientTransformation:
    """The recipe's weight decay alone, for methods whose updates are no directions."""
    return optax.add_decayed_weights(
        lambda step: -weight_decay * height_above_zero(step, total_steps, warmup), mask=kernels
    )


def kernels(params: Any) -> Any:
    """A tree of booleans: which leaves are called `kernel` (biases and norms are not)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(path) and getattr(path[-1], "key", None) == "kernel", params
    )
