"""The rows of a record, and the writers that append them. `docs/design.md` has the format."""

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from testbed import devices, provenance, records, teachers
from testbed.models.network import has_precision
from testbed.problem.lessons import Params
from testbed.training.clock import Ledger
from testbed.training.trial import Trial


class RecordWriter:
    """Appends rows to a trial's record; a resumed record is cut to the `length` in its checkpoint."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path, self.length = path, length

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Appends on the first host; the others only need to know that the record exists."""
        first = devices.is_first()
        self.length = records.append(self.path, *rows, at=self.length) if first else 1


class RowList:
    """The same interface, for a trial that writes no files."""

    def __init__(self) -> None:
        self.rows, self.length = list[dict[str, Any]](), 0

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Appends them in memory."""
        self.rows += map(dict, rows)
        self.length = len(self.rows)


def header_row(
    trial: Trial,
    params: Params,
    used: int,
    *,
    compilation_cache: Mapping[str, int],
    command: str,
    checkpointed: bool = False,
    batch: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The first line of a record.

    Args:
      trial: the record's trial.
      params: shapes of the student's parameters.
      used: number of devices that it runs on.
      compilation_cache: hits and misses.
      command: the command line that started it.
      checkpointed: whether activations are computed twice, because they do not fit.
      batch: for a batched trial, which is not timed: "id", "size", "vectorized".
    """
    problem, identity = trial.problem, trial.identity()
    task = problem.task
    metrics = {m.name: {k: v for k, v in m._asdict().items() if k != "name"} for m in task.metrics}
    return {
        "kind": "header",
        "schema": records.SCHEMA,
        "run_id": records.run_id(identity),
        **identity,
        "batch_size": task.batch_size,
        "target": task.target._asdict(),
        **({"metrics": metrics} if metrics else {}),
        "timed": batch is None,
        **({"batch": dict(batch)} if batch else {}),
        "versions": provenance.versions(),
        "device": provenance.device() | {"used": used},
        "precision": {
            "parameters": "float32",
            "matmul": devices.PRODUCTS,
            "student": task.precision if has_precision(task.student) else "float32",
            "teachers": [teacher.precision(task.precision) for teacher in task.teachers],
        },
        "git": provenance.git(),
        "command": command,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "compilation_cache": dict(compilation_cache),
        "student": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "checkpointed": checkpointed,
            "flops_per_example": problem.flops_per_example,
        },
        "teacher": {
            teacher.name: {name: card[name] for name in ("parameters", "test_accuracy")}
            for teacher, card in ((t, teachers.load(t).card) for t in task.teachers)
        },
    }


def measurement_row(
    trial: Trial, step: int, scores: Mapping[str, Any], train_seconds: float | None = None
) -> dict[str, Any]:
    """A measurement after a step; without seconds if not timed, without epochs of endless data."""
    examples, n = step * trial.problem.task.batch_size, trial.problem.source.n
    return {
        "kind": "measurement",
        "step": step,
        **({} if n is None else {"epoch": examples / n}),
        **({} if train_seconds is None else {"train_seconds": train_seconds}),
        **{name: float(score) for name, score in scores.items()},
    }


def end_row(
    status: str,
    step: int,
    reason: str,
    digest: str | None,
    ledger: Ledger,
    resumed: int,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """The last line of a record; `counts` are the optimizer's own, from `diagnostics.make_counts`."""
    return {
        "kind": "end",
        "status": status,
        "step": step,
        "reason": reason,
        "params_sha256": digest,
        "ledger": ledger.rows(),
        "resumed": resumed,
        **({"counts": dict(counts)} if counts else {}),
    }


def params_sha256(params: Params) -> str:
    """SHA-256 of the parameters' paths and bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
