"""Lion: the sign of an average of gradients."""

import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Range, Spec, bounds


def direction(*, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """sign(b1 m + (1 - b1) g), with m <- b2 m + (1 - b2) g."""
    return optax.scale_by_lion(b1, b2)


build = in_recipe(direction, learning_rate=0.00195, weight_decay=5.5e-06)

SPEC = Spec(
    name="lion",
    build=build,
    # A tenth of Adam's range, as its authors advise: all entries of its direction are 1 in size.
    space={"learning_rate": Range(1e-4, 1e-2), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build),
    reference="Chen et al. 2023 (arXiv 2302.06675), optax.scale_by_lion.",
)
