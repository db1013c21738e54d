"""The record format: one file per trial, one JSON object per line, appended and flushed to disk.

`<out>/<task>/<optimizer>/<run_id>.jsonl`; docs/design.md lists the fields. Standard library only:
analysis reads records without jax.
"""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from testbed.errors import RequestError

SCHEMA = 1
TAIL = 65536  # bytes: longer than any row


class ReadError(NamedTuple):  # a value, never raised
    """A line of a record that could not be used."""

    path: Path
    line: int  # from 1; 0 for the whole file
    reason: str


class Record(NamedTuple):
    """One trial as read from its file."""

    path: Path
    header: dict[str, Any]
    measurements: list[dict[str, Any]]
    end: dict[str, Any] | None  # None: the trial is running, or was interrupted
    errors: list[ReadError]


def run_id(identity: Mapping[str, Any]) -> str:
    """A short hash of everything that determines a trial."""
    canonical = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def encode(row: Mapping[str, Any]) -> bytes:
    """One line. Non-finite numbers become null."""
    return json.dumps(_finite(row), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def append(path: Path, *rows: Mapping[str, Any], at: int) -> int:
    """Truncates at byte `at`, writes rows there, flushes to disk; returns the new length."""
    with path.open("r+b" if at else "wb") as file:
        file.seek(at)
        file.truncate()
        file.write(b"".join(encode(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def read(path: Path) -> Record:
    """Reads the valid lines of a record; the others are in `errors`."""
    header: dict[str, Any] = {}
    measurements: list[dict[str, Any]] = []
    end = None
    errors = []
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("not a file")
        content = path.read_bytes()
    except OSError as error:
        return Record(path, header, measurements, end, [ReadError(path, 0, str(error))])
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            kind = row["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            errors.append(ReadError(path, number, "not a JSON object with a kind"))
            continue
        if kind == "header" and row.get("schema") != SCHEMA:
            errors.append(ReadError(path, number, f"schema {row.get('schema')}, not {SCHEMA}"))
        elif kind == "header":
            header = row
        elif kind == "measurement" and isinstance(row.get("step"), int):
            measurements.append(row)
        elif kind == "end":
            end = row
        else:
            errors.append(ReadError(path, number, f"kind {kind!r} without its fields"))
    if not header:
        errors.append(ReadError(path, 0, "no header"))
    return Record(path, header, measurements, end, errors)


def read_folder(folder: Path) -> list[Record]:
    """All records below a folder, in the order of their paths."""
    return [read(path) for path in paths(folder)]


def paths(folder: Path) -> list[Path]:
    """The records below a folder, sorted; running trials may be replacing their checkpoints there."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".checkpoint")]
        found += [Path(place, name) for name in files if name.endswith(".jsonl")]
    return sorted(found)


def first_reaching(
    measurements: Sequence[Mapping[str, Any]], target: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The first measurement that is at least as good as the target; None if there is none."""
    sign = 1 if target["mode"] == "min" else -1
    for measurement in measurements:
        value = measurement.get(target["metric"])
        if value is not None and sign * value <= sign * target["value"]:
            return measurement
    return None


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole row of a record, without reading the rest; None if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and "kind" in row:
            return row
    return None


class Busy(RequestError):  # noqa: N818 (a waiting process treats it as no error)
    """Another process runs the trial."""


@contextmanager
def lock(record: Path) -> Iterator[None]:
    """Locks a record's file for this process while it runs the trial.

    Raises:
      Busy: another process holds the lock.
      RequestError: the folder cannot be written.
    """
    path = record.with_suffix(".lock")
    with _open_locked(record, path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(record: Path, path: Path) -> BinaryIO:
    tries = 0
    while True:
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb")
        except OSError as error:
            raise RequestError(
                f"--out: cannot write {record.parent} ({error.strerror}); choose another folder"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError as error:
            tries += 1
            if tries < 5:  # another process may only be checking (`is_held`)
                file.close()
                time.sleep(0.01)
                continue
            file.close()
            raise Busy(
                f"trial {record.stem} is being run by another process; wait for it, or use another --out"
            ) from error
        except FileNotFoundError:
            pass
        # The holder of the lock removed the file after it was opened here: a lock on it locks nothing.
        file.close()


def is_held(record: Path) -> bool:
    """Whether another process is running the trial at this moment."""
    try:
        with record.with_suffix(".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
