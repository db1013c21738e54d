"""TASKS by name. A task registered here is under the shared tests by itself."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from testbed.data import photographs
from testbed.data.digits import Data, Part
from testbed.data.stream import Stream
from testbed.errors import RequestError
from testbed.tasks import digits, paper
from testbed.tasks.task import Task

# Where else lessons can come from: a data set of a paper's task, or photographs for the digits.
LESSONS: Mapping[str, Stream | Callable[[], Part]] = MappingProxyType(
    {
        "photographs": photographs.load,
        **{
            task.name: task.load
            for task in (paper.FLOWERS, paper.PETS, paper.FOOD, paper.SUN, paper.IMAGENET)
            if isinstance(task.load, Stream)
        },
    }
)


def lessons_from(task: Task, name: str) -> Task:
    """The task with training images of another data set; teachers and examination stay.

    Distillation on other data, which the paper finds to work, if less well.

    Raises:
      RequestError: images of that data set are no images for this task.
    """
    other, own = LESSONS[name], task.load
    load: Callable[[], Data] | Stream
    if isinstance(own, Stream) and isinstance(other, Stream):
        load = dataclasses.replace(own, lessons_from=other)
    elif not isinstance(own, Stream) and not isinstance(other, Stream):
        load = functools.cache(functools.partial(_with_training, own, other))
    else:
        streamed = isinstance(own, Stream)
        fits = [n for n, o in LESSONS.items() if isinstance(o, Stream) == streamed]
        raise RequestError(
            f"--lessons-from {name}: its images are not of the form that {task.name} takes; "
            f"it can have {', '.join(fits)}"
        )
    return dataclasses.replace(
        task,
        name=f"{task.name}-from-{name}",
        summary=f"as {task.name}, with lessons from {name}",
        load=load,
        own_lessons=False,
    )


def _with_training(own: Callable[[], Data], other: Callable[[], Part]) -> Data:
    data, training = own(), other()
    digest = hashlib.sha256(data.sha256.encode() + training.images.tobytes())
    return data._replace(training=training, sha256=digest.hexdigest())


DIGITS_OTHER = dataclasses.replace(
    lessons_from(digits.DIGITS, "photographs"),
    name="digits-other",
    summary="as digits, with lessons cut from two photographs instead of digits",
)

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (digits.DIGITS, digits.ENSEMBLE, digits.RESNET, DIGITS_OTHER, *paper.PAPER)
    }
)
