"""What batched trials compute: lessons for all of them, and the training of each group.

A group is the trials of a batch that share their programs: one optimizer, with the values in which its
trials differ (hyperparameters, first weights, the optimizer's randomness) on a leading axis, which is
divided over the devices. A device trains its trials vmapped, or sequentially on the same lessons: on
CPU, where that is faster (a small network and its activations stay in a core's cache) and where batches
of matrix decompositions can deadlock, and for optimizers that are declared not vmappable.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from testbed import devices
from testbed.errors import RequestError, refusing
from testbed.problem.evaluation import EvalData, Student, evaluate
from testbed.problem.lessons import Keys, Params, TrainingData, make_keys, split_seeds
from testbed.problem.problem import Problem
from testbed.problem.protocols import Lesson
from testbed.training.compile import (
    KEPT,
    ProgramKey,
    build_once,
    explaining,
    make_functions,
    program_key,
    traced_sha256,
)
from testbed.training.optimizer import Partition, all_static, partition_hyperparameters
from testbed.training.step import State, require_same_tree, train_step
from testbed.training.trial import Trial

LESSON_BYTES = 2**26  # of lessons in the queue for training


class TooLarge(RequestError):  # noqa: N818 (a name of its own is clearer)
    """A batch does not fit in memory; `fits` trials at once may."""

    def __init__(self, message: str, fits: int) -> None:
        super().__init__(message)
        self.fits = fits


class Members(NamedTuple):
    """The values in which the trials of a group differ; arrays with a leading axis [n]."""

    keys: Keys
    hp: Mapping[str, Array]


Step = Callable[[Members, State, Lesson], State]


Scores = list[dict[str, float]]  # of each trial


class GroupPrograms(NamedTuple):
    """Compiled for a problem, an optimizer, a horizon, and n trials."""

    init: Callable[[Members, Params | None], State]  # parameters to start from -> states [n]
    train: Any  # states, members, lessons [k], first step, stop -> states
    eval_params: Callable[[State], Params]  # states -> parameters [n] to evaluate
    evaluate: Callable[[Params, bool], Scores]  # parameters [n], whether it is the end
    params: Params  # shapes of one student's parameters
    sha256: str  # of `train`, as it was traced


class Group(NamedTuple):
    """Trials with their programs, in n >= len(trials) slots, a multiple of the devices."""

    trials: tuple[Trial, ...]
    members: Members
    programs: GroupPrograms
    vmapped: bool

    def start(self) -> State:
        """States [n] of step 0."""
        init = self.trials[0].init
        return self.programs.init(self.members, init.params(self.programs.params) if init else None)

    def train(self, states: State, lessons: Lesson, first: int, stop: int) -> State:
        """States after step `stop`, unless they diverged; lessons are those of steps from `first` on."""
        return self.programs.train(states, self.members, lessons, np.int32(first), np.int32(stop))

    def evaluate(self, states: State, end: bool) -> Scores:
        """Scores of each trial; `end`: of its schedule."""
        return self.programs.evaluate(self.programs.eval_params(states), end)[: len(self.trials)]


@functools.lru_cache(maxsize=KEPT)
def compile_lessons(problem: Problem, longest: int) -> tuple[Any, Lesson]:
    """Compiles a program that makes the lessons of several steps.

    Args:
      problem: determines the lessons.
      longest: number of lessons per call; fewer if they are large.

    Returns:
      data, key of lessons, first step -> lessons [k]; and the shapes of those.
    """
    data, key, everywhere = problem.source.data, make_keys(0).lessons, devices.replicated()
    one, make = problem.lesson_shapes, problem.make_lesson
    count = 1 if problem.task.streamed else max(1, min(longest, LESSON_BYTES // _bytes(one)))

    def lessons(data: TrainingData, key: Array, first: Array) -> Lesson:
        if count == 1:  # the data may be those of one step
            return jax.tree.map(lambda x: x[None], make(data, key, first))
        return lax.map(lambda step: make(data, key, step), first + jnp.arange(count))

    compiled = jax.jit(lessons, out_shardings=everywhere).lower(data, key, np.int32(0)).compile()
    return compiled, _shaped(one, everywhere, count)


def compile_groups(
    trials: Sequence[Trial], lessons: Lesson, vmapped: bool | None = None
) -> tuple[list[Group], list[Trial]]:
    """Groups of trials, compiled; and those that cannot be batched, because they branch on a float.

    Args:
      trials: of one batch.
      lessons: shapes of the lessons trained on per call.
      vmapped: whether the trials of a group are trained under `vmap` or sequentially on a device; None:
        vmapped, except on CPU and for an optimizer that is declared not vmappable.

    Raises:
      RequestError: an optimizer fails on the student's parameters.
    """
    kinds: dict[Any, list[Trial]] = {}
    for trial in trials:
        partition, optimizer = partition_hyperparameters(trial.optimizer), trial.optimizer
        rule = (optimizer.identity, optimizer.eval_params, optimizer.vmappable)
        kinds.setdefault((rule, partition), []).append(trial)
    groups, alone = [], []
    for (_, partition), of_kind in kinds.items():
        optimizer = of_kind[0].optimizer
        use_vmap = vmapped
        if use_vmap is None:
            use_vmap = optimizer.vmappable and jax.default_backend() != "cpu"
        try:
            groups.append(_group(of_kind, lessons, partition, use_vmap))
        except jax.errors.JaxRuntimeError:  # the compiler's, such as lack of memory
            raise
        except (Exception, SystemExit):  # whatever it is, alone they may run: there, values are known
            require_runs_alone(of_kind)
            alone += of_kind
    return groups, alone


def require_runs_alone(trials: Sequence[Trial]) -> None:
    """Traces a step of each trial with its hyperparameters compiled in.

    Raises:
      RequestError: an optimizer fails on the student's parameters.
    """
    for trial in trials:
        with refusing(f"optimizer {trial.optimizer.name}"), explaining():
            key = static_key(trial)
            _, init, step, _ = make_functions(key)
            keys = trial.keys()
            state = jax.eval_shape(init, keys, {}, None)
            jax.eval_shape(step, state, trial.problem.source.data, keys, {})


def static_key(trial: Trial) -> ProgramKey:
    """The key of a trial's programs with all hyperparameters compiled in."""
    rule = (trial.problem, trial.optimizer, trial.total_steps)
    return program_key(*rule, all_static(trial.optimizer), from_init=trial.init is not None)


def require_fits(groups: Sequence[Group], lessons: Lesson) -> None:
    """Raises TooLarge if a batch needs more than a device's memory."""
    needed, available = sum(needs(groups, lessons)), devices.memory_for_batches()
    if needed > available:
        count = sum(len(group.trials) for group in groups)
        raise too_large(count, f"{needed / 1e9:.2f} GB of {available / 1e9:.2f} GB per device")


def needs(groups: Sequence[Group], lessons: Lesson) -> tuple[int, int]:
    """Bytes on a device, as XLA counts them: arguments, and what the largest program needs in addition.

    0 if XLA does not count them.
    """
    analyses = [group.programs.train.memory_analysis() for group in groups]
    if None in analyses:
        return 0, 0
    own = sum(analysis.argument_size_in_bytes - _bytes(lessons) for analysis in analyses)
    return own + _bytes(lessons), max(analysis.temp_size_in_bytes for analysis in analyses)


def too_large(count: int, needs: str) -> TooLarge:
    """The error for a batch of `count` trials: it names half as many or, for one trial, a run alone."""
    instead = f"{count // 2} at a time" if count > 1 else "it runs alone"
    return TooLarge(f"a batch of {count} needs {needs}: {instead}", count // 2)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _group(trials: Sequence[Trial], lessons: Lesson, partition: Partition, vmapped: bool) -> Group:
    """A group, compiled. Slots beyond the trials, up to a multiple of the devices, repeat the last."""
    first = trials[0]
    n = -(-len(trials) // devices.count()) * devices.count()
    key = program_key(
        first.problem, first.optimizer, first.total_steps, partition, first.init is not None
    )
    for trial in trials:
        build_once(static_key(trial))  # the values are valid, before any is replaced by a tracer
    programs = _compile(key, lessons, n, vmapped)
    slots, sharded = [*trials, *[trials[-1]] * (n - len(trials))], devices.batch_sharded()

    def put(values: Sequence[Any], dtype: Any) -> Array:
        return devices.from_process_local(np.array(values, dtype), sharded)

    seeds, lesson_seeds = ([t.seed for t in slots], [t.lessons for t in slots])
    keys = jax.jit(jax.vmap(split_seeds), out_shardings=sharded)(
        put(seeds, np.int32), put(lesson_seeds, np.int32)
    )
    hp = {
        name: put([t.optimizer.hyperparameters[name] for t in slots], np.float32)
        for name in partition.traced
    }
    return Group(tuple(trials), Members(keys, hp), programs, vmapped)


@functools.lru_cache(maxsize=KEPT)
def _compile(key: ProgramKey, lessons: Lesson, n: int, vmapped: bool) -> GroupPrograms:
    sharded, distance = devices.batch_sharded(), key.problem.task.distance
    student, begin, *_ = make_functions(key)
    each = jax.vmap if vmapped else _map_sequential

    def init(members: Members, start: Params | None) -> State:
        return each(lambda m: begin(m.keys, m.hp, start))(members)

    def step(member: Members, state: State, lesson: Lesson) -> State:
        step_key = random.fold_in(member.keys.optimizer, state.step)
        optimizer = key.make_optimizer(member.hp)
        return train_step(state, lesson, step_key, distance, student, optimizer)[0]

    def eval_params(states: State) -> Params:
        return each(lambda s: key.evaluated(s.opt_state, s.params))(states)

    members = _member_shapes(key.traced, n)
    with devices.as_if_one():
        one = jax.eval_shape(begin, *_first(members), None)
    state = _shaped(one, sharded, n)
    chosen = jax.eval_shape(key.evaluated, one.opt_state, one.params)
    require_same_tree("eval_params returned", chosen, "the parameters", one.params)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    advance = functools.partial(_train_vmapped if vmapped else _train_sequential, step)
    on_init, on_train, on_eval_params = (
        jax.jit(devices.shard_map_trials(f, divided), out_shardings=sharded, donate_argnums=donated)
        for f, divided, donated in ((init, 1, ()), (advance, 2, 0), (eval_params, 1, ()))
    )
    lowered = on_train.lower(state, members, lessons, number, number)
    return GroupPrograms(
        init=on_init.lower(members, one.params if key.from_init else None).compile(),
        train=lowered.compile(),
        eval_params=on_eval_params.lower(state).compile(),
        evaluate=_make_evaluate(key.problem, student, each, _shaped(one.params, sharded, n)),
        params=one.params,
        sha256=traced_sha256(lowered),
    )


def _train_sequential(
    step: Step, states: State, members: Members, lessons: Lesson, first: Array, stop: Array
) -> State:
    """Each trial takes all steps before the next one starts; it stops if it diverges."""

    def of_one(pair: tuple[State, Members]) -> State:
        state, member = pair

        def body(state: State) -> State:
            return step(member, state, jax.tree.map(lambda x: x[state.step - first], lessons))

        return lax.while_loop(lambda s: (s.step < stop) & s.finite, body, state)

    return lax.map(of_one, (states, members))


def _train_vmapped(
    step: Step, states: State, members: Members, lessons: Lesson, first: Array, stop: Array
) -> State:
    """All trials take each step together; diverged trials are frozen."""

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        i, states = carry
        lesson = jax.tree.map(lambda x: x[i - first], lessons)

        def of_one(member: Members, state: State) -> State:
            new = step(member, state, lesson)
            return jax.tree.map(functools.partial(jnp.where, state.finite), new, state)

        return i + 1, jax.vmap(of_one)(members, states)

    def goes_on(carry: tuple[Array, State]) -> Array:
        return (carry[0] < stop) & jnp.any(carry[1].finite)

    start = jnp.max(states.step)  # of those that did not diverge
    return lax.while_loop(goes_on, body, (start, states))[1]


def _map_sequential(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return functools.partial(lax.map, f)


def _make_evaluate(
    problem: Problem, student: Student, each: Callable[..., Any], params: Params
) -> Callable[[Params, bool], Scores]:
    """Scores of each of [n] parameters: in one program if held-out data fit the devices."""
    n = jax.tree.leaves(params)[0].shape[0]
    if problem.eval_data is None:
        one = _shaped(_first(params), devices.replicated())
        evaluate_one = problem.compile_evaluate(student, one)

        def one_after_the_other(params: Params, end: bool) -> Scores:
            on_host = jax.device_get(params)
            return [evaluate_one(jax.tree.map(lambda x, i=i: x[i], on_host), end) for i in range(n)]

        return one_after_the_other

    def evaluate_all(params: Params, data: EvalData, end: Array) -> dict[str, Array]:
        return each(lambda p: evaluate(problem.task, student, p, data, end))(params)

    sharded, data = devices.batch_sharded(), problem.eval_data
    on_devices = jax.jit(devices.shard_map_trials(evaluate_all, 1), out_shardings=sharded)
    compiled = on_devices.lower(params, data, np.bool_(True)).compile()

    def all_at_once(params: Params, end: bool) -> Scores:
        scores = jax.device_get(compiled(params, data, np.bool_(end)))
        return [{name: values[i] for name, values in scores.items()} for i in range(n)]

    return all_at_once


def _member_shapes(traced: Sequence[str], n: int) -> Members:
    number = jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.eval_shape(split_seeds, number, number)
    floats = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in traced}
    return _shaped(Members(keys, floats), devices.batch_sharded(), n)  # type: ignore[arg-type]


def _first(stacked: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)


def _shaped(one: Any, sharding: Any, n: int | None = None) -> Any:
    """Shapes of a tree, or of n of them stacked, placed."""
    axis = () if n is None else (n,)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype, sharding=sharding), one
    )
