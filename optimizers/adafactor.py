"""Adafactor: a second moment of rank one for each matrix."""

import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds


def direction(
    *, decay: float = 0.8, b1: float = 0.9, factored_from: int = 32
) -> optax.GradientTransformation:
    """Factored second moments, clipped by the root mean square per tensor, averaged with b1.

    Second moments decay with 1 - t^(-decay). Those of tensors whose second longest axis is shorter than
    factored_from are whole.
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay, min_dim_size_to_factor=factored_from),
        optax.clip_by_block_rms(1.0),
        optax.ema(b1, debias=False),
    )


build = in_recipe(direction, learning_rate=0.0146, weight_decay=0.000119)

SPEC = Spec(
    name="adafactor",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, decay=Bounds(0.0, 1.0), factored_from=Bounds(1)),
    reference=(
        "Shazeer and Stern 2018 (arXiv 1804.04235), from optax's pieces. Steps are not relative to the "
        "size of parameters (as in Zhai et al. 2022): the students' heads start at zero."
    ),
)
