"""Courses of tasks whose images come as a stream: batches from the host, step by step."""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpy.typing import NDArray

from testbed import devices, matching, teachers, views
from testbed import lessons as lesson_losses
from testbed.data import stream
from testbed.data.stored import find, stored
from testbed.data.stream import Encoded
from testbed.errors import RequestError
from testbed.tasks.task import Task, fields_of
from testbed.world import Course, Params, Student, World, load_teachers, make_lesson, teach_all

Item = TypeVar("Item")

AHEAD = 2  # batches on their way to the devices while one is learned from
EXAM_SEED, EXAM_LESSONS = 2**31, 2  # a seed that no trial has
SECOND, CENTRAL = {"independent_noise"}, {"fixed_teacher"}  # protocols that ask for more than crops


class HeldOut(NamedTuple):
    """A held-out part of a data set, whole; a host reads its rows of each batch."""

    views: NDArray[np.uint8]  # [n, h, w, c]: central, memory-mapped
    labels: NDArray[np.int32]  # [n]
    logits: NDArray[np.float32]  # [n, classes]: the teachers on `views`, averaged in probability


def load_course(task: Task, protocol: str) -> Course:
    """The course of a task."""
    return _load_course(task, protocol, devices.mesh(), workers())


def workers() -> int:
    """Worker processes: $FUNMATCH_WORKERS, or what the machine's size suggests."""
    given = os.environ.get("FUNMATCH_WORKERS") or str(stream.default_workers())
    if not given.isdecimal():
        raise RequestError(f"FUNMATCH_WORKERS={given}: must be a whole number from 0")
    return int(given)


@functools.lru_cache(maxsize=4)
def _load_course(task: Task, protocol: str, mesh: Any, processes: int) -> Course:
    devices.require_divisible(task.batch_size)
    opened = task.stream()()
    images = stream.in_memory(opened.training, opened.sha256)
    params = load_teachers(task, mesh)
    central = np.load(_central_logits(task, params), mmap_mode="r") if protocol in CENTRAL else None

    def made_by(processes: int, seed: int, step: int) -> Iterator[tuple[World, int]]:
        rows = devices.rows(task.batch_size)
        source = stream.TrainingCrops(
            images, seed, task.batch_size, rows, task.stream().size, second=protocol in SECOND
        )
        batches = stream.batches(source, len(rows), start=step, workers=processes)
        sent = (_world(batch, params, central) for batch in batches)
        pairs = zip(_ahead(sent), itertools.count(step + 1), strict=False)
        # Not lazily: workers start now, off the clock.
        return itertools.chain([next(pairs)], pairs)

    worlds = functools.partial(made_by, processes)
    first = [world for world, _ in itertools.islice(made_by(0, EXAM_SEED, 0), EXAM_LESSONS)]
    held_out = {part: _held_out(task, part, params) for part in ("validation", "test")}

    def make_examine(student: Student, shapes: Params) -> Callable[[Params], dict[str, float]]:
        return _examiner(task, protocol, student, shapes, first, held_out)

    return Course(len(images), world_shapes(task, protocol, params), worlds, make_examine)


def world_shapes(task: Task, protocol: str, params: Any) -> World:
    """The world of a step, with shapes for the arrays that come from the host."""
    b, t, split = task.batch_size, len(task.teachers), devices.split()
    crop = jax.ShapeDtypeStruct((b, *task.stream().image_shape), jnp.uint8, sharding=split)
    classes = task.stream().classes
    central = jax.ShapeDtypeStruct((b, t, classes), jnp.float32, sharding=split)
    return World(
        images=crop,  # type: ignore[arg-type]
        labels=jax.ShapeDtypeStruct((b,), jnp.int32, sharding=split),  # type: ignore[arg-type]
        teachers=params,
        central_logits=central if protocol in CENTRAL else None,  # type: ignore[arg-type]
        second=crop if protocol in SECOND else None,  # type: ignore[arg-type]
    )


def _world(batch: stream.Batch, params: Any, central: NDArray[np.float32] | None) -> World:
    def put(array: NDArray[Any]) -> Array:
        return devices.put(array, devices.split())

    return World(
        images=put(batch["images"]),
        labels=put(batch["labels"]),
        teachers=params,
        central_logits=None if central is None else put(central[batch["index"]]),
        second=put(batch["second"]) if "second" in batch else None,
    )


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, with AHEAD of them already on their way to the devices, or being computed there."""
    waiting: collections.deque[Item] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


# Held-out data


def _held_out(task: Task, part: str, params: Any) -> HeldOut:
    """A part of the data set with its teachers' logits."""
    opened = task.stream()()
    images: Encoded = getattr(opened, part)
    central, labels = _central_views(task, images, opened.sha256)
    logits = np.load(_logits(task, part, central, images, params))
    averaged = jax.jit(lambda x: matching.ensemble(jnp.moveaxis(x, 1, 0)))(logits)
    return HeldOut(central, labels, np.asarray(averaged))


def _central_views(
    task: Task, images: Encoded, sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """All central views [n, h, w, c] of a split, on disk, and their labels [n]."""
    source = stream.CentralViews(images, task.stream().shorter_side, task.stream().size)

    def fill(array: NDArray[Any]) -> None:
        done = 0
        for batch in stream.batches(source, 64, workers=workers() if len(images) > 10_000 else 0):
            n = len(batch["labels"])
            array["view"][done : done + n] = batch["images"]
            array["label"][done : done + n] = batch["labels"]
            done += n

    kind = np.dtype([("view", np.uint8, task.stream().image_shape), ("label", np.int32)])
    key = {"images": images.name, "data_sha256": sha256, **stream.decoding()}
    rows = np.load(stored("central-views", key, (len(images),), kind, fill), mmap_mode="r")
    return rows["view"], np.array(rows["label"])


def _logits(task: Task, part: str, central: NDArray[np.uint8], images: Encoded, params: Any) -> Any:
    """Path of the teachers' logits [n, teachers, classes] on central views."""
    b = task.batch_size

    def teach(params: Any, batch: Array) -> Array:
        return jnp.moveaxis(teach_all(task, params, views.value_range(batch)), 1, 0)

    key = {
        "part": f"{images.name} ({part})",
        "data_sha256": task.stream()().sha256,
        "teacher_sha256": [teachers.load(name).sha256 for name in task.teachers],
        "networks": [str(fields_of(teachers.TEACHERS[name].network)) for name in task.teachers],
        "computed": [task.precision, jax.default_backend(), jax.__version__],
        **stream.decoding(),
    }
    n = len(images)
    what = ("teachers-logits", key, (n, len(task.teachers), task.stream().classes), np.float32)
    path = find(*what)
    # The hosts compute together: where one of them lacks the file, all do.
    if devices.agree_any(path is None):
        compiled, found = jax.jit(teach, out_shardings=devices.whole()), np.empty(*what[2:])
        for begin in range(0, n, b):
            index = np.minimum(begin + devices.rows(b), n - 1)
            logits = compiled(params, devices.put(central[index], devices.split()))
            found[begin : begin + b] = np.asarray(logits)[: n - begin]
        path = stored(*what, fill=lambda array: np.copyto(array, found))
    return path


def _central_logits(task: Task, params: Any) -> Any:
    """Path of the teachers' logits on the central views of the training images, for `fixed_teacher`."""
    opened = task.stream()()
    central, _ = _central_views(task, opened.training, opened.sha256)
    return _logits(task, "training", central, opened.training, params)


# Examination


def _examiner(
    task: Task,
    protocol: str,
    student: Student,
    shapes: Params,
    training: list[World],
    held_out: Mapping[str, HeldOut],
) -> Callable[[Params], dict[str, float]]:
    """Scores of parameters, as in `examination.examine`; views are the central ones.

    Each example is scored on the devices and summed in float64 on the host, by whoever has it: every
    example counts once, whatever the batches and the devices.
    """

    def on_lesson(params: Params, world: World, key: Array, step: Array) -> tuple[Array, Array]:
        lesson = make_lesson(task, protocol, world, key, step)
        logits = student(params, lesson.images)
        kl = jnp.mean(matching.kl(matching.ensemble(lesson.logits), logits))
        return lesson_losses.loss(lesson, logits), kl

    def on_views(params: Params, images: Array, labels: Array, teachers: Array) -> dict[str, Array]:
        logits = student(params, views.value_range(images))
        return {
            "kl": matching.kl(teachers, logits),
            "agreement": matching.agreement(teachers, logits),
            "accuracy": matching.accuracy(labels, logits),
        }

    whole, split, b = devices.whole(), devices.split(), task.batch_size
    key = jax.jit(lambda: random.key(EXAM_SEED), out_shardings=whole)()
    example = (shapes, training[0], key, np.int32(0))
    lesson_scores = jax.jit(on_lesson, out_shardings=whole).lower(*example).compile()
    world = world_shapes(task, protocol, ())
    logits = jax.ShapeDtypeStruct((b, task.stream().classes), jnp.float32, sharding=split)
    batch = (world.images, world.labels, logits)
    view_scores = jax.jit(on_views, out_shardings=whole).lower(shapes, *batch).compile()

    def scored(params: Params, part: HeldOut) -> Iterator[tuple[int, dict[str, Array]]]:
        n = len(part.labels)
        for begin in range(0, n, b):
            index = np.minimum(begin + devices.rows(b), n - 1)
            arrays = (part.views[index], part.labels[index], part.logits[index])
            yield (
                min(b, n - begin),
                view_scores(params, *(devices.put(array, split) for array in arrays)),
            )

    def means(params: Params, part: HeldOut) -> dict[str, float]:
        sums: dict[str, float] = collections.defaultdict(float)
        for filled, scores in _ahead(scored(params, part)):
            # What is past the last image is dropped, whoever computed it.
            for key, values in scores.items():
                sums[key] += float(np.sum(np.asarray(values)[:filled], dtype=float))
        return {name: value / len(part.labels) for name, value in sums.items()}

    def examine(params: Params) -> dict[str, float]:
        found = [lesson_scores(params, w, key, np.int32(i)) for i, w in enumerate(training)]
        train_loss, train_kl = np.mean([[float(x) for x in pair] for pair in found], axis=0)
        scores = {"train_loss": float(train_loss), "train_kl": float(train_kl)}
        for name, part in held_out.items():
            of_part = means(params, part)
            of_part["central_agreement"] = of_part["agreement"]
            scores |= {f"{name}_{key}": value for key, value in of_part.items()}
        return scores

    return examine
