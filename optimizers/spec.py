"""What an optimizer says about itself beside `build`."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax
from jax import Array

from testbed import plugins
from testbed.errors import RequestError, check_name

EvalParams = Callable[[Any, Any], Any]  # opt_state, params -> the parameters to evaluate
Diagnostics = Callable[[Any], Mapping[str, Array]]  # opt_state -> name -> scalar


class Range(NamedTuple):
    """The range in which a hyperparameter is searched: low < high; low > 0, if it is logarithmic."""

    low: float
    high: float
    log: bool = True


class Bounds(NamedTuple):
    """The values that a hyperparameter can have at all: low <= value < high, with low < high."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f">= {self.low:g}" + ("" if self.high == math.inf else f" and < {self.high:g}")


SHARED: Mapping[str, Bounds] = MappingProxyType(  # of hyperparameters that several optimizers have
    {
        "learning_rate": Bounds(0.0),
        "weight_decay": Bounds(0.0),
        "warmup": Bounds(0.0, 1.0),
        "clip": Bounds(1e-6),
        "momentum": Bounds(0.0, 1.0),
        "b1": Bounds(0.0, 1.0),
        "b2": Bounds(0.0, 1.0),
        "shampoo_b2": Bounds(0.0, 1.0),
        "eps": Bounds(0.0),
        "ridge": Bounds(1e-12),
        "interval": Bounds(1),
        "start": Bounds(0),
        "block": Bounds(1),
        "merge": Bounds(1),
        "longest": Bounds(1),
    }
)


def bounds(build: Callable[..., Any], **own: Bounds) -> dict[str, Bounds]:
    """The bounds of an optimizer: SHARED where `build` has such a hyperparameter, and its own."""
    names = inspect.signature(build).parameters
    return {name: SHARED[name] for name in names if name in SHARED} | own


@dataclasses.dataclass(frozen=True)
class Spec:
    """An optimizer; one that contradicts itself is refused when it is made.

    Attributes:
      name: as in `--opt`, and in records and the names of their folders; see `errors.check_name`.
      build: total_steps, **hyperparameters -> an optax transformation. Hyperparameters and their
        defaults are its keyword-only arguments.
      space: hyperparameter -> range to search. The field's learning rates have two decades each, Adam's
        0.001 to 0.1, others around what makes steps as long; a comment says why.
      bounds: hyperparameter -> values outside of which it is refused; `bounds(build)` has those of
        common names.
      reference: paper and code, and where this differs.
      eval_params: for methods that are evaluated elsewhere than where they step.
      vmappable: whether several trials run well under `jax.vmap`. Not those whose loops would go on for
        all until the slowest is done, such as line searches: on accelerators these run one by one.
      diagnostics: the optimizer's state -> what it says about its work: name -> scalar. Read off the
        clock, where a trial is measured; it changes nothing about training.
    """

    name: str
    build: Callable[..., optax.GradientTransformation]
    space: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, Bounds] = dataclasses.field(default_factory=dict)
    reference: str = ""
    eval_params: EvalParams | None = None
    vmappable: bool = True
    diagnostics: Diagnostics | None = None

    def __post_init__(self) -> None:
        check_name("optimizer", self.name)
        what = f"optimizer {self.name}"
        plugins.require_build(what, self.build)
        _require_table(f"{what}: its space", self.build, self.space, Range)
        _require_table(f"{what}: its bounds", self.build, self.bounds, Bounds)
        for name, (low, high, log) in self.space.items():
            if not -math.inf < low < high < math.inf or (log and low <= 0):
                raise RequestError(
                    f"{what}: the search space of {name} is empty: {low:g} to {high:g}; it needs "
                    f"low < high{' and low > 0, since it is logarithmic' if log else ''}"
                )
        for name, (low, high) in self.bounds.items():
            if not low < high:
                raise RequestError(
                    f"{what}: no value of {name} is allowed: {low:g} <= {name} < {high:g}"
                )


def _require_table(
    what: str, build: Callable[..., Any], table: object, kind: type[Range] | type[Bounds]
) -> None:
    """Raises RequestError unless it maps hyperparameters of `build` to a `kind` of numbers."""
    if not isinstance(table, Mapping):
        raise RequestError(f"{what} is {table!r}; write {{name: {kind.__name__}(low, high)}}")
    variadic = inspect.Parameter.VAR_KEYWORD in {
        p.kind for p in inspect.signature(build).parameters.values()
    }
    known = list(plugins.hyperparameters(build))
    for name, limits in table.items():
        if name not in known and not variadic:
            raise RequestError(f"{what} names {name!r}, but build has {', '.join(known) or 'none'}")
        if not isinstance(limits, kind) or not all(isinstance(x, float | int) for x in limits[:2]):
            raise RequestError(f"{what} of {name} is {limits!r}; write {kind.__name__}(low, high)")
