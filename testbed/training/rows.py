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
from testbed.errors import notify
from testbed.models.network import has_precision
from testbed.problem.lessons import Params
from testbed.training.clock import ROWS, Ledger
from testbed.training.trial import Trial

WRITTEN = {"length": int, "sha256": str}  # what a checkpoint keeps of a record
LEDGER = dict.fromkeys((*ROWS, "data_wait_s", "wall_s"), float)  # and of a ledger


class RecordWriter:
    """Appends rows to a trial's record, and knows the checksum of all that it wrote.

    Attributes:
      path: of the record.
      length: bytes of the record so far; 0: it has not begun.
      changed: whether the record was found not to be what it was at a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.length, self.changed = path, 0, False
        self._sha256, self._inode = hashlib.sha256(), self._found()

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Appends on the first host; the others only need to know that the record exists.

        Raises:
          NotWritten: see `records.append`.
        """
        if not devices.is_first():
            self.length = 1
            return
        if not self.length and self._found() != self._inode:
            raise records.not_ours(self.path)
        self.length = records.append(self.path, *rows, at=self.length, inode=self._inode)
        self._sha256.update(b"".join(map(records.encode, rows)))
        self._inode = self._found()

    def _found(self) -> int | None:
        """The file that is there now."""
        try:
            return self.path.lstat().st_ino
        except FileNotFoundError:
            return None

    @property
    def written(self) -> dict[str, Any]:
        """What a checkpoint keeps of the record: its length and checksum."""
        return {"length": self.length, "sha256": self._sha256.hexdigest()}

    def fits(self, written: Mapping[str, Any]) -> bool:
        """Whether the record still begins with what it held at a checkpoint."""
        if not devices.is_first():
            return True
        content = self._begin(written)
        found = hashlib.sha256(content or b"").hexdigest() == written["sha256"]
        self.changed |= not found
        return found

    def _begin(self, written: Mapping[str, Any]) -> bytes | None:
        if self.path.is_symlink() or not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            return file.read(written["length"])

    def resume(self, written: Mapping[str, Any], *, cut: bool = True) -> None:
        """Continues the record after what it held at a checkpoint.

        Args:
          written: from the checkpoint, and `fits`.
          cut: what was appended later is removed.

        Raises:
          NotWritten: see `records.replace`.
        """
        self.length = written["length"]
        if not devices.is_first():
            return
        content = self._begin(written) or b""
        if cut:
            records.replace(
                self.path, content
            )  # a new file: who still writes to the old one will notice
        self._sha256, self._inode = hashlib.sha256(content), self._found()
        if self.changed:
            notify(f"record {self.path} was cut or changed: it goes on from the checkpoint before that")

    def start_over(self) -> None:
        """Sets a record aside that is not what a trial writes; any other is replaced with its first row.

        Raises:
          NotWritten: see `records.replace`.
        """
        if not devices.is_first():
            return
        reason = "is not what was written" if self.changed else records.fault(self.path)
        if reason and self._found() is not None:
            aside = records.set_aside(self.path)
            notify(f"record {self.path} {reason}: set aside as {aside.name}; the trial starts over")
        self._inode = self._found()


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
    problem, task, identity = trial.problem, trial.task, trial.identity()
    metrics = {m.name: {k: v for k, v in m._asdict().items() if k != "name"} for m in task.metrics}
    return {
        "kind": "header",
        "schema": records.SCHEMA,
        "run_id": records.run_id(identity),
        **identity,
        "batch_size": task.batch_size,
        "target": task.target._asdict(),
        "decides": f"test_{task.decides}",
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
