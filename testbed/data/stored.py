"""Arrays that are dear to compute, kept in the cache folder with their checksums.

They are memory-mapped: the system keeps in memory what fits, once for all processes of a machine.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from testbed import places


def stored(
    name: str,
    key: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    fill: Callable[[NDArray[Any]], None],
) -> Path:
    """An .npy file that holds what `fill` makes of an array; computed where it is not there, or damaged.

    Args:
      name: how the file's name begins.
      key: all that determines the content, as JSON can hold it.
      shape: of the array.
      dtype: of the array.
      fill: writes all of the array that it is given.

    Returns:
      the path, for `numpy.load(path, mmap_mode="r")`.
    """
    text = json.dumps([dict(key), shape, np.dtype(dtype).str], sort_keys=True)
    short = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = places.cache("arrays") / f"{name}-{short}.npy"
    card = path.with_suffix(".json")
    if _is_whole(path, card):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
        fill(array)
        array.flush()
        del array
        card.unlink(missing_ok=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    card.write_text(json.dumps({"key": dict(key), "sha256": _sha256(path)}, indent=2) + "\n")
    return path


def _is_whole(path: Path, card: Path) -> bool:
    try:
        return bool(json.loads(card.read_text())["sha256"] == _sha256(path))
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
