"""Adam with decoupled weight decay, the paper's baseline."""

import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Range, Spec, bounds


def direction(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Average of gradients over the root of the average of their squares, both debiased."""
    return optax.scale_by_adam(b1, b2, eps)


build = in_recipe(direction, learning_rate=0.0146, weight_decay=0.000119)

SPEC = Spec(
    name="adam",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build),
    reference=(
        "Kingma and Ba 2015 (arXiv 1412.6980); decoupled decay, Loshchilov and Hutter 2019, not "
        "multiplied by the learning rate. The paper keeps the first moment in bfloat16, this float32."
    ),
)
