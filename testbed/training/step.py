"""One step of training: loss, gradient, update. Pure; knows neither protocol nor optimizer."""

import functools
import inspect
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

EXTRA = ("value", "grad", "value_fn", "obj_fn", "logits_fn", "key")  # arguments of `update`


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
    this lesson; the same as `obj_fn`), `logits_fn` (parameters -> student's logits) and `key`, fresh at
    every step.

    Raises:
      RequestError: at tracing; `update` needs another extra argument, or what it returns does not match
        the parameters or the state.
    """

    def logits_fn(params: Params) -> Array:
        return student(params, lesson.inputs)

    # optax's line searches pass the other extra arguments on to value_fn, by these names.
    def value_fn(params: Params, key: Any = None, logits_fn: Any = None, obj_fn: Any = None) -> Array:
        del key, logits_fn, obj_fn
        return protocols.loss(distance, lesson, student(params, lesson.inputs))

    value, grad = jax.value_and_grad(value_fn)(state.params)
    extra = dict(zip(EXTRA, (value, grad, value_fn, value_fn, logits_fn, key), strict=True))
    updates, opt_state = _update(optimizer, grad, state, extra)
    require_same_tree("update returned", updates, "the parameters", state.params, dtypes=False)
    require_same_tree("update returned a state with", opt_state, "the one from init", state.opt_state)
    params = optax.apply_updates(state.params, updates)
    finite = functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    )
    new = State(state.step + 1, params, opt_state, value, finite & jnp.isfinite(value))
    return new, Info(grad, updates)


def _update(
    optimizer: optax.GradientTransformationExtraArgs, grad: Params, state: State, extra: dict[str, Any]
) -> tuple[Params, Any]:
    """What `update` returns, its state as arrays. It is given those extra arguments that it can take."""
    parameters = inspect.signature(optimizer.update).parameters
    if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        extra = {name: value for name, value in extra.items() if name in parameters}
    try:
        updates, opt_state = optimizer.update(grad, state.opt_state, state.params, **extra)
    except TypeError as error:
        if "missing" in str(error):
            raise RequestError(f"{error}; there are {', '.join(EXTRA)}") from error
        raise
    return updates, as_state("update returned", opt_state)


def as_state(what: str, tree: Any) -> Any:
    """An optimizer's state with arrays for leaves, which may be numbers.

    Raises:
      RequestError: a leaf is something else, such as a text, a set, or an object of a class that is not
        registered as a pytree; or a dictionary's keys cannot be sorted.
    """

    def as_array(path: Any, leaf: Any) -> Array:
        try:
            array = jnp.asarray(leaf)
            if _bits(array.dtype) < 8:
                raise RequestError(
                    f"{what} {array.dtype} at {_path(path)}, which JAX cannot pass from program to "
                    "program; return it as int8, and convert it in update"
                )
            return array
        except RequestError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"{what} a {type(leaf).__name__} at {_path(path)}, where a state has an array or a "
                f"number of JAX's types; {_REGISTER}"
            ) from error

    try:
        jax.tree.leaves(tree)
    except ValueError as error:
        where = _path(_unsorted(tree))
        raise RequestError(
            f"{what} a dictionary at {where} whose keys cannot be sorted; use texts"
        ) from error
    return jax.tree.map_with_path(as_array, tree)


def _bits(dtype: Any) -> int:
    """Of a number; 8 of all else."""
    if jnp.issubdtype(dtype, jnp.integer):
        return int(jnp.iinfo(dtype).bits)
    return int(jnp.finfo(dtype).bits) if jnp.issubdtype(dtype, jnp.floating) else 8


_REGISTER = "a class of its own is a NamedTuple, or registered by jax.tree_util.register_dataclass"


def _unsorted(tree: Any) -> tuple[Any, ...]:
    """The path of a node of a tree that cannot be flattened: a dictionary."""
    try:
        flat: Any = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    except ValueError:
        return ()
    for path, child in flat[0]:
        try:
            jax.tree.leaves(child)
        except ValueError:
            return (*path, *_unsorted(child))
    return ()


def require_same_tree(what: str, tree: Any, other: str, like: Any, *, dtypes: bool = True) -> None:
    """Raises RequestError naming the first path at which two trees of arrays differ.

    Args:
      what: the tree and who made it, for the message.
      tree: what was made.
      other: whose the second is.
      like: the second tree.
      dtypes: whether data types are to be the same too; if not, any real numbers are as good.
    """
    found, expected = (_leaves(t, dtypes=dtypes) for t in (tree, like))
    for path in [*expected, *found]:
        if found.get(path) != expected.get(path):
            raise RequestError(
                f"{what} {found.get(path, 'nothing')} at {path}, where {other} has "
                f"{expected.get(path, 'nothing')}; return one array for each, of its shape"
                + (" and type" if dtypes else "")
            )
    structures: list[Any] = [jax.tree.structure(tree), jax.tree.structure(like)]
    if structures[0] != structures[1]:
        raise RequestError(
            f"{what} other containers than {other} has, such as a list for a tuple, or other values in "
            "a dataclass's static fields; return the same"
        )


def _leaves(tree: Any, *, dtypes: bool) -> dict[str, str]:
    """Path -> data type and shape of each leaf."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        is_real = jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
        shape = ", ".join(map(str, jnp.shape(leaf)))
        found[_path(path)] = f"{'' if is_real and not dtypes else dtype}[{shape}]"
    return found


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"


def ending(state: State) -> tuple[str, str]:
    """Status and reason of a trial that ends in this state."""
    if state.finite:
        return "finished", ""
    return "diverged", f"{'parameters are' if jnp.isfinite(state.loss) else 'loss is'} not finite"
