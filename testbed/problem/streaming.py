"""Sources whose inputs come as a stream: batches from the host, step by step."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from testbed import devices, teachers
from testbed.data import loader, tfds, views
from testbed.data.disk_cache import find, stored
from testbed.data.tfds import Encoded, Stream
from testbed.problem.evaluation import SEED, Examples, HeldOut
from testbed.problem.lessons import TrainingData, teacher_logits
from testbed.problem.protocols import PROTOCOLS
from testbed.problem.source import Source, place_teachers
from testbed.problem.task import Task

EVAL_LESSONS = 2  # number of training batches in the evaluation


def open_source(task: Task, protocol: str) -> Source:
    """The stream of a task; arrays that are expensive and fixed are cached on disk.

    Raises:
      RequestError: the data set is missing, or its batches cannot be divided over the devices.
    """
    devices.require_divisible(task.batch_size)
    loader.workers()  # raises before anything is computed
    needs, params = PROTOCOLS[protocol].needs, place_teachers(task.teachers, devices.mesh())
    opened = task.stream()()
    images = tfds.in_memory(opened.training, opened.sha256)
    central = (
        np.load(_central_logits(task, params), mmap_mode="r") if "central_logits" in needs else None
    )

    def made_by(processes: int, seed: int, step: int) -> Iterator[tuple[TrainingData, int]]:
        rows = devices.rows(task.batch_size)
        source = loader.TrainingCrops(
            images, seed, task.batch_size, rows, task.stream().size, second="second_view" in needs
        )
        batches = loader.batches(source, len(rows), start=step, workers=processes)
        sent = (_to_devices(batch, params, central) for batch in batches)
        pairs = zip(loader.ahead(sent), itertools.count(step + 1), strict=False)
        # Not lazily: the workers must start now, off the clock.
        return itertools.chain([next(pairs)], pairs)

    def batches(seed: int, step: int) -> Iterator[tuple[TrainingData, int]]:
        return made_by(loader.workers(), seed, step)

    def batch_at(seed: int, step: int) -> TrainingData:
        return next(made_by(0, seed, step))[0]

    def eval_batches() -> list[TrainingData]:
        return [data for data, _ in itertools.islice(made_by(0, SEED, 0), EVAL_LESSONS)]

    def held_out() -> dict[str, HeldOut]:
        return {part: _held_out(task, part, params) for part in ("validation", "test")}

    shapes = shapes_of_batches(task, needs, params)
    return Source(len(images), shapes, batches, held_out, batch_at, eval_batches)


def shapes_of_batches(task: Task, needs: frozenset[str], params: Any) -> TrainingData:
    """The data of a step, with shapes in place of the arrays that come from the host."""
    b, t, sharded = task.batch_size, len(task.teachers), devices.batch_sharded()
    crop = task.stream().inputs.batch(b, sharded)
    logits = jax.ShapeDtypeStruct((b, t, task.stream().classes), jnp.float32, sharding=sharded)
    return TrainingData(
        teachers=params,
        inputs=crop,  # type: ignore[arg-type]
        labels=jax.ShapeDtypeStruct((b,), jnp.int32, sharding=sharded),  # type: ignore[arg-type]
        central_logits=logits if "central_logits" in needs else None,  # type: ignore[arg-type]
        second=crop if "second_view" in needs else None,  # type: ignore[arg-type]
    )


def _to_devices(batch: loader.Batch, params: Any, central: NDArray[np.float32] | None) -> TrainingData:
    def put(array: NDArray[Any]) -> Array:
        return devices.from_process_local(array, devices.batch_sharded())

    return TrainingData(
        teachers=params,
        inputs=put(batch["inputs"]),
        labels=put(batch["labels"]),
        central_logits=None if central is None else put(central[batch["index"]]),
        second=put(batch["second"]) if "second" in batch else None,
    )


# Held-out data, and what is cached on disk


def _held_out(task: Task, part: str, params: Any) -> HeldOut:
    """A part of the data set with its teachers' logits."""
    opened = task.stream()()
    images: Encoded = getattr(opened, part)
    central, labels = _central_views(task.stream(), images, opened.sha256)
    logits = np.load(_logits(task, part, central, images, params))
    average = jax.jit(lambda x: task.distance.ensemble(jnp.moveaxis(x, 1, 0)))(logits)
    return HeldOut(Examples(central, labels, np.asarray(average)), None)


def _central_views(
    stream: Stream, images: Encoded, sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """All central views [n, h, w, c] of a split, on disk, and their labels [n]."""
    source = loader.CentralViews(images, stream.shorter_side, stream.size)

    def fill(array: NDArray[Any]) -> None:
        done = 0
        processes = loader.workers() if len(images) > 10_000 else 0
        for batch in loader.batches(source, 64, workers=processes):
            n = len(batch["labels"])
            array["view"][done : done + n] = batch["inputs"]
            array["label"][done : done + n] = batch["labels"]
            done += n

    kind = np.dtype([("view", np.uint8, stream.inputs.shape), ("label", np.int32)])
    key = {"images": images.name, "data_sha256": sha256, **tfds.decoding()}
    rows = np.load(stored("central-views", key, (len(images),), kind, fill), mmap_mode="r")
    return rows["view"], np.array(rows["label"])


def _logits(task: Task, part: str, central: NDArray[np.uint8], images: Encoded, params: Any) -> Any:
    """Path of the teachers' logits [n, teachers, classes] on central views."""
    b = task.batch_size

    def logits_of(params: Any, batch: Array) -> Array:
        return jnp.moveaxis(teacher_logits(task, params, views.value_range(batch)), 1, 0)

    backend = jax.default_backend()
    # On CPU products always were in full precision: what is cached there stays valid.
    products = [] if backend == "cpu" else [devices.PRODUCTS]
    key = {
        "part": f"{images.name} ({part})",
        "data_sha256": task.stream()().sha256,
        "teacher_sha256": [teachers.load(teacher).sha256 for teacher in task.teachers],
        "networks": [teacher.code_sha256() for teacher in task.teachers],
        "computed": [task.precision, backend, jax.__version__, *products],
        **tfds.decoding(),
    }
    n = len(images)
    what = ("teachers-logits", key, (n, len(task.teachers), task.stream().classes), np.float32)
    path = find(*what)
    # The hosts compute together: if one of them lacks the file, all of them compute.
    if devices.any_host(path is None):
        compiled = jax.jit(logits_of, out_shardings=devices.replicated())
        computed = np.empty(*what[2:])
        for begin in range(0, n, b):
            index = np.minimum(begin + devices.rows(b), n - 1)
            logits = compiled(
                params, devices.from_process_local(central[index], devices.batch_sharded())
            )
            computed[begin : begin + b] = np.asarray(logits)[: n - begin]
        path = stored(*what, fill=functools.partial(_copy, computed))
    return path


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    np.copyto(target, source)


def _central_logits(task: Task, params: Any) -> Any:
    """Path of the teachers' logits on the central views of the training images, for `fixed_teacher`."""
    opened = task.stream()()
    central, _ = _central_views(task.stream(), opened.training, opened.sha256)
    return _logits(task, "training", central, opened.training, params)
