"""FunMatch's testbed: problems, trials, the loop, the clock and the record.

    from testbed import TASKS, Trial, open_problem, run, train

Knows optax's interface, and no optimizer by name. Names are loaded when they are first used: importing
this package imports no jax, so that `analysis` can read records without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.data.arrays import Data, Generated, InputSpec, Part
    from testbed.errors import RequestError
    from testbed.metrics import Metric
    from testbed.problem.distances import BERNOULLI, CATEGORICAL
    from testbed.problem.problem import Problem, open_problem
    from testbed.problem.protocols import PROTOCOLS, Lesson
    from testbed.problem.scores import Outputs, Score
    from testbed.problem.task import Target, Task
    from testbed.tasks import TASKS
    from testbed.teachers import ExactTeacher, NetworkTeacher
    from testbed.training.alone import Result, run, train
    from testbed.training.trial import Trial

_MODULES = {
    "testbed.tasks": ("TASKS",),
    "testbed.problem.problem": ("Problem", "open_problem"),
    "testbed.training.trial": ("Trial",),
    "testbed.training.alone": ("Result", "run", "train"),
    # What a task is made of.
    "testbed.problem.task": ("Target", "Task"),
    "testbed.data.arrays": ("Data", "Generated", "InputSpec", "Part"),
    "testbed.teachers": ("ExactTeacher", "NetworkTeacher"),
    "testbed.problem.distances": ("BERNOULLI", "CATEGORICAL"),
    "testbed.problem.protocols": ("PROTOCOLS", "Lesson"),
    "testbed.problem.scores": ("Outputs", "Score"),
    "testbed.metrics": ("Metric",),
    "testbed.errors": ("RequestError",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BERNOULLI",
    "CATEGORICAL",
    "PROTOCOLS",
    "TASKS",
    "Data",
    "ExactTeacher",
    "Generated",
    "InputSpec",
    "Lesson",
    "Metric",
    "NetworkTeacher",
    "Outputs",
    "Part",
    "Problem",
    "RequestError",
    "Result",
    "Score",
    "Target",
    "Task",
    "Trial",
    "open_problem",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'testbed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
