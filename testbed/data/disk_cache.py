"""Arrays that are expensive to compute, cached on disk with their checksums.

They are memory-mapped: the system caches what fits in memory, shared by all processes of a machine.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from testbed import paths
from testbed.errors import RequestError


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
        _reserve(temporary)
        fill(array)
        array.flush()
        del array
        card.unlink(missing_ok=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    card.write_text(json.dumps({"key": dict(key), "sha256": _sha256(path)}, indent=2) + "\n")
    return path


def _reserve(path: Path) -> None:
    """Takes the disk space of a sparse file now: writing to a map on a full disk ends the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        size = path.stat().st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise RequestError(
                f"{path.parent}: no room for {size / 2**30:.1f} GiB ({error.strerror}); set "
                "XDG_CACHE_HOME to another folder for caches"
            ) from error


def find(name: str, key: Mapping[str, Any], shape: tuple[int, ...], dtype: DTypeLike) -> Path | None:
    """The file in which `stored` keeps the array; None if it is missing or damaged."""
    path = _path(name, key, shape, dtype)
    try:
        sha256 = json.loads(path.with_suffix(".json").read_text())["sha256"]
        return path if sha256 == _sha256(path) else None
    except (OSError, ValueError, KeyError):
        return None


def _path(name: str, key: Mapping[str, Any], shape: tuple[int, ...], dtype: DTypeLike) -> Path:
    text = json.dumps([dict(key), shape, np.dtype(dtype).str], sort_keys=True)
    return paths.cache("arrays") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
