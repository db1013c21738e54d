"""AdEMAMix: Adam with a second, slow average of gradients."""

import jax
import jax.numpy as jnp
import optax

from optimizers.recipe import WEIGHT_DECAY, recipe
from optimizers.spec import Bounds, Range, Spec, bounds


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.00821,
    weight_decay: float = 1.19e-05,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.999,
    alpha: float = 5.0,
    eps: float = 1e-8,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """optax.contrib.scale_by_ademamix in the shared recipe.

    The slow average's share grows linearly to alpha over total_steps, and its half-life from b1's to
    b3's, as the paper schedules them.
    """

    def share(step: jax.Array) -> jax.Array:
        return alpha * jnp.minimum(step / total_steps, 1.0)

    def decay(step: jax.Array) -> jax.Array:
        """Linear in the half-life log(1/2) / log(b) - 1; eq. in the paper's section 3."""
        done = jnp.minimum(step / total_steps, 1.0)
        first, last = jnp.log(b1), jnp.log(b3)
        return jnp.exp(first * last / ((1 - done) * last + done * first))

    return recipe(
        optax.contrib.scale_by_ademamix(b1, b2, decay, share, eps),
        total_steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
    )


SPEC = Spec(
    name="ademamix",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, b1=Bounds(1e-6, 1.0), b3=Bounds(1e-6, 1.0), alpha=Bounds(0.0)),
    reference=(
        "Pagliardini, Ablin and Grangier 2024 (arXiv 2409.03137), optax.contrib.scale_by_ademamix. The "
        "schedules of alpha and b3 count updates from 0, as in optax and the authors' JAX code, so that "
        "the first has alpha 0; the paper and their PyTorch code count from 1. "
        "Their b3 is 0.9999 for 100,000s of steps; 0.999 is for our horizons."
    ),
)
