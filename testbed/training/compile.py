"""Compiles a trial's programs before its clock starts."""

import dataclasses
import functools
import hashlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, random

from testbed import devices, process
from testbed.errors import RequestError, describe, refusing
from testbed.models import network as networks
from testbed.problem.evaluation import Evaluate, Student
from testbed.problem.lessons import Keys, Params, TrainingData, make_keys
from testbed.problem.problem import Problem
from testbed.training.optimizer import (
    Build,
    Optimizer,
    Partition,
    Static,
    all_static,
    partition_hyperparameters,
)
from testbed.training.step import Info, State, as_state, require_same_tree, train_step

KEPT = 8  # programs that are kept: each takes some 50 MB, and a thousand of Linux's 65,530 memory maps


@dataclasses.dataclass(frozen=True)
class ProgramKey:
    """Everything that determines compiled programs: trials with equal keys share them."""

    problem: Problem
    identity: Any  # of `build`: itself, or its address if it cannot be hashed
    eval_params: Callable[[Any, Params], Params] | None
    total_steps: int
    static: Static
    traced: tuple[str, ...]
    from_init: bool
    name: str = dataclasses.field(compare=False)
    build: Build = dataclasses.field(compare=False)

    def make_optimizer(self, hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The transformation with these values of the traced hyperparameters.

        Without any, the same object each time: its `init` may leave something in Python for `update`.
        """
        if not self.traced:
            return build_once(self)
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `build_once` has shown all that with real values
            return self.built(hp)

    def built(self, hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """What `build` returns."""
        with process.preserved(f"optimizer {self.name}"):
            built = self.build(self.total_steps, **self.static.values, **hp)
        if not isinstance(built, optax.GradientTransformation):
            kind = type(built).__name__
            raise RequestError(f"build returned a {kind}, not an optax.GradientTransformation")
        return optax.with_extra_args_support(built)

    @devices.in_full_precision
    def evaluated(self, opt_state: Any, params: Params) -> Params:
        """The parameters to evaluate."""
        return self.eval_params(opt_state, params) if self.eval_params else params


@functools.lru_cache(maxsize=KEPT)
def build_once(key: ProgramKey) -> optax.GradientTransformationExtraArgs:
    """The transformation, with all hyperparameters compiled in."""
    return key.built({})


def program_key(
    problem: Problem, optimizer: Optimizer, total_steps: int, partition: Partition, from_init: bool
) -> ProgramKey:
    """The key of an optimizer's programs, with its hyperparameters partitioned."""
    rule, source = (optimizer.identity, optimizer.eval_params), (optimizer.name, optimizer.build)
    return ProgramKey(problem, *rule, total_steps, *partition, from_init, *source)


class CompiledTrial(NamedTuple):
    """Compiled for one problem, optimizer and horizon; hyperparameters are arguments."""

    init: Callable[..., State]  # keys, hyperparameters, parameters to start from or None -> state
    advance: Callable[..., State]  # state, stop, data, keys, hyperparameters -> state
    eval_params: Callable[[Any, Params], Params]
    evaluate: Evaluate
    params: Params  # shapes of the student's parameters
    key: ProgramKey
    checkpointed: bool  # whether the student's activations would not fit and are computed twice
    sha256: str  # of `advance`, as it was traced

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of those that are arguments and not compiled in."""
        return self.key.traced


def compile_trial(
    problem: Problem, optimizer: Optimizer, total_steps: int, *, from_init: bool = False
) -> CompiledTrial:
    """Compiles in advance all programs that a trial runs.

    Trials that differ only in seed or in floating-point hyperparameters get the same programs, unless
    the optimizer's Python code needs the values: if it raises while they are arguments, they are
    compiled in.

    Args:
      problem: the problem to learn.
      optimizer: the optimizer that learns it.
      total_steps: the horizon that the optimizer is given.
      from_init: whether `init` is given parameters to start from.

    Raises:
      RequestError: the optimizer fails on the student's parameters.
    """
    about = f"optimizer {optimizer.name}"
    rule = (problem, optimizer, total_steps)
    with refusing(about):
        static = program_key(*rule, all_static(optimizer), from_init)
        build_once(static)  # the values are valid, before any is replaced by a tracer
        if (parts := partition_hyperparameters(optimizer)).traced:
            try:
                with _printing_on_success():
                    return _compiled(program_key(*rule, parts, from_init))
            except jax.errors.JaxRuntimeError:  # the compiler's, such as lack of memory
                raise
            except (Exception, SystemExit):  # noqa: S110 (whatever it is, the values may help)
                pass
        with _printing_on_success(), explaining():
            return _compiled(static)


@contextmanager
def explaining() -> Iterator[None]:
    """Inside, an optimizer is traced; JAX's errors become RequestErrors that say what can be done."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise RequestError(
            "what it leaves in Python for a later call has arrays; return them in the state "
            f"({describe(error)})"
        ) from error
    except jax.errors.JAXTypeError as error:
        raise RequestError(
            "it cannot be compiled: its Python code needs the value of an array, which is known only "
            "when a step runs; use jnp.where, or static_args of optax.inject_hyperparams "
            f"({describe(error)})"
        ) from error
    except AttributeError as error:
        if not str(error).startswith("'dict' object"):
            raise
        raise RequestError(
            f"{describe(error)}: parameters are nested dictionaries of arrays; a transformation that "
            "needs others, as optax.lookahead does, can keep its own in its state"
        ) from error


@contextmanager
def _printing_on_success() -> Iterator[None]:
    """Inside, what is printed is held back; it is lost if an error is raised, which says enough."""
    streams = (sys.stdout, sys.stderr)
    held = (io.StringIO(), io.StringIO())
    with redirect_stdout(held[0]), redirect_stderr(held[1]):
        yield
    for stream, text in zip(streams, held, strict=True):
        stream.write(text.getvalue())


@functools.lru_cache(maxsize=KEPT)
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
        opt_state = as_state("init returned", key.make_optimizer(hp).init(params))
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
    params = jax.eval_shape(init, keys, hp, None).params
    begin = compile_init(init, keys, hp, params if key.from_init else None)
    state = jax.tree.map(_placed, jax.eval_shape(init, keys, hp, None), begin.output_shardings)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    shapes = jax.eval_shape(key.evaluated, state.opt_state, state.params)
    require_same_tree("eval_params returned", shapes, "the parameters", state.params)
    stepped = jax.jit(advance, donate_argnums=0, out_shardings=placed)
    lowered = stepped.lower(state, jnp.int32(0), problem.source.data, keys, hp)
    chosen = jax.jit(key.evaluated, out_shardings=placed.params)
    return CompiledTrial(
        init=begin,
        advance=lowered.compile(),
        eval_params=chosen.lower(state.opt_state, state.params).compile()
        if key.eval_params
        else key.evaluated,
        evaluate=problem.compile_evaluate(student, state.params),
        params=params,
        key=key,
        checkpointed=checkpointed,
        sha256=traced_sha256(lowered),
    )


def traced_sha256(lowered: Any) -> str:
    """SHA-256 of a step's program as it was traced; the same in every process, with one version of JAX.

    Raises:
      RequestError: the program has inputs that it is not called with: arrays of other traces.
    """
    try:
        _ = lowered.in_avals
    except ValueError as error:
        raise RequestError(
            "what init leaves in Python for update has arrays; return them in the state (sizes, names "
            "and the structure of a tree may be left there)"
        ) from error
    return hashlib.sha256(str(lowered.as_text()).encode()).hexdigest()


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
