"""What an optimizer tells about itself beside `build`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

EvalParams = Callable[[Any, Any], Any]  # opt_state, params -> the parameters to evaluate


class OptimizerError(ValueError):
    """An optimizer cannot be had as asked for; one line that names the value and the way out."""


class Search(NamedTuple):
    """The range in which a hyperparameter is searched."""

    low: float
    high: float
    log: bool = True


class Allowed(NamedTuple):
    """The values that a hyperparameter can have at all: low <= value < high."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f">= {self.low:g}" + ("" if self.high == math.inf else f" and < {self.high:g}")


@dataclasses.dataclass(frozen=True)
class Spec:
    """An optimizer.

    Attributes:
      name: as in `--opt`.
      build: total_steps, **hyperparameters -> an optax transformation. Hyperparameters and their
        defaults are its keyword-only arguments.
      space: hyperparameter -> range to search. The field's learning rates have two decades each, Adam's
        0.001 to 0.1, others around what makes steps as long; a comment says why.
      allowed: hyperparameter -> values outside of which it is refused.
      reference: paper and code, and where this differs.
      eval_params: for methods that are evaluated elsewhere than where they step.
      vectorizes: whether several trials run well under `jax.vmap`. Not those whose loops would go on for
        all until the slowest is done, such as line searches: on accelerators they learn one by one.
    """

    name: str
    build: Callable[..., optax.GradientTransformation]
    space: Mapping[str, Search] = dataclasses.field(default_factory=dict)
    allowed: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)
    reference: str = ""
    eval_params: EvalParams | None = None
    vectorizes: bool = True
