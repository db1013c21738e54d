"""The record format: one file per trial, one JSON object per line, appended and flushed to disk.

`<out>/<task>/<optimizer>/<run_id>.jsonl`; docs/design.md lists the fields. Standard library only:
analysis reads records without jax.
"""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from testbed.errors import RequestError, notify, printable

SCHEMA = 1
TAIL = 65536  # bytes: longer than any row
DEEPEST = 50  # brackets within brackets in a row


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


class NotWritten(RequestError):  # noqa: N818 (the trial is interrupted, and no worse)
    """A record could not be written, or is no longer what was written; it can be resumed."""


def append(path: Path, *rows: Mapping[str, Any], at: int, inode: int | None = None) -> int:
    """Writes rows at the end of a record and flushes to disk; returns the new length.

    Args:
      path: the record's; at byte 0, a new file replaces what is there, with all rows or not at all.
      rows: the rows.
      at: the length of the record, in bytes.
      inode: of the file, if it is known.

    Raises:
      NotWritten: the record has another length or is another file, because someone else wrote to it;
        or the rows cannot be written: then none of them is.
    """
    content = b"".join(encode(row) for row in rows)
    if at == 0:
        replace(path, content)
        return len(content)
    with _reporting(path), os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b", 0) as file:
        found = os.fstat(file.fileno())
        if found.st_size != at or inode not in (None, found.st_ino):
            raise not_ours(path)
        _write_whole(file.fileno(), content, at)
    return at + len(content)


def not_ours(path: Path) -> NotWritten:
    """The error for a record to which something else wrote."""
    return NotWritten(
        f"record {path}: something else wrote to it or cut it meanwhile; this process stops, and the "
        "same command goes on from the last checkpoint"
    )


def replace(path: Path, content: bytes) -> None:
    """Puts a new file with this content in the record's place, whole or not at all.

    A process that wrote to the file before, and one that a link led elsewhere, do not write to it.

    Raises:
      NotWritten: it cannot be written; what was there stays.
    """
    new = path.with_suffix(".new")
    with _reporting(path):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(new, flags, 0o666), "wb", 0) as file:
                _write_whole(file.fileno(), content, 0)
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Inside this context, an error of the file system becomes NotWritten."""
    try:
        yield
    except OSError as error:
        raise NotWritten(
            f"record {path}: cannot be written ({error.strerror}); what it held is kept: once it can be "
            "written, the same command resumes the trial"
        ) from error


def _write_whole(file: int, content: bytes, at: int) -> None:
    """Writes all of the content from byte `at` on, to the disk, or nothing."""
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(file, content[done:], at + done)
        os.fsync(file)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, at)
        raise


def set_aside(path: Path) -> Path:
    """Renames a record so that no reader takes it for one, replacing one set aside before."""
    aside = path.with_suffix(".damaged")
    with _reporting(path):
        path.replace(aside)
    return aside


def read(path: Path) -> Record:
    """Reads the valid lines of a record; the others are in `errors`. It never raises."""
    content = _content(path)
    if isinstance(content, str):
        return Record(path, {}, [], None, [ReadError(path, 0, content)])
    return _parse(path, content)


def _content(path: Path) -> bytes | str:
    """A record's bytes, or why there are none."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            return "not a file"
        return path.read_bytes()
    except OSError as error:
        return str(error)


def _parse(path: Path, content: bytes) -> Record:
    header: dict[str, Any] = {}
    measurements: list[dict[str, Any]] = []
    end = None
    errors = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _row(line)
        if isinstance(row, str):
            errors.append(ReadError(path, number, row))
            continue
        kind = row["kind"]
        if kind == "header" and row.get("schema") != SCHEMA:
            schema = printable(str(row.get("schema")), 40)
            errors.append(ReadError(path, number, f"schema {schema}, not {SCHEMA}"))
        elif kind == "header" and not header:
            header = row
        elif kind == "measurement" and type(row.get("step")) is int:
            measurements.append(row)
        elif kind == "end":
            end = row
        elif kind == "header":
            errors.append(ReadError(path, number, "a second header"))
        else:
            reason = f"kind {printable(repr(kind), 40)} without its fields"
            errors.append(ReadError(path, number, reason))
    if not header:
        errors.append(ReadError(path, 0, "no header"))
    return Record(path, header, measurements, end, errors)


def _row(line: bytes) -> dict[str, Any] | str:
    """A line's object; or why it is none that can be used."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or "kind" not in row:
        return "not a JSON object with a kind"
    return row if _is_shallow(row) else f"brackets nested deeper than {DEEPEST}"


def _is_shallow(row: Any) -> bool:
    level = [row]
    for _ in range(DEEPEST):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [item for v in inner for item in v if isinstance(item, dict | list)]
        if not level:
            return True
    return False


def is_finished(path: Path) -> bool:
    """Whether a record is whole and ended (a divergence is an end, a failure is not)."""
    if not path.exists():
        return False
    record = read(path)
    return not record.errors and is_whole(record)


HEADER = {
    "task": str,
    "protocol": str,
    "optimizer": str,
    "seed": int,
    "total_steps": int,
    "target": dict,
}
TARGET = {"metric": str, "value": int | float, "mode": str}


def is_whole(record: Record) -> bool:
    """Whether a record has all that its readers need, to an end that is a result."""
    end, rows = record.end or {}, record.measurements
    steps = [row["step"] for row in rows]
    values = [value for row in rows for name, value in row.items() if name != "kind"]
    return (
        _has(record.header, HEADER)
        and _has(record.header["target"], TARGET)
        and bool(steps)
        and steps == sorted(set(steps))
        and all(value is None or type(value) in (int, float) for value in values)
        and record.header["target"]["metric"] in rows[-1]
        and end.get("status") in ("finished", "diverged")
        and type(end.get("step")) is int
    )


def _has(row: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def fault(path: Path) -> str:
    """Why a record is not one that a trial was writing; empty if it is, or is not there."""
    if path.is_symlink():
        return "is a symbolic link"
    if not path.exists():
        return ""
    content = _content(path)
    if isinstance(content, str):
        return f"cannot be read ({content})"
    # The last line may be torn: a process was killed while it wrote.
    record = _parse(path, content[: content.rfind(b"\n") + 1])
    if record.errors:
        _, line, reason = record.errors[0]
        return f"is damaged ({f'line {line}: ' if line else ''}{reason})"
    ended = record.end is not None and record.end.get("status") != "failed"
    return "is damaged (it has an end, but is not whole)" if ended and not is_whole(record) else ""


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
        if not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    rows = (_row(line) for line in reversed(lines))
    return next((row for row in rows if isinstance(row, dict)), None)


class Busy(RequestError):  # noqa: N818 (a waiting process treats it as no error)
    """Another process runs the trial."""


# Of file systems without locks: NFS without its lock service, Lustre without -o flock, ...
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ESTALE, 524}
OWNED = ".owner.lock"


@contextmanager
def lock(record: Path) -> Iterator[None]:
    """Locks a record's file for this process while it runs the trial.

    Where the file system has no locks, a file that names this process stands for one; a Notice says so.

    Raises:
      Busy: another process holds the lock.
      RequestError: the folder cannot be written.
    """
    path, file = _open_locked(record)
    mine = os.fstat(file)
    try:
        yield
    finally:
        with suppress(OSError):  # a lock that another process holds by now is not removed
            if os.path.samestat(mine, path.lstat()):
                path.unlink()
        os.close(file)


def _open_locked(record: Path) -> tuple[Path, int]:
    """Opens and locks the file of a lock; its path and descriptor."""
    path, tries = record.with_suffix(".lock"), 0
    while True:
        file = _open_lock(record, path, 0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.lstat(), os.fstat(file)):
                return path, file
        except BlockingIOError as error:
            tries += 1
            if tries < 5:  # another process may only be checking (`is_held`)
                os.close(file)
                time.sleep(0.01)
                continue
            os.close(file)
            raise _busy(record) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(file)
            if error.errno not in UNSUPPORTED:
                raise RequestError(f"--out: cannot lock {path} ({error.strerror})") from error
            path.unlink(missing_ok=True)
            _say_no_locks(path.parent, str(error.strerror))
            return _open_owned(record)
        # The holder of the lock removed the file after it was opened here: a lock on it locks nothing.
        os.close(file)


def _open_lock(record: Path, path: Path, flags: int) -> int:
    """Opens the file of a lock, and makes it if need be; its content is not touched."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
    except OSError as error:
        if flags and isinstance(error, FileExistsError):
            raise
        if path.is_symlink():
            raise RequestError(f"--out: {path} is a symbolic link, and no lock; remove it") from error
        raise RequestError(
            f"--out: cannot write {record.parent} ({error.strerror}); choose another folder"
        ) from error


def _busy(record: Path, otherwise: str = "") -> Busy:
    return Busy(
        f"trial {record.stem} is being run by another process; wait for it, or use another --out"
        f"{otherwise}"
    )


@functools.cache  # once
def _say_no_locks(folder: Path, reason: str) -> None:
    notify(f"{folder}: its file system has no locks ({reason}); files that name this process are used")


def _open_owned(record: Path) -> tuple[Path, int]:
    """Makes a lock file that names this process; that of a process which is gone is replaced."""
    path, me = record.with_suffix(OWNED), json.dumps([socket.gethostname(), os.getpid()])
    for _ in range(2):
        with suppress(FileExistsError):
            file = _open_lock(record, path, os.O_EXCL)
            os.write(file, me.encode())
            return path, file
        if not _is_gone(path):
            break
        path.unlink(missing_ok=True)
    raise _busy(record, f"; if no process does, on any host, remove {path}")


def _is_gone(path: Path) -> bool:
    """Whether the process that a lock file names is one of this host, and has ended."""
    try:
        host, process = json.loads(path.read_bytes())
        if host == socket.gethostname():
            os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        pass
    return False


def is_held(record: Path) -> bool:
    """Whether another process is running the trial at this moment."""
    owned = record.with_suffix(OWNED)
    try:
        with record.with_suffix(".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return owned.exists() and not _is_gone(owned)
