"""What batched trials compute: lessons for all of them, and the learning of each group.

A group is the trials of a batch that share their programs: one optimizer, with what its trials
differ in (hyperparameters, first weights, the optimizer's randomness) on a leading axis, which is
divided over the devices. A device takes its trials together, under `vmap`; or one after the other, from
the same lessons: on CPU, where that is faster (a small network and its activations stay in a core's
cache) and where batches of matrix decompositions can wait for each other for ever, and for optimizers
that say that they do not vectorize.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from testbed import devices
from testbed.errors import RequestError
from testbed.examination import Exam, examine
from testbed.lessons import Lesson
from testbed.programs import (
    Split,
    State,
    learn,
    load_course,
    make_functions,
    refusing,
    require_same_tree,
    split_hyperparameters,
)
from testbed.tasks.task import Task
from testbed.trial import Trial
from testbed.world import (
    Course,
    Keys,
    Params,
    Student,
    World,
    make_keys,
    make_lesson,
    split_seeds,
)

LESSON_BYTES = 2**26  # of lessons that wait to be learned from


class TooLarge(RequestError):  # noqa: N818 (a name of its own is clearer)
    """A batch does not fit the memory; `fits` trials at once may."""

    def __init__(self, message: str, fits: int) -> None:
        super().__init__(message)
        self.fits = fits


class Members(NamedTuple):
    """What the trials of a group differ in; arrays with a leading axis [n]."""

    keys: Keys
    hp: Mapping[str, Array]


Step = Callable[[Members, State, Lesson], State]


class GroupPrograms(NamedTuple):
    """Compiled for a task, a protocol, an optimizer, a horizon, and n trials."""

    init: Any  # members, parameters to start from or None -> states [n]
    learn: Any  # states, members, lessons [k], first step, stop -> states
    evaluate: Any  # states -> parameters [n] to examine
    examine: Callable[[Params], list[dict[str, float]]]  # those parameters -> scores of each
    params: Params  # shapes of one student's parameters


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials with their programs, in n >= len(trials) places, a multiple of the devices."""

    trials: tuple[Trial, ...]
    members: Members
    programs: GroupPrograms
    vectorized: bool

    def start(self) -> State:
        """States [n] of step 0."""
        first = self.trials[0]
        start = first.start.params(self.programs.params) if first.start else None
        return self.programs.init(self.members, start)

    def learn(self, states: State, lessons: Lesson, first: int, stop: int) -> State:
        """States after step `stop`, unless they diverged; lessons are those of steps from `first` on."""
        return self.programs.learn(states, self.members, lessons, np.int32(first), np.int32(stop))

    def examine(self, states: State) -> list[dict[str, float]]:
        """Scores of each trial."""
        return self.programs.examine(self.programs.evaluate(states))[: len(self.trials)]


def compile_teach(task: Task, protocol: str, most: int) -> tuple[Any, Lesson]:
    """Compiles the making of several steps' lessons, and what they look like.

    Args:
      task: with protocol, what determines lessons.
      protocol: its name.
      most: lessons that are wanted at a time; fewer where they are large.

    Returns:
      world, key of lessons, first step -> lessons [k]; and the shapes of those.
    """
    return _compile_teach(task, protocol, most, devices.mesh())


def compile_groups(
    trials: Sequence[Trial], lessons: Lesson, together: bool | None = None
) -> tuple[list[Group], list[Trial]]:
    """Groups of trials, compiled; and those that cannot be batched, since they branch on a float.

    Args:
      trials: of one batch.
      lessons: shapes of as many as are learned from at a time.
      together: whether trials of a group learn under `vmap` or one after the other on a device; None:
        together, but on CPU and where an optimizer says that it does not vectorize.

    Raises:
      RequestError: an optimizer fails on the student's parameters.
    """
    kinds: dict[Any, list[Trial]] = {}
    for trial in trials:
        split = split_hyperparameters(trial.optimizer)
        rule = (trial.optimizer.build, trial.optimizer.eval_params, trial.optimizer.vectorizes)
        kinds.setdefault((rule, split), []).append(trial)
    groups, alone = [], []
    for (_, split), alike in kinds.items():
        optimizer = alike[0].optimizer
        vectorized = together
        if vectorized is None:
            vectorized = optimizer.vectorizes and jax.default_backend() != "cpu"
        with refusing(optimizer):
            try:
                groups.append(_group(alike, lessons, split, vectorized))
            except jax.errors.JAXTypeError:
                alone += alike
    return groups, alone


def require_fits(groups: Sequence[Group], lessons: Lesson) -> None:
    """Raises TooLarge where a batch needs more than a device's memory."""
    wanted, there = sum(needs(groups, lessons)), devices.memory_for_batches()
    if wanted > there:
        count = sum(len(group.trials) for group in groups)
        raise too_large(count, f"{wanted / 1e9:.2f} GB of {there / 1e9:.2f} GB per device")


def needs(groups: Sequence[Group], lessons: Lesson) -> tuple[int, int]:
    """Bytes on a device, as XLA counts them: what is kept, and what the largest program needs beside.

    0 where it does not count them.
    """
    analyses = [group.programs.learn.memory_analysis() for group in groups]
    if None in analyses:
        return 0, 0
    own = sum(found.argument_size_in_bytes - _bytes(lessons) for found in analyses)
    return own + _bytes(lessons), max(found.temp_size_in_bytes for found in analyses)


def too_large(count: int, needs: str) -> TooLarge:
    """The error of a batch of `count` trials, which asks for half as many; of one, to run it alone."""
    instead = f"{count // 2} at a time" if count > 1 else "it runs alone"
    return TooLarge(f"a batch of {count} needs {needs}: {instead}", count // 2)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=16)
def _compile_teach(task: Task, protocol: str, most: int, mesh: Any) -> tuple[Any, Lesson]:
    del mesh  # part of the cache's key
    world, key, whole = load_course(task, protocol).world, make_keys(0).lessons, devices.whole()
    one = jax.eval_shape(functools.partial(make_lesson, task, protocol), world, key, np.int32(0))
    count = 1 if task.streamed else max(1, min(most, LESSON_BYTES // _bytes(one)))

    def teach(world: World, key: Array, first: Array) -> Lesson:
        if count == 1:  # the world may be that of one step
            return jax.tree.map(lambda x: x[None], make_lesson(task, protocol, world, key, first))
        steps = first + jnp.arange(count)
        return lax.map(lambda step: make_lesson(task, protocol, world, key, step), steps)

    compiled = jax.jit(teach, out_shardings=whole).lower(world, key, np.int32(0)).compile()
    return compiled, _shaped(one, whole, count)


def _group(alike: Sequence[Trial], lessons: Lesson, split: Split, together: bool) -> Group:
    """A group, compiled. Places beyond the trials, up to a multiple of the devices, repeat the last."""
    first = alike[0]
    n = -(-len(alike) // devices.count()) * devices.count()
    programs = _compile(
        _Kind(
            first.task,
            first.protocol,
            first.optimizer.name,
            first.optimizer.build,
            first.optimizer.eval_params,
            first.total_steps,
            *split,
            from_start=first.start is not None,
        ),
        lessons,
        n,
        together,
        devices.mesh(),
    )
    places = [*alike, *[alike[-1]] * (n - len(alike))]
    seeds, lesson_seeds = (
        devices.put(np.array(s, np.int32), devices.split())
        for s in ([t.seed for t in places], [t.lessons for t in places])
    )
    keys = jax.jit(jax.vmap(split_seeds), out_shardings=devices.split())(seeds, lesson_seeds)
    hp = {
        name: devices.put(
            np.array([t.optimizer.hyperparameters[name] for t in places], np.float32),
            devices.split(),
        )
        for name in split.traced
    }
    return Group(tuple(alike), Members(keys, hp), programs, together)


class _Kind(NamedTuple):
    """What the trials of a group have in common, as a key of the cache of programs."""

    task: Task
    protocol: str
    name: str
    build: Callable[..., optax.GradientTransformation]
    eval_params: Callable[[Any, Params], Params] | None
    total_steps: int
    static: tuple[tuple[str, Any], ...]
    traced: tuple[str, ...]
    from_start: bool


@functools.lru_cache(maxsize=64)
def _compile(kind: _Kind, lessons: Lesson, n: int, together: bool, mesh: Any) -> GroupPrograms:
    del mesh  # part of the cache's key
    course, split = load_course(kind.task, kind.protocol), devices.split()
    network = kind.task.in_precision(kind.task.student)

    def make_optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        built = kind.build(kind.total_steps, **dict(kind.static), **hp)
        return optax.with_extra_args_support(built)

    student, begin, _ = make_functions(kind.task, kind.protocol, network, make_optimizer)
    image_shape = course.world.images.shape[1:]
    each = jax.vmap if together else _one_by_one
    evaluated = kind.eval_params or (lambda opt_state, params: params)

    def init(members: Members, start: Params) -> State:
        return each(lambda m: begin(image_shape, m.keys, m.hp, start))(members)

    def step(member: Members, state: State, lesson: Lesson) -> State:
        key = random.fold_in(member.keys.optimizer, state.step)
        return learn(state, lesson, key, student, make_optimizer(member.hp))

    def evaluate(states: State) -> Params:
        return each(lambda s: evaluated(s.opt_state, s.params))(states)

    members = _member_shapes(kind.traced, n)
    with devices.as_if_one():
        one = jax.eval_shape(functools.partial(begin, image_shape), *_first(members), None)
    state = _shaped(one, split, n)
    chosen = jax.eval_shape(evaluated, one.opt_state, one.params)
    require_same_tree("eval_params returned", chosen, "the parameters", one.params)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    advance = functools.partial(_together if together else _in_turn, step)
    on_init, on_learn, on_evaluate = (
        jax.jit(devices.on_members(f, divided), out_shardings=split, donate_argnums=donated)
        for f, divided, donated in ((init, 1, ()), (advance, 2, 0), (evaluate, 1, ()))
    )
    return GroupPrograms(
        init=on_init.lower(members, one.params if kind.from_start else None).compile(),
        learn=on_learn.lower(state, members, lessons, number, number).compile(),
        evaluate=on_evaluate.lower(state).compile(),
        examine=_make_examine(course, student, each, _shaped(one.params, split, n)),
        params=one.params,
    )


def _in_turn(
    step: Step, states: State, members: Members, lessons: Lesson, first: Array, stop: Array
) -> State:
    """Each trial takes all steps before the next one does; it stops where it diverges."""

    def of_one(pair: tuple[State, Members]) -> State:
        state, member = pair

        def body(state: State) -> State:
            return step(member, state, jax.tree.map(lambda x: x[state.step - first], lessons))

        return lax.while_loop(lambda s: (s.step < stop) & s.finite, body, state)

    return lax.map(of_one, (states, members))


def _together(
    step: Step, states: State, members: Members, lessons: Lesson, first: Array, stop: Array
) -> State:
    """All trials take one step after the other; those that diverged stay as they were."""

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


def _one_by_one(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return functools.partial(lax.map, f)


def _make_examine(
    course: Course, student: Student, each: Callable[..., Any], params: Params
) -> Callable[[Params], list[dict[str, float]]]:
    """Scores of each of [n] parameters: in one program where the examination fits the devices."""
    n = jax.tree.leaves(params)[0].shape[0]
    if course.exam is None:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
        examine_one = course.make_examine(student, _shaped(one, devices.whole()))

        def one_after_the_other(params: Params) -> list[dict[str, float]]:
            on_host = jax.device_get(params)
            return [examine_one(jax.tree.map(lambda x, i=i: x[i], on_host)) for i in range(n)]

        return one_after_the_other

    def examine_all(params: Params, exam: Exam) -> dict[str, Array]:
        return each(lambda p: examine(student, p, exam))(params)

    on_devices = jax.jit(devices.on_members(examine_all, 1), out_shardings=devices.split())
    compiled = on_devices.lower(params, course.exam).compile()

    def all_at_once(params: Params) -> list[dict[str, float]]:
        scores = jax.device_get(compiled(params, course.exam))
        return [{name: values[i] for name, values in scores.items()} for i in range(n)]

    return all_at_once


def _member_shapes(traced: Sequence[str], n: int) -> Members:
    number = jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.eval_shape(split_seeds, number, number)
    floats = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in traced}
    return _shaped(Members(keys, floats), devices.split(), n)  # type: ignore[arg-type]


def _first(stacked: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)


def _shaped(one: Any, sharding: Any, n: int | None = None) -> Any:
    """Shapes of a tree, or of n of them stacked, placed."""
    axis = () if n is None else (n,)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype, sharding=sharding), one
    )
