"""One step of training: loss, gradient, update. Pure; knows neither protocol nor optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from testbed.devices import in_full_precision
from testbed.errors import RequestError
from testbed.problem import protocols
from testbed.problem.distances import Distance
from testbed.problem.evaluation import Student
from testbed.problem.lessons import Params
from testbed.problem.protocols import Lesson


class State(NamedTuple):
    """What a step passes to the next."""

    step: Array  # [] int32: updates so far
    params: Params
    opt_state: Any
    loss: Array  # []: of the last step, before its update
    finite: Array  # [] bool: whether the last loss and the parameters are finite


class Info(NamedTuple):
    """What a step computes and does not pass on; if it is not read, it costs nothing."""

    grad: Params  # of the loss, at the parameters before the update
    updates: Params  # what was added to them


@in_full_precision
def train_step(
    state: State,
    lesson: Lesson,
    key: Array,
    distance: Distance,
    student: Student,
    optimizer: optax.GradientTransformationExtraArgs,
) -> tuple[State, Info]:
    """One step.

    The optimizer receives optax's extra arguments: `value`, `grad`, `value_fn` (parameters -> loss on
    this lesson), `logits_fn` (parameters -> student's logits) and `key`, fresh at every step.

    Raises:
      RequestError: at tracing; what `update` returns does not match the parameters or the state.
    """

    def logits_fn(params: Params) -> Array:
        return student(params, lesson.inputs)

    # optax's line searches pass the other extra arguments on to value_fn, by these names.
    def value_fn(params: Params, key: Any = None, logits_fn: Any = None) -> Array:
        del key, logits_fn
        return protocols.loss(distance, lesson, student(params, lesson.inputs))

    value, grad = jax.value_and_grad(value_fn)(state.params)
    updates, opt_state = optimizer.update(
        grad,
        state.opt_state,
        state.params,
        value=value,
        grad=grad,
        value_fn=value_fn,
        logits_fn=logits_fn,
        key=key,
    )
    require_same_tree("update returned", updates, "the parameters", state.params)
    require_same_tree("update returned a state", opt_state, "the one from init", state.opt_state)
    params = optax.apply_updates(state.params, updates)
    finite = functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    )
    new = State(state.step + 1, params, opt_state, value, finite & jnp.isfinite(value))
    return new, Info(grad, updates)


def require_same_tree(what: str, tree: Any, other: str, like: Any) -> None:
    """Raises RequestError naming the first path at which two trees differ in structure or shape."""
    shapes, expected = _shapes(tree), _shapes(like)
    for path in [*expected, *shapes]:
        if shapes.get(path) != expected.get(path):
            raise RequestError(
                f"{what} {shapes.get(path, 'nothing')} at {path or 'the root'}, where {other} "
                f"has {expected.get(path, 'nothing')}; return one array for each, of its shape"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}


def ending(state: State) -> tuple[str, str]:
    """Status and reason of a trial that ends in this state."""
    if state.finite:
        return "finished", ""
    return "diverged", f"{'parameters are' if jnp.isfinite(state.loss) else 'loss is'} not finite"
