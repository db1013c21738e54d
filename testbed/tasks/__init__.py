"""TASKS by name. A task registered here is under the shared tests by itself."""

from collections.abc import Mapping
from types import MappingProxyType

from testbed.tasks import digits
from testbed.tasks.task import Task

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (digits.DIGITS, digits.ENSEMBLE, digits.RESNET)}
)
