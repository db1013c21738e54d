"""Trials that the tests share."""

import dataclasses
from pathlib import Path
from typing import Any

from optimizers import registry
from optimizers.spec import Spec
from testbed import records
from testbed.problem.problem import Problem, open_problem
from testbed.problem.task import Task
from testbed.training.alone import iterate
from testbed.training.optimizer import from_spec
from testbed.training.trial import Trial

STEPS = 40
TIMES = ("train_seconds", "started_at", "compilation_cache", "command", "ledger", "resumed")


def trial_of(
    task: Task,
    spec: Spec | str = "adam",
    protocol: str = "function_matching",
    seed: int = 0,
    steps: int = STEPS,
    **hp: Any,
) -> Trial:
    """A short trial; `hp` replace the optimizer's defaults."""
    spec = registry.find(spec) if isinstance(spec, str) else spec
    return Trial(open_problem(task, protocol), from_spec(spec, hp), steps, seed)


def changed(problem: Problem, **fields: Any) -> Problem:
    """The problem of a task with other values."""
    return open_problem(dataclasses.replace(problem.task, **fields), problem.protocol)


def finish(trial: Trial, out: Path, **options: Any) -> records.Record:
    """The record of a trial, which this runs to the end."""
    for _ in iterate(trial, out, **options):
        pass
    return records.read(trial.record_path(out))


def without_times(record: records.Record) -> list[dict[str, Any]]:
    """Everything in a record except times."""
    rows = [record.header, *record.measurements, record.end]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows if row]
