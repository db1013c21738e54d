"""Stochastic gradient descent with Nesterov momentum."""

import optax

from optimizers.recipe import ALLOWED, WEIGHT_DECAY, recipe
from optimizers.spec import Allowed, Search, Spec


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.462,
    weight_decay: float = 5.5e-5,
    momentum: float = 0.9,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """Momentum m <- momentum * m + g; direction g + momentum * m.

    Learning rate and weight decay: the best of 12 on `digits`, short horizon (docs/digits.md).
    """
    return recipe(
        optax.trace(momentum, nesterov=True),
        total_steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
    )


SPEC = Spec(
    name="sgd",
    build=build,
    space={"learning_rate": Search(1e-2, 1.0), "weight_decay": WEIGHT_DECAY},
    allowed={**ALLOWED, "momentum": Allowed(0.0, 1.0)},
    reference="Sutskever et al. 2013, in the form of optax.sgd(nesterov=True).",
)
