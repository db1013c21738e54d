"""The evaluation: how a student is measured, off the clock.

Held-out views are the same for every seed, optimizer and protocol (only the training lessons depend on
the protocol), so that a difference between two curves is one between two students. Several random
views of each held-out example make KL and agreement fine-grained if there are only a few hundred
examples.

A comparison is decided at the end of a schedule. There, scores on mixed views average many rounds of
views, and scores of generated data many rounds of draws, so that their choice adds next to nothing to
the spread between students; along the way a few of the same rounds are enough for a curve.

`scores` computes the scores of each example. This module averages them: in one program if held-out data
fit the devices, batch by batch if they come from the host.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from testbed import devices
from testbed.data import views
from testbed.data.loader import ahead
from testbed.problem.lessons import Params, TrainingData, make_lesson, teacher_logits
from testbed.problem.protocols import Lesson
from testbed.problem.scores import SCORES, Outputs, Score, lesson_scores, scores
from testbed.problem.task import Task

Student = Callable[[Params, Array], Array]  # parameters, inputs [b, ...] -> logits [b, ...]
Evaluate = Callable[[Params, bool], dict[str, float]]  # parameters, whether it is the end -> scores

SEED = 2**31  # of training lessons that no trial has: trials' seeds are smaller
LESSONS = 8  # of the training data, on which a student is measured
DRAWN = 2  # of these for a generator, whose held-out draws follow the law of its lessons
MIXES = 8  # batches that held-out views are mixed in, of each round
ALONG = 32  # of the rounds of views or draws, one in so many is scored before the end
ROUNDS = {"validation": 0.25}  # share of a task's rounds for a part that does not decide


class Examples(NamedTuple):
    """Held-out inputs, with the references for a student's outputs on them."""

    inputs: Any  # [n, ...]
    labels: Any  # [n, ...] integers, or None
    logits: Any  # [n, ...]: the teachers' average in probability


class HeldOut(NamedTuple):
    """One held-out part, as arrays on the devices or, for a stream, on the host (memory-mapped)."""

    central: Examples
    views: Examples | None  # random views; None: scores are on the central ones only
    # Random views mixed as in lessons, [rounds, n, ...] without labels; None: nothing is scored on such.
    mixed: Examples | None = None
    # Of a generator with several rounds: the central examples and further draws, [rounds, n, ...].
    draws: Examples | None = None


class EvalData(NamedTuple):
    """Everything that a student is measured on, if it fits the devices."""

    training: Lesson  # several lessons, stacked on a leading axis
    held_out: dict[str, HeldOut]  # validation, test


def eval_key() -> Array:
    """A lessons' key that no seed has, since seeds split theirs. On all devices."""
    return jax.jit(lambda: random.key(SEED), out_shardings=devices.replicated())()


def rounds_of(part: str, rounds: float) -> int:
    """How many rounds a part has, of a task with so many for the part that decides."""
    return math.ceil(rounds * ROUNDS.get(part, 1.0))


def make_examples(
    task: Task, params: tuple[Params, ...], inputs: Array, labels: Array | None
) -> Examples:
    """Inputs [n, ...] and labels with the logits of the teachers' average."""
    return Examples(inputs, labels, task.distance.ensemble(teacher_logits(task, params, inputs)))


def make_held_out(
    task: Task, part: str, params: tuple[Params, ...], inputs: Array, labels: Array | None
) -> HeldOut:
    """A held-out part with its fixed views, and the teachers' logits on all of them.

    Args:
      task: provides views and teachers.
      part: validation or test.
      params: the teachers' weights.
      inputs: [n, ...].
      labels: [n, ...] or None.
    """
    examples = functools.partial(make_examples, task, params)
    random_views = None
    if task.augment and task.views_per_input:
        tiles = (task.views_per_input, *[1] * (inputs.ndim - 1))
        random_views = examples(
            task.augment(random.key(0), jnp.tile(inputs, tiles)),
            None if labels is None else jnp.tile(labels, (tiles[0], *[1] * (labels.ndim - 1))),
        )
    mixed = None
    if rounds := rounds_of(part, task.mixed_per_input):
        keys = random.split(random.key(1), rounds)
        mixed = jax.lax.map(lambda key: examples(mixed_views(task, key, inputs), None), keys)
        mixed = shuffled(random.key(2), mixed)
    return HeldOut(examples(inputs, labels), random_views, mixed)


def shuffled(key: Array, rounds: Examples) -> Examples:
    """The same examples [rounds, n, ...] in random order.

    A round is mixed with few strengths, which make it easier or harder than others; so a few rounds
    stand for all only if each has examples of every strength.
    """
    length, n = rounds.inputs.shape[:2]
    order = random.permutation(key, length * n)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order].reshape(x.shape), rounds)


def mixed_views(task: Task, key: Array, inputs: Array) -> Array:
    """A view of each held-out input under the law of lessons of function matching: [n, ...].

    The inputs are put in random order and cut into MIXES batches, each mixed by itself: a `mix` may have
    one strength for a whole batch.
    """
    order_key, augment_key, *keys = random.split(key, 2 + MIXES)
    views = inputs[random.permutation(order_key, inputs.shape[0])]
    views = task.augment(augment_key, views) if task.augment else views
    if not task.mix:
        return views
    batches = jnp.array_split(views, min(MIXES, max(1, inputs.shape[0] // 2)))
    return jnp.concatenate([task.mix(k, batch) for k, batch in zip(keys, batches, strict=False)])


def make_eval_data(
    task: Task, protocol: str, data: TrainingData, held_out: Mapping[str, HeldOut]
) -> EvalData:
    """Adds training lessons of the protocol to held-out parts."""
    lesson_at = functools.partial(make_lesson, task, protocol)

    count = DRAWN if task.generated else LESSONS

    def lessons(data: TrainingData) -> Any:
        return jax.lax.map(lambda i: lesson_at(data, random.key(SEED), i), jnp.arange(count))

    training = jax.jit(lessons, out_shardings=devices.replicated())(data)
    return EvalData(training, dict(held_out))


def table_of(task: Task) -> dict[str, Score]:
    """The scores of a task, including its own."""
    return {
        name: score
        for name, score in {**SCORES, **task.scores}.items()
        if name in task.scores or not score.needs_labels or task.distance.certain is not None
    }


def names(task: Task, held_out: Mapping[str, HeldOut]) -> list[str]:
    """What is measured of a task, as it stands in records."""
    return ["train_loss", "train_kl"] + [
        f"{part}_{name}"
        for part, examples in held_out.items()
        for name, score in table_of(task).items()
        if not (score.needs_labels and examples.central.labels is None)
        and not (score.on == "mixed" and examples.mixed is None)
    ]


def evaluate(
    task: Task, student: Student, params: Params, data: EvalData, end: Array | bool = True
) -> dict[str, Array]:
    """The scores of a measurement, each a scalar. Pure.

    `train_loss` and `train_kl` are measured on fresh lessons of the trial's own protocol, from training
    inputs: the training loss, and the KL at temperature 1 to the lesson's own teacher.
    `validation_*` and `test_*` are the task's scores of held-out examples: `*_kl` (temperature 1, in
    nats) and `*_agreement` on views, `*_accuracy` and `*_central_agreement` on the examples themselves,
    `*_mixed_kl` on views that are mixed as in lessons: on all of them at the end, else on the first few.
    So are scores of a generator's draws, where it has several rounds.
    """

    def on_lesson(lesson: Lesson) -> tuple[Array, Array]:
        return lesson_scores(task.distance, lesson, student(params, lesson.inputs))

    train_loss, train_kl = jax.vmap(on_lesson)(data.training)
    averages = {"train_loss": jnp.mean(train_loss), "train_kl": jnp.mean(train_kl)}
    for name, part in data.held_out.items():
        of_part = jax.tree.map(jnp.mean, part_scores(task, student, params, part))
        if part.mixed:
            of_part |= round_scores(task, ("mixed",), student, params, part.mixed, end)
        if part.draws:
            kinds = ("central",) if part.views else ("views", "central")
            of_part |= round_scores(task, kinds, student, params, part.draws, end)
        averages |= {f"{name}_{score}": value for score, value in of_part.items()}
    return averages


def part_scores(task: Task, student: Student, params: Params, part: HeldOut) -> dict[str, Array]:
    """Scores [n] of a part's examples, or [n * views] of their views."""
    seen = part.views or part.central
    on_views = student(params, seen.inputs)
    on_central = student(params, part.central.inputs) if part.views else on_views
    return _scores(task, "views", seen, on_views) | _scores(task, "central", part.central, on_central)


def round_scores(
    task: Task,
    kinds: Sequence[str],
    student: Student,
    params: Params,
    rounds: Examples,
    end: Array | bool,
) -> dict[str, Array]:
    """Scores of some kinds of views: averages over all rounds at the end, else over the first few."""
    length = rounds.inputs.shape[0]
    count = jnp.where(end, length, math.ceil(length / ALONG))

    def of_round(i: Array) -> dict[str, Array]:
        examples = jax.tree.map(lambda array: array[i], rounds)
        logits = student(params, examples.inputs)
        scored = (_scores(task, kind, examples, logits) for kind in kinds)
        return jax.tree.map(jnp.mean, {k: v for of_kind in scored for k, v in of_kind.items()})

    none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_round, 0))
    total = jax.lax.fori_loop(0, count, lambda i, sums: jax.tree.map(jnp.add, sums, of_round(i)), none)
    return jax.tree.map(lambda x: x / count, total)


def _scores(task: Task, kind: str, examples: Examples, logits: Array) -> dict[str, Array]:
    outputs = Outputs(examples.inputs, examples.labels, examples.logits, logits)
    return scores(table_of(task), kind, task.distance, outputs)


def compile_whole(task: Task, student: Student, params: Params, data: EvalData) -> Evaluate:
    """Parameters, whether it is the end -> scores, as one compiled program.

    Args:
      task: the task to learn.
      student: parameters, inputs -> logits.
      params: shapes of the parameters, placed.
      data: passed to the program.
    """
    evaluated = jax.jit(functools.partial(evaluate, task, student))
    compiled = evaluated.lower(params, data, np.bool_(True)).compile()
    return lambda params, end: jax.device_get(compiled(params, data, np.bool_(end)))


def compile_batched(
    task: Task,
    protocol: str,
    student: Student,
    params: Params,
    held_out: Mapping[str, HeldOut],
    training: Sequence[TrainingData],
    shapes: TrainingData,
) -> Evaluate:
    """Parameters, whether it is the end -> scores, on held-out data that come from the host in batches.

    Each example is scored on the devices and summed in float64 on the host: every example counts once,
    for any division into batches and over devices.

    Args:
      task: the task to learn.
      protocol: how lessons are made.
      student: parameters, inputs -> logits.
      params: shapes of the parameters, placed.
      held_out: parts, on the host.
      training: data of several lessons.
      shapes: of such data.
    """

    def on_lesson(params: Params, data: TrainingData, key: Array, step: Array) -> tuple[Array, Array]:
        lesson = make_lesson(task, protocol, data, key, step)
        return lesson_scores(task.distance, lesson, student(params, lesson.inputs))

    def on_batch(params: Params, batch: Examples) -> dict[str, Array]:
        batch = batch._replace(inputs=views.value_range(batch.inputs))
        return part_scores(task, student, params, HeldOut(batch, None))

    everywhere, key = devices.replicated(), eval_key()
    example = (params, training[0], key, np.int32(0))
    lessons = jax.jit(on_lesson, out_shardings=everywhere).lower(*example).compile()
    any_logits = next(iter(held_out.values())).central.logits
    logits = jax.ShapeDtypeStruct(
        (task.batch_size, *any_logits.shape[1:]), jnp.float32, sharding=devices.batch_sharded()
    )
    batch = Examples(shapes.inputs, shapes.labels, logits)
    batches = jax.jit(on_batch, out_shardings=everywhere).lower(params, batch).compile()

    def evaluate(params: Params, end: bool) -> dict[str, float]:
        del end  # all held-out data of a stream are scored at every measurement
        pairs = [lessons(params, data, key, np.int32(i)) for i, data in enumerate(training)]
        train_loss, train_kl = np.mean([[float(x) for x in pair] for pair in pairs], axis=0)
        averages = {"train_loss": float(train_loss), "train_kl": float(train_kl)}
        for name, part in held_out.items():
            of_part = _averages(batches, params, part.central, task.batch_size)
            averages |= {f"{name}_{score}": value for score, value in of_part.items()}
        return averages

    return evaluate


def _averages(batches: Any, params: Params, examples: Examples, b: int) -> dict[str, float]:
    """Means over all examples, batch by batch; a host reads its own rows of each."""
    n = len(examples.labels)

    def scored() -> Iterator[tuple[int, dict[str, Array]]]:
        for begin in range(0, n, b):
            index = np.minimum(begin + devices.rows(b), n - 1)
            arrays = (array[index] for array in examples)
            batch = Examples(
                *(devices.from_process_local(array, devices.batch_sharded()) for array in arrays)
            )
            yield min(b, n - begin), batches(params, batch)

    sums: dict[str, float] = collections.defaultdict(float)
    for filled, of_batch in ahead(scored()):
        # Rows past the last example are dropped, on every host.
        for name, values in of_batch.items():
            sums[name] += float(np.sum(np.asarray(values)[:filled], dtype=float))
    return {name: total / n for name, total in sums.items()}
