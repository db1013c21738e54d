"""What the three kinds of sources provide: inputs in memory, streamed from the host, generated."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from testbed import devices, teachers
from testbed.problem.evaluation import HeldOut
from testbed.problem.lessons import Params, TrainingData
from testbed.teachers import ExactTeacher, NetworkTeacher

ALL_STEPS = 2**31 - 1


class Source(NamedTuple):
    """A task's data, opened.

    Attributes:
      n: number of training examples; None: endless.
      data: what lessons are made of; for a stream, shapes in place of arrays from the host.
      batches: seed, first step -> pairs of data and the step up to which they are used.
      held_out: loads parts by name, to the devices or, for a stream, to the host.
      batch_at: seed, step -> the data of one step, away from any stream that is running.
      eval_batches: for a stream, loads the data of the evaluation's training lessons.
    """

    n: int | None
    data: TrainingData
    batches: Callable[[int, int], Iterator[tuple[TrainingData, int]]]
    held_out: Callable[[], Mapping[str, HeldOut]]
    batch_at: Callable[[int, int], TrainingData]
    eval_batches: Callable[[], Sequence[TrainingData]] = tuple


def constant_source(
    n: int | None, data: TrainingData, held_out: Callable[[], Mapping[str, HeldOut]]
) -> Source:
    """A source of which one pytree serves all seeds and steps."""

    def batches(seed: int, step: int) -> Iterator[tuple[TrainingData, int]]:
        del seed, step
        yield data, ALL_STEPS

    return Source(n, data, batches, held_out, lambda seed, step: data)


@functools.lru_cache(maxsize=4)
def place_teachers(
    given: tuple[NetworkTeacher | ExactTeacher, ...], mesh: Mesh | None
) -> tuple[Params, ...]:
    """The teachers' weights on the devices, replicated or, if they do not fit, divided.

    One copy serves all protocols; `mesh` is that of the devices in use.
    """
    assert mesh == devices.mesh()
    weights = [teachers.load(teacher).params for teacher in given]
    return tuple(devices.to_global(w, devices.parameters(w)) for w in weights)


def put_replicated(arrays: Any) -> Any:
    """A pytree of host arrays on every device; None stays None."""
    return jax.tree.map(lambda array: devices.from_process_local(array, devices.replicated()), arrays)
