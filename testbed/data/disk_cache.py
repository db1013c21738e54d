"""Arrays that are expensive to compute, cached on disk with their checksums.

They are memory-mapped: the system caches what fits in memory, shared by all processes of a machine.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from testbed import paths
from testbed.errors import RequestError, notify


def stored(
    name: str,
    key: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    fill: Callable[[NDArray[Any]], None],
) -> Path:
    """An .npy file with the array that `fill` writes; computed if it is missing or damaged.

    Args:
      name: prefix of the file's name.
      key: everything that determines the content; serializable as JSON.
      shape: of the array.
      dtype: of the array.
      fill: writes the whole array that it is given.

    Returns:
      the path, for `numpy.load(path, mmap_mode="r")`.
    """
    found = find(name, key, shape, dtype)
    if found:
        return found
    path = _path(name, key, shape, dtype)
    card = path.with_suffix(".json")
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with _reporting(path.parent, size):
            if path.exists():
                notify(f"{path}: it is damaged, or was not written to its end; it is computed again")
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            _reserve(temporary)
        fill(array)
        array.flush()
        del array
        with _reporting(path.parent, size):
            card.unlink(missing_ok=True)
            temporary.replace(path)
            card.write_text(json.dumps({"key": dict(key), "sha256": _sha256(path)}, indent=2) + "\n")
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _reporting(folder: Path, size: int) -> Iterator[None]:
    """Inside this context, an error of the file system becomes a RequestError."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"{folder}: cannot be written ({error.strerror}; it needs {size / 2**30:.3f} GiB); set "
            "XDG_CACHE_HOME to another folder for caches"
        ) from error


def _reserve(path: Path) -> None:
    """Takes the disk space of a sparse file now: writing to a map on a full disk ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def find(name: str, key: Mapping[str, Any], shape: tuple[int, ...], dtype: DTypeLike) -> Path | None:
    """The file in which `stored` keeps the array; None if it is missing or damaged."""
    path = _path(name, key, shape, dtype)
    try:
        sha256 = json.loads(path.with_suffix(".json").read_text())["sha256"]
        return path if sha256 == _sha256(path) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _path(name: str, key: Mapping[str, Any], shape: tuple[int, ...], dtype: DTypeLike) -> Path:
    text = json.dumps([dict(key), shape, np.dtype(dtype).str], sort_keys=True)
    return paths.cache("arrays") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
