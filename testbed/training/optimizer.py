"""What the loop needs to know about an optimizer, and the forms in which users may give one."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Hashable, Mapping
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from testbed import devices, plugins
from testbed.errors import RequestError, check_name, refusing
from testbed.identity import source_sha256
from testbed.problem.lessons import Params
from testbed.problem.problem import Problem

Build = Callable[..., optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with its hyperparameters.

    Attributes:
      name: as in the record.
      build: total_steps, **hyperparameters -> an optax transformation.
      hyperparameters: all of them, defaults included.
      sha256: of the optimizer's source.
      eval_params: opt_state, params -> the parameters to evaluate; on the clock.
      vmappable: whether several trials run well under `jax.vmap`; see `optimizers.spec.Spec`.
      diagnostics: opt_state -> the optimizer's own counts by name (scalars); off the clock.
    """

    name: str
    build: Build
    hyperparameters: Mapping[str, Any]
    sha256: str
    eval_params: Callable[[Any, Params], Params] | None = None
    vmappable: bool = True
    diagnostics: Callable[[Any], Mapping[str, Array]] | None = None

    @property
    def identity(self) -> Any:
        """What `build` is known by among this process' programs: itself, if it can be hashed."""
        return self.build if isinstance(self.build, Hashable) else id(self.build)


@dataclasses.dataclass(frozen=True)
class Static:
    """Hyperparameters that are compiled in; two are equal if their values read the same."""

    text: str
    values: Mapping[str, Any] = dataclasses.field(compare=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Static":
        """From name -> value, of any types: also those that cannot be hashed."""
        return cls(repr(sorted(values.items())), values)


class Partition(NamedTuple):
    """Hyperparameters that are compiled in, and the names of those that are arguments."""

    static: Static
    traced: tuple[str, ...]


def partition_hyperparameters(optimizer: Optimizer) -> Partition:
    """Makes floats arguments, and compiles in the others."""
    values = optimizer.hyperparameters
    traced = tuple(sorted(name for name, value in values.items() if type(value) is float))
    return Partition(Static.of({n: v for n, v in values.items() if n not in traced}), traced)


def all_static(optimizer: Optimizer) -> Partition:
    """Compiles all in, for an optimizer whose Python code needs the value of one."""
    return Partition(Static.of(optimizer.hyperparameters), ())


def as_optimizer(given: Any, problem: Problem, name: str | None = None) -> Optimizer:
    """Makes an Optimizer from what a user gives.

    Args:
      given: an Optimizer; a name, as after `--opt`; a Spec; an optax transformation; or a function
        build(total_steps, *, ...) that returns one, whose keyword-only arguments have defaults.
      problem: the problem for whose parameters a transformation without a source is identified.
      name: to be recorded instead of its own.

    Raises:
      RequestError: `given` is none of these, or cannot be identified, or its name is none.
    """
    if isinstance(given, str):
        given = find(given)
    if isinstance(given, Optimizer):
        optimizer = given
    elif hasattr(given, "build") and hasattr(given, "eval_params"):
        optimizer = from_spec(given)
    elif isinstance(given, optax.GradientTransformation):
        optimizer = from_transformation(given, problem)
    elif callable(given) and str(getattr(given, "__module__", "")).partition(".")[0] != "optax":
        label = getattr(given, "__name__", type(given).__name__).replace("<lambda>", "lambda")
        plugins.require_build(f"optimizer {label}", given)
        optimizer = Optimizer(label, given, plugins.defaults(given), source_sha256(given, label))
    else:
        raise RequestError(
            f"optimizer {given!r}: give an optax transformation such as optax.adam(0.01), a function "
            "build(total_steps, *, ...) that returns one, or a registered name such as 'adam'"
        )
    optimizer = optimizer if name is None else dataclasses.replace(optimizer, name=name)
    check_name("optimizer (Trial(name=...) gives it another name)", optimizer.name)
    return optimizer


def find(name: str) -> Any:
    """The Spec that a name, as after `--opt`, stands for; by an entry point, not by an import upwards.

    Raises:
      RequestError: there is none, or the package is not installed.
    """
    for registry in entry_points(group="funmatch.optimizers"):
        return registry.load()(name)
    raise RequestError(f"optimizer {name!r}: names need an installed package; pip install -e .")


def from_spec(spec: Any, hyperparameters: Mapping[str, Any] | None = None) -> Optimizer:
    """An Optimizer from a `Spec`; `hyperparameters` replace its defaults."""
    return Optimizer(
        name=spec.name,
        build=spec.build,
        hyperparameters=plugins.defaults(spec.build) | dict(hyperparameters or {}),
        sha256=source_sha256(spec.build, spec.name),
        eval_params=spec.eval_params,
        vmappable=spec.vmappable,
        diagnostics=spec.diagnostics,
    )


@functools.lru_cache(maxsize=64)  # trials of one transformation share their programs
def from_transformation(given: optax.GradientTransformation, problem: Problem) -> Optimizer:
    """An Optimizer from a ready transformation, which is identified by what it computes."""
    sha256 = traced_sha256(given, problem)
    return Optimizer(f"optax-{sha256[:6]}", lambda total_steps: given, {}, sha256)


def traced_sha256(given: optax.GradientTransformation, problem: Problem) -> str:
    """SHA-256 of the programs of `init` and `update` for a problem's parameters, with their constants.

    A transformation is a pair of closures, whose source does not determine them; their programs do. The
    checksum is the same in every process with one version of JAX; another version may change it.

    Raises:
      RequestError: it calls back into Python, so that the programs do not determine it.
    """
    optimizer = optax.with_extra_args_support(given)
    logits = problem.lesson_shapes.logits

    def value_fn(params: Params, **_: Any) -> Array:
        return sum((jnp.sum(p**2) for p in jax.tree.leaves(params)), jnp.float32(0))

    def update(grads: Params, state: Any, params: Params, key: Array) -> Any:
        extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn, "key": key}
        logits_fn = {"logits_fn": lambda params: jnp.zeros(logits.shape[1:]) + value_fn(params)}
        return optimizer.update(grads, state, params, obj_fn=value_fn, **extra, **logits_fn)

    key = jax.eval_shape(jax.random.key, 0)
    with devices.as_if_one(), refusing("optimizer"):
        params = jax.eval_shape(lambda key: problem.init_with(problem.network, key), key)
        state = jax.eval_shape(optimizer.init, params)
        programs = (
            jax.jit(optimizer.init).trace(params),
            jax.jit(update).trace(params, state, params, key),
        )
        texts = [str(traced.lower(lowering_platforms=("cpu",)).as_text()) for traced in programs]
    if any("callback" in text for text in texts):
        raise RequestError(
            "an optax transformation that calls back into Python cannot be identified by what it "
            "computes; give a function build(total_steps) that returns it"
        )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def require_effect(
    optimizer: Optimizer, problem: Problem, total_steps: int, given: Mapping[str, Any]
) -> None:
    """Refuses values that an optimizer accepts, and that change nothing about its updates.

    The programs of `init` and `update` are compared with those that the value's default gives.

    Args:
      optimizer: with the values.
      problem: whose parameters are updated.
      total_steps: the horizon.
      given: the hyperparameters that a user gave -> their defaults.

    Raises:
      RequestError: one of them has no effect.
    """

    def program(hp: Mapping[str, Any]) -> str:
        with redirect_stdout(io.StringIO()):  # the trial prints it
            return traced_sha256(optimizer.build(total_steps, **hp), problem)

    values = optimizer.hyperparameters
    for name, default in given.items():
        if repr(values[name]) == repr(default):
            continue
        same = False
        with suppress(Exception):  # it is reported when the trial is compiled
            same = program(values) == program({**values, name: default})
        if same:
            raise RequestError(
                f"--hp {name}={values[name]}: it changes nothing about the updates of {optimizer.name}, "
                f"as its other hyperparameters are; leave it out"
            )
