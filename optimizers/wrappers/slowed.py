"""An optimizer slowed by a known factor: the weight with which the testbed's scale is calibrated.

`slowed-1.05+adam` is Adam that is given floor(total_steps / 1.05) steps as its horizon, and spends the
surplus steps, spread evenly, doing nothing. After total_steps it is where Adam is after
floor(total_steps / 1.05) steps, so it needs 1.05 times Adam's steps at any quality, on any task: a
comparison with Adam must say so.
"""

import dataclasses
import fractions
import functools
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.spec import Spec
from testbed.errors import RequestError


def slowed(spec: Spec, factor: float) -> Spec:
    """The optimizer that needs `factor` times the steps, called `<name>-slowed-<factor>`.

    Hyperparameters, search space, bounds, `eval_params` and diagnostics are the optimizer's own.

    Args:
      spec: the optimizer.
      factor: 1 or more.

    Raises:
      RequestError: the factor is below 1, or not finite.
    """
    if not 1 <= factor < math.inf:
        raise RequestError(f"an optimizer can be slowed by a factor from 1, not by {factor:g}")

    @functools.wraps(spec.build)
    def build(total_steps: int, **hyperparameters: Any) -> optax.GradientTransformationExtraArgs:
        active = active_steps(total_steps, factor)
        return idling(spec.build(active, **hyperparameters), active, total_steps)

    build.__signature__ = inspect.signature(spec.build)  # type: ignore[attr-defined]
    of_base, diagnostics = spec.eval_params, spec.diagnostics
    return dataclasses.replace(
        spec,
        name=f"{spec.name}-slowed-{factor:g}",
        build=build,
        reference=f"{spec.name}, slowed by the factor {factor:g}: a known truth",
        eval_params=of_base and (lambda state, params: of_base(state.base, params)),
        diagnostics=diagnostics and (lambda state: diagnostics(state.base)),
    )


def wrap(spec: Spec, factor: str) -> Spec:
    """`slowed`, with the factor as it is written after `--opt`.

    Raises:
      RequestError: it is no number from 1.
    """
    try:
        return slowed(spec, float(factor))
    except ValueError as error:
        raise RequestError(
            f"slowed by {factor!r}: give a number from 1, such as slowed-1.05+{spec.name}"
        ) from error


def active_steps(total_steps: int, factor: float) -> int:
    """floor(total_steps / factor), by the factor's decimal digits: 1,050 / 1.05 is 1,000. At least 1."""
    return max(1, int(total_steps / fractions.Fraction(str(factor))))


class IdlingState(NamedTuple):
    """The state of `idling`."""

    phase: Array  # [] int32: active * steps so far, modulo total
    base: Any


def idling(
    base: optax.GradientTransformation, active: int, total: int
) -> optax.GradientTransformationExtraArgs:
    """The base in `active` of every `total` steps, and nothing in the others, which are spread evenly.

    Step c, from 0, is active where floor((c + 1) * active / total) > floor(c * active / total). In the
    others the updates are 0 and the base's state stays what it is. The base is a branch of its own, so
    that its updates are the same bits as without the wrapper; around them, a compiler may round a whole
    training step differently.
    """
    base = optax.with_extra_args_support(base)

    def init(params: Any) -> IdlingState:
        return IdlingState(jnp.zeros([], jnp.int32), base.init(params))

    @functools.wraps(base.update)  # with it, the names of the extra arguments that the base takes
    def update(
        grads: Any, state: IdlingState, params: Any = None, **extra: Any
    ) -> tuple[Any, IdlingState]:
        def act() -> tuple[Any, Any]:
            return base.update(grads, state.base, params, **extra)

        def idle() -> tuple[Any, Any]:
            updates, _ = jax.eval_shape(act)
            return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), updates), state.base

        phase = state.phase + active
        acts = phase >= total
        updates, moved = jax.lax.cond(acts, act, idle)
        return updates, IdlingState(jnp.where(acts, phase - total, phase), moved)

    return optax.GradientTransformationExtraArgs(init, update)
