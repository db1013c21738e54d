"""Gradient descent whose step is found by backtracking on the step's own lesson."""

import optax

from optimizers.recipe import WEIGHT_DECAY, decay, height_above_zero
from optimizers.spec import Bounds, Range, Spec, bounds


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.821,
    weight_decay: float = 2.55e-06,
    longest: float = 10.0,
    slope: float = 0.1,
    warmup: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    """The first t of 1.5 times the last one, times 0.8, ... with f(p - t g) <= f(p) - slope t |g|^2.

    This is Armijo's rule; where 16 of them fail, the last is taken. The step is then shortened by
    learning_rate and the shared recipe's schedule.
    """
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=15, slope_rtol=slope, increase_factor=1.5, max_learning_rate=longest
    )
    return optax.chain(
        optax.scale(-1.0),
        search,
        optax.scale_by_schedule(
            lambda step: learning_rate * height_above_zero(step, total_steps, warmup)
        ),
        decay(weight_decay, total_steps, warmup),
    )


SPEC = Spec(
    name="sgd_line_search",
    build=build,
    # A share of the step that the line search takes.
    space={"learning_rate": Range(1e-2, 1.0), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, longest=Bounds(1e-12), slope=Bounds(0.0, 1.0)),
    reference="Vaswani et al. 2019 (arXiv 1905.09997), optax.scale_by_backtracking_linesearch.",
    vmappable=False,
)
