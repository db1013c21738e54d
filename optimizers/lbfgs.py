"""L-BFGS with a zoom line search on the step's own lesson."""

import optax

from optimizers.recipe import WEIGHT_DECAY, decay, height_above_zero
from optimizers.spec import Bounds, Range, Spec, bounds


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.821,
    weight_decay: float = 2.55e-06,
    memory: int = 10,
    search_steps: int = 10,
    warmup: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    """optax.lbfgs, whose steps are shortened by learning_rate and the shared recipe's schedule.

    The line search starts at a step of 1 and evaluates value and gradient at up to search_steps points.
    The gradient is not clipped: the search compares it with values.
    """
    search = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=search_steps, initial_guess_strategy="one"
    )
    return optax.chain(
        optax.lbfgs(memory_size=memory, linesearch=search),
        optax.scale_by_schedule(
            lambda step: learning_rate * height_above_zero(step, total_steps, warmup)
        ),
        decay(weight_decay, total_steps, warmup),
    )


SPEC = Spec(
    name="lbfgs",
    build=build,
    # A share of the step that the line search takes.
    space={"learning_rate": Range(1e-2, 1.0), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, memory=Bounds(1), search_steps=Bounds(1)),
    reference=(
        "Liu and Nocedal 1989, optax.lbfgs. Made for full gradients; here each step sees another "
        "lesson, hence the shortened steps."
    ),
    vmappable=False,
)
