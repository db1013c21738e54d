"""LAMB: Adam's direction, per tensor as long as the tensor itself."""

import optax

from optimizers.recipe import kernels, recipe
from optimizers.spec import Range, Spec, bounds


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.0146,
    weight_decay: float = 0.0119,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """|p| d / |d| with d = Adam's direction + weight_decay * p, in the shared recipe.

    d itself where p or d is zero. The decay is part of what is scaled, as the method has it, and so
    it is not the recipe's.
    """
    direction = optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.scale_by_trust_ratio(),
    )
    return recipe(
        direction, total_steps, learning_rate=learning_rate, weight_decay=0.0, warmup=warmup, clip=clip
    )


SPEC = Spec(
    name="lamb",
    build=build,
    # Weight decay is a part of the direction, and so of its size.
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": Range(1e-4, 1e-1)},
    bounds=bounds(build),
    reference="You et al. 2020 (arXiv 1904.00962), in the form of optax.lamb.",
)
