"""Stochastic gradient descent with Nesterov momentum."""

import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Range, Spec, bounds


def direction(*, momentum: float = 0.9) -> optax.GradientTransformation:
    """g + momentum * m, with m <- momentum * m + g."""
    return optax.trace(momentum, nesterov=True)


build = in_recipe(direction, learning_rate=0.462, weight_decay=5.5e-05)

SPEC = Spec(
    name="sgd",
    build=build,
    # Its direction is as long as the clipped gradient, not of entries near 1.
    space={"learning_rate": Range(1e-2, 1.0), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build),
    reference="Sutskever et al. 2013, in the form of optax.sgd(nesterov=True).",
)
