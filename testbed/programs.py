"""What a trial computes: one pure step, and the programs compiled of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array, random

from testbed import devices, lessons, resident, streamed
from testbed.errors import RequestError
from testbed.lessons import Lesson
from testbed.tasks.task import Task, fields_of
from testbed.world import Course, Keys, Params, Student, World, make_keys, make_lesson


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the loop must know of an optimizer.

    Attributes:
      name: as it stands in the record.
      build: total_steps, **hyperparameters -> an optax transformation.
      hyperparameters: all of them, defaults included.
      sha256: of the optimizer's source.
      eval_params: opt_state, params -> the parameters to evaluate; on the clock.
      vectorizes: whether it runs well under `jax.vmap`; see `Spec`.
    """

    name: str
    build: Callable[..., optax.GradientTransformation]
    hyperparameters: Mapping[str, Any]
    sha256: str
    eval_params: Callable[[Any, Params], Params] | None = None
    vectorizes: bool = True


class Split(NamedTuple):
    """Hyperparameters that are compiled in, and the names of those that are arguments."""

    static: tuple[tuple[str, Any], ...]
    traced: tuple[str, ...]


def split_hyperparameters(optimizer: Optimizer) -> Split:
    """Floats are arguments."""
    values = sorted(optimizer.hyperparameters.items())
    return Split(
        static=tuple((name, value) for name, value in values if type(value) is not float),
        traced=tuple(name for name, value in values if type(value) is float),
    )


class State(NamedTuple):
    """What a step hands to the next."""

    step: Array  # [] int32: updates so far
    params: Params
    opt_state: Any
    loss: Array  # []: of the last step, before its update
    finite: Array  # [] bool: the last loss and the parameters are


def learn(
    state: State,
    lesson: Lesson,
    key: Array,
    student: Student,
    optimizer: optax.GradientTransformationExtraArgs,
) -> State:
    """One step: loss, gradient, update. Knows neither protocol nor optimizer.

    The optimizer receives optax's extra arguments: `value`, `grad`, `value_fn` (parameters -> loss on
    this lesson), `logits_fn` (parameters -> student's logits) and `key`, fresh at every step.
    """

    def logits_fn(params: Params) -> Array:
        return student(params, lesson.images)

    # optax's line searches hand the other extra arguments on to value_fn, by these names.
    def value_fn(params: Params, key: Any = None, logits_fn: Any = None) -> Array:
        del key, logits_fn
        return lessons.loss(lesson, student(params, lesson.images))

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
    require_same_tree("update returned a state", opt_state, "the one of init", state.opt_state)
    params = optax.apply_updates(state.params, updates)
    finite = functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    )
    return State(state.step + 1, params, opt_state, value, finite & jnp.isfinite(value))


def require_same_tree(what: str, tree: Any, other: str, like: Any) -> None:
    """Raises RequestError naming the first path at which two trees differ in structure or shape."""
    ours, theirs = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (tree, like)
    )
    for path in [*theirs, *ours]:
        if ours.get(path) != theirs.get(path):
            raise RequestError(
                f"{what} {ours.get(path, 'nothing')} at {path or 'the root'}, where {other} "
                f"has {theirs.get(path, 'nothing')}; return one array for each, of its shape"
            )


class Programs(NamedTuple):
    """Compiled for one task, protocol, optimizer and horizon; hyperparameters are arguments."""

    init: Callable[..., State]  # keys, hyperparameters, parameters to start from or None -> state
    advance: Callable[..., State]  # state, stop, world, keys, hyperparameters -> state
    eval_params: Callable[[Any, Params], Params]
    examine: Callable[[Params], dict[str, float]]
    hyperparameters: tuple[str, ...]  # those that are arguments and not compiled in
    params: Params  # shapes of the student's parameters
    checkpointed: bool = False  # whether its activations would not fit and are computed twice


def load_course(task: Task, protocol: str) -> Course:
    """What a task's trials are taught from and examined on."""
    return (streamed if task.streamed else resident).load_course(task, protocol)


def compile_programs(
    task: Task, protocol: str, optimizer: Optimizer, total_steps: int, *, from_start: bool = False
) -> Programs:
    """Compiles ahead all that a trial runs.

    A trial that differs in seed or in floating-point hyperparameters alone gets the same programs.

    Args:
      task: what is learned.
      protocol: how a batch becomes a lesson.
      optimizer: what learns.
      total_steps: what the optimizer is told.
      from_start: whether `init` is given parameters to start from.

    Raises:
      RequestError: the optimizer fails on the student's parameters.
    """

    def compiled(split: Split) -> Programs:
        return _programs(
            task,
            protocol,
            optimizer.name,
            optimizer.build,
            optimizer.eval_params,
            total_steps,
            *split,
            from_start,
            devices.mesh(),
        )

    with refusing(optimizer):
        try:
            return compiled(split_hyperparameters(optimizer))
        except jax.errors.JAXTypeError:
            # The optimizer branches in Python on a hyperparameter: it is compiled in.
            return compiled(Split(tuple(sorted(optimizer.hyperparameters.items())), ()))


@contextmanager
def refusing(optimizer: Optimizer) -> Iterator[None]:
    """Inside, whatever goes wrong is a RequestError that names the optimizer."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"optimizer {optimizer.name}: {error}") from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise RequestError(
            f"optimizer {optimizer.name}: {type(error).__name__}: {message[:300]}; --debug shows where"
        ) from error


@functools.lru_cache(maxsize=64)
def _programs(
    task: Task,
    protocol: str,
    name: str,
    build: Callable[..., optax.GradientTransformation],
    eval_params: Callable[[Any, Params], Params] | None,
    total_steps: int,
    static: tuple[tuple[str, Any], ...],
    traced: tuple[str, ...],
    from_start: bool,
    mesh: Any,
) -> Programs:
    del name, mesh  # parts of the cache's key
    course = load_course(task, protocol)
    network = task.in_precision(task.student)

    def make_optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(build(total_steps, **dict(static), **hp))

    def compile_with(network: nn.Module) -> Programs:
        functions = make_functions(task, protocol, network, make_optimizer)
        return _compile(functions, course, eval_params, traced, from_start)

    can_be_checkpointed = "checkpoint" in fields_of(network)
    try:
        programs = compile_with(network)
        if devices.fits(programs.advance) or not can_be_checkpointed:
            return programs
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
        if "RESOURCE_EXHAUSTED" not in str(error) or not can_be_checkpointed:
            raise
    return compile_with(network.clone(checkpoint=True))._replace(checkpointed=True)


class Functions(NamedTuple):
    """What a trial computes, before it is compiled."""

    student: Student
    init: Callable[..., State]  # as in Programs, with the world (or its shapes) before
    advance: Callable[..., State]


def make_functions(
    task: Task,
    protocol: str,
    network: nn.Module,
    make_optimizer: Callable[[Mapping[str, Any]], optax.GradientTransformationExtraArgs],
) -> Functions:
    """A trial's functions.

    Args:
      task: of which only shapes, crops, teachers and temperature matter here.
      protocol: its name.
      network: the student.
      make_optimizer: hyperparameters -> optimizer.
    """

    def student(params: Params, images: Array) -> Array:
        return network.apply({"params": params}, images)  # type: ignore[return-value]

    def init(image_shape: tuple[int, ...], keys: Keys, hp: Mapping[str, Any], start: Params) -> State:
        view = jnp.zeros((1, *image_shape))
        params = network.init(keys.weights, view)["params"] if start is None else start
        opt_state = jax.tree.map(jnp.asarray, make_optimizer(hp).init(params))
        return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.bool(True))

    def advance(state: State, stop: Array, world: World, keys: Keys, hp: Mapping[str, Any]) -> State:
        optimizer = make_optimizer(hp)

        def step(state: State) -> State:
            lesson = make_lesson(task, protocol, world, keys.lessons, state.step)
            return learn(state, lesson, random.fold_in(keys.optimizer, state.step), student, optimizer)

        # One body, compiled once, however many steps are asked for: where a trial stops between
        # dispatches changes no bit of it.
        return jax.lax.while_loop(lambda s: (s.step < stop) & s.finite, step, state)

    return Functions(student, init, advance)


def _compile(
    functions: Functions,
    course: Course,
    eval_params: Callable[[Any, Params], Params] | None,
    traced: tuple[str, ...],
    from_start: bool,
) -> Programs:
    student, _, advance = functions
    init = functools.partial(functions.init, course.world.images.shape[1:])
    keys, hp = make_keys(0), dict.fromkeys(traced, 0.0)
    params = jax.eval_shape(lambda: init(keys, hp, None).params)
    begin = compile_init(init, keys, hp, params if from_start else None)
    state = jax.tree.map(_placed, jax.eval_shape(init, keys, hp, None), begin.output_shardings)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    evaluated = eval_params or (lambda opt_state, params: params)
    shapes = jax.eval_shape(evaluated, state.opt_state, state.params)
    require_same_tree("eval_params returned", shapes, "the parameters", state.params)
    stepped = jax.jit(advance, donate_argnums=0, out_shardings=placed)
    chosen = jax.jit(evaluated, out_shardings=placed.params)
    return Programs(
        init=begin,
        advance=stepped.lower(state, jnp.int32(0), course.world, keys, hp).compile(),
        eval_params=chosen.lower(state.opt_state, state.params).compile() if eval_params else evaluated,
        examine=course.make_examine(student, state.params),
        hyperparameters=traced,
        params=params,
    )


def compile_init(init: Callable[..., State], keys: Keys, hp: Mapping[str, Any], start: Params) -> Any:
    """Decides where a state goes.

    Parameters go where `devices` says, and so does what an optimizer keeps in their likeness, such as
    averages of gradients; the rest goes where the optimizer lets it.
    """
    state = jax.eval_shape(init, keys, hp, start)
    # Copies: the parameters, their gradient, and an optimizer's state of about two.
    placed = devices.parameters(state.params, copies=4)
    whole = devices.whole()
    tree: Any = jax.tree.structure(state.params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]

    def is_alike(part: Any) -> bool:
        return (
            tree == jax.tree.structure(part) and [leaf.shape for leaf in jax.tree.leaves(part)] == shapes
        )

    of_optimizer = jax.tree.map(
        lambda part: placed if is_alike(part) else None, state.opt_state, is_leaf=is_alike
    )
    shardings: Any = (whole, placed, of_optimizer, whole, whole)
    return jax.jit(init, out_shardings=State(*shardings)).lower(keys, hp, start).compile()


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
