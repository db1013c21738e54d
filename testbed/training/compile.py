"""Compiles a trial's programs before its clock starts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, random

from testbed import devices
from testbed.errors import refusing
from testbed.models import network as networks
from testbed.problem.evaluation import Evaluate, Student
from testbed.problem.lessons import Keys, Params, TrainingData, make_keys
from testbed.problem.problem import Problem
from testbed.training.optimizer import (
    Build,
    Optimizer,
    Partition,
    all_static,
    partition_hyperparameters,
)
from testbed.training.step import Info, State, require_same_tree, train_step


class ProgramKey(NamedTuple):
    """Everything that determines compiled programs: trials with equal keys share them."""

    problem: Problem
    name: str
    build: Build
    eval_params: Callable[[Any, Params], Params] | None
    total_steps: int
    static: tuple[tuple[str, Any], ...]
    traced: tuple[str, ...]
    from_init: bool

    def make_optimizer(self, hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The transformation with these values of the traced hyperparameters."""
        built = self.build(self.total_steps, **dict(self.static), **hp)
        return optax.with_extra_args_support(built)

    @devices.in_full_precision
    def evaluated(self, opt_state: Any, params: Params) -> Params:
        """The parameters to evaluate."""
        return self.eval_params(opt_state, params) if self.eval_params else params


def program_key(
    problem: Problem, optimizer: Optimizer, total_steps: int, partition: Partition, from_init: bool
) -> ProgramKey:
    """The key of an optimizer's programs, with its hyperparameters partitioned."""
    rule = (optimizer.name, optimizer.build, optimizer.eval_params)
    return ProgramKey(problem, *rule, total_steps, *partition, from_init)


class CompiledTrial(NamedTuple):
    """Compiled for one problem, optimizer and horizon; hyperparameters are arguments."""

    init: Callable[..., State]  # keys, hyperparameters, parameters to start from or None -> state
    advance: Callable[..., State]  # state, stop, data, keys, hyperparameters -> state
    eval_params: Callable[[Any, Params], Params]
    evaluate: Evaluate
    params: Params  # shapes of the student's parameters
    key: ProgramKey
    checkpointed: bool  # whether the student's activations would not fit and are computed twice

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of those that are arguments and not compiled in."""
        return self.key.traced


def compile_trial(
    problem: Problem, optimizer: Optimizer, total_steps: int, *, from_init: bool = False
) -> CompiledTrial:
    """Compiles in advance all programs that a trial runs.

    Trials that differ only in seed or in floating-point hyperparameters get the same programs.

    Args:
      problem: the problem to learn.
      optimizer: the optimizer that learns it.
      total_steps: the horizon that the optimizer is given.
      from_init: whether `init` is given parameters to start from.

    Raises:
      RequestError: the optimizer fails on the student's parameters.
    """
    parts = partition_hyperparameters(optimizer)
    with refusing(f"optimizer {optimizer.name}"):
        try:
            return _compiled(program_key(problem, optimizer, total_steps, parts, from_init))
        except jax.errors.JAXTypeError:
            parts = all_static(optimizer)
            return _compiled(program_key(problem, optimizer, total_steps, parts, from_init))


@functools.lru_cache(maxsize=64)
def _compiled(key: ProgramKey) -> CompiledTrial:
    can_be_checkpointed = "checkpoint" in networks.fields_of(key.problem.network)
    try:
        compiled = _compile(key, checkpointed=False)
        if devices.fits(compiled.advance) or not can_be_checkpointed:
            return compiled
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler rejects what does not fit
        if "RESOURCE_EXHAUSTED" not in str(error) or not can_be_checkpointed:
            raise
    return _compile(key, checkpointed=True)


class Functions(NamedTuple):
    """What a trial computes, before it is compiled."""

    student: Student
    init: Callable[[Keys, Mapping[str, Any], Params | None], State]
    step: Callable[[State, TrainingData, Keys, Mapping[str, Any]], tuple[State, Info]]
    advance: Callable[[State, Array, TrainingData, Keys, Mapping[str, Any]], State]


def make_functions(key: ProgramKey, *, checkpointed: bool = False) -> Functions:
    """A trial's functions; `checkpointed`: the student's activations are computed twice."""
    problem = key.problem
    distance, _ = problem.task.distance, problem.lesson_shapes  # opened before anything is traced
    network = problem.network.clone(checkpoint=True) if checkpointed else problem.network
    student = functools.partial(networks.apply, network)

    @devices.in_full_precision
    def init(keys: Keys, hp: Mapping[str, Any], start: Params | None) -> State:
        params = problem.init_with(network, keys.weights) if start is None else start
        opt_state = jax.tree.map(jnp.asarray, key.make_optimizer(hp).init(params))
        return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.bool(True))

    def step(state: State, data: TrainingData, keys: Keys, hp: Mapping[str, Any]) -> tuple[State, Info]:
        lesson = problem.make_lesson(data, keys.lessons, state.step)
        step_key = random.fold_in(keys.optimizer, state.step)
        optimizer = key.make_optimizer(hp)
        return train_step(state, lesson, step_key, distance, student, optimizer)

    def advance(
        state: State, stop: Array, data: TrainingData, keys: Keys, hp: Mapping[str, Any]
    ) -> State:
        # One body, compiled once for any number of steps: where a trial stops between dispatches
        # does not change the result, bit for bit.
        return jax.lax.while_loop(
            lambda s: (s.step < stop) & s.finite, lambda s: step(s, data, keys, hp)[0], state
        )

    return Functions(student, init, step, advance)


def _compile(key: ProgramKey, *, checkpointed: bool) -> CompiledTrial:
    problem = key.problem
    student, init, _, advance = make_functions(key, checkpointed=checkpointed)
    keys, hp = make_keys(0), dict.fromkeys(key.traced, 0.0)
    params = jax.eval_shape(lambda: init(keys, hp, None).params)
    begin = compile_init(init, keys, hp, params if key.from_init else None)
    state = jax.tree.map(_placed, jax.eval_shape(init, keys, hp, None), begin.output_shardings)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    shapes = jax.eval_shape(key.evaluated, state.opt_state, state.params)
    require_same_tree("eval_params returned", shapes, "the parameters", state.params)
    stepped = jax.jit(advance, donate_argnums=0, out_shardings=placed)
    chosen = jax.jit(key.evaluated, out_shardings=placed.params)
    return CompiledTrial(
        init=begin,
        advance=stepped.lower(state, jnp.int32(0), problem.source.data, keys, hp).compile(),
        eval_params=chosen.lower(state.opt_state, state.params).compile()
        if key.eval_params
        else key.evaluated,
        evaluate=problem.compile_evaluate(student, state.params),
        params=params,
        key=key,
        checkpointed=checkpointed,
    )


def compile_init(init: Callable[..., State], keys: Keys, hp: Mapping[str, Any], start: Params) -> Any:
    """Compiles `init`, and with it decides the placement of a state.

    `devices` places parameters, and in the same way an optimizer's arrays of the same structure, such as
    averages of gradients; the optimizer's own code determines the placement of the rest.
    """
    state = jax.eval_shape(init, keys, hp, start)
    # Copies: the parameters, their gradient, and an optimizer's state of about two.
    placed = devices.parameters(state.params, copies=4)
    everywhere = devices.replicated()
    tree: Any = jax.tree.structure(state.params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]

    def is_like_params(part: Any) -> bool:
        return (
            tree == jax.tree.structure(part) and [leaf.shape for leaf in jax.tree.leaves(part)] == shapes
        )

    of_optimizer = jax.tree.map(
        lambda part: placed if is_like_params(part) else None, state.opt_state, is_leaf=is_like_params
    )
    shardings: Any = (everywhere, placed, of_optimizer, everywhere, everywhere)
    return jax.jit(init, out_shardings=State(*shardings)).lower(keys, hp, start).compile()


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
