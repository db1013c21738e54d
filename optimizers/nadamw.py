"""Adam with Nesterov momentum and decoupled weight decay."""

import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Range, Spec, bounds


def direction(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam's, with the average of gradients one step ahead."""
    return optax.scale_by_adam(b1, b2, eps, nesterov=True)


build = in_recipe(direction, learning_rate=0.0146, weight_decay=0.000119)

SPEC = Spec(
    name="nadamw",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build),
    reference="Dozat 2016, in the form of optax.nadamw.",
)
