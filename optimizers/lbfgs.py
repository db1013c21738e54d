"""L-BFGS with a zoom line search on the step's own lesson."""

import optax
from jax import Array

from optimizers.recipe import ALLOWED, WEIGHT_DECAY, kernels, schedule
from optimizers.spec import Allowed, Search, Spec


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.3,
    weight_decay: float = 1e-5,
    memory: int = 10,
    search_steps: int = 10,
    warmup: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    """optax.lbfgs, whose steps are shortened by learning_rate and the shared recipe's schedule.

    The line search starts at a step of 1 and evaluates value and gradient at up to search_steps points.
    The gradient is not clipped: the search compares it with values.
    """

    def height(step: Array) -> Array:
        return schedule(step + 1, total_steps + 1, warmup)

    search = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=search_steps, initial_guess_strategy="one"
    )
    return optax.chain(
        optax.lbfgs(memory_size=memory, linesearch=search),
        optax.scale_by_schedule(lambda step: learning_rate * height(step)),
        optax.add_decayed_weights(lambda step: -weight_decay * height(step), mask=kernels),
    )


SPEC = Spec(
    name="lbfgs",
    build=build,
    space={"learning_rate": Search(1e-2, 1.0), "weight_decay": WEIGHT_DECAY},
    allowed={
        "learning_rate": ALLOWED["learning_rate"],
        "weight_decay": ALLOWED["weight_decay"],
        "warmup": ALLOWED["warmup"],
        "memory": Allowed(1),
        "search_steps": Allowed(1),
    },
    reference=(
        "Liu and Nocedal 1989, optax.lbfgs. Made for full gradients; here each step sees another "
        "lesson, hence the shortened steps."
    ),
)
