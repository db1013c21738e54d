"""Checkpoints: kill anywhere, resume exactly.

One file, replaced in one move: it is the old checkpoint or the new one, never half of either. The
leaves of the state are stored as bytes; names, shapes and dtypes come from the state that the
trial starts with, so that nothing is ever unpickled.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


def save(path: Path, state: Any, meta: dict[str, Any]) -> None:
    """Writes the leaves of `state` (a pytree of arrays) and `meta` (what JSON can hold)."""
    leaves = [np.asarray(_raw(leaf)) for leaf in jax.tree.leaves(state)]
    arrays = {f"leaf{i:05}": _bytes(leaf) for i, leaf in enumerate(leaves)}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # taken for allow_pickle
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The state and meta in `path`; None where there is no checkpoint that fits `like`.

    Args:
      path: what `save` wrote.
      like: a state with the tree, shapes and dtypes to be restored.
    """
    leaves, tree = jax.tree.flatten(like)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            if len(arrays.files) != len(leaves) + 1:
                return None
            restored = [_restore(arrays[f"leaf{i:05}"], leaf) for i, leaf in enumerate(leaves)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return jax.tree.unflatten(tree, restored), meta


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(array.tobytes(), np.uint8)


def _restore(content: NDArray[np.uint8], like: Any) -> Any:
    raw = _raw(like)
    array = jnp.asarray(np.frombuffer(content.tobytes(), raw.dtype).reshape(raw.shape))
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array
