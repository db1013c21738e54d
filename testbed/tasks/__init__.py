"""TASKS by name, and users' tasks. The shared tests run on every task registered here."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from testbed import plugins
from testbed.data import photographs
from testbed.data.arrays import Data, Generated, Part
from testbed.data.tfds import Stream
from testbed.errors import RequestError, choose
from testbed.problem.task import Task
from testbed.tasks import digits, paper, zipf

# Other sources of lessons: a data set of a paper's task, or photographs for the digits.
LESSONS: Mapping[str, Stream | Callable[[], Part]] = MappingProxyType(
    {
        "photographs": photographs.load,
        **{
            task.name: task.stream()
            for task in (paper.FLOWERS, paper.PETS, paper.FOOD, paper.SUN, paper.IMAGENET)
        },
    }
)


def lessons_from(task: Task, name: str) -> Task:
    """The task with training inputs of another data set; teachers and evaluation stay the same.

    This is distillation on other data, which the paper finds to work, but less well.

    Raises:
      RequestError: inputs of that data set do not fit this task.
    """
    other, own = LESSONS[name], task.source
    source: Callable[[], Data] | Stream
    if isinstance(own, Generated):
        raise RequestError(f"--lessons-from {name}: {task.name} generates its inputs; leave it out")
    if isinstance(own, Stream) and isinstance(other, Stream):
        source = dataclasses.replace(own, lessons_from=other)
    elif not isinstance(own, Stream) and not isinstance(other, Stream):
        source = functools.cache(functools.partial(_with_training, own, other))
    else:
        fitting = [n for n, o in LESSONS.items() if isinstance(o, Stream) == task.streamed]
        raise RequestError(
            f"--lessons-from {name}: its images do not have the form that {task.name} takes; "
            f"choose one of {', '.join(fitting)}"
        )
    return dataclasses.replace(
        task,
        name=f"{task.name}-from-{name}",
        summary=f"as {task.name}, with lessons from {name}",
        source=source,
        own_lessons=False,
    )


def _with_training(own: Callable[[], Data], other: Callable[[], Part]) -> Data:
    data, training = own(), other()
    digest = hashlib.sha256(data.sha256.encode() + training.inputs.tobytes())
    return data._replace(training=training, sha256=digest.hexdigest())


DIGITS_OTHER = dataclasses.replace(
    lessons_from(digits.DIGITS, "photographs"),
    name="digits-other",
    summary="as digits, with lessons cut from two photographs instead of digits",
)

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            digits.DIGITS,
            digits.ENSEMBLE,
            digits.RESNET,
            DIGITS_OTHER,
            zipf.ZIPF_MLP,
            *paper.PAPER,
        )
    }
)


def find(name: str) -> Task:
    """The task that `--task` names: one of TASKS, or a Python file that defines `TASK`.

    Raises:
      RequestError: unknown task; the message has the nearest name, or the fault in the file.
    """
    if not (name.endswith(".py") or "/" in name):
        return choose("--task", name, TASKS, "; or a file (my_task.py) that defines TASK")
    module = plugins.load_file("--task", name)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise RequestError(f"--task {name}: it defines no TASK = testbed.Task(...)")
    if task.name.casefold() in map(str.casefold, TASKS):  # they may be folders of one file system
        raise RequestError(f"--task {name}: the name {task.name} is taken; give TASK another")
    return task
