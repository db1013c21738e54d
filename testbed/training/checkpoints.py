"""Checkpoints: kill anywhere, resume exactly.

Orbax writes them to one folder per trial: completely or not at all, while accelerators continue. Each
host writes its own part of divided arrays (with several hosts, all of them must see the folder). Leaves
are named by number; their tree, shapes and placement come from the state that the trial starts with,
so that nothing is ever unpickled.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from testbed import devices
from testbed.errors import RequestError

# A kill costs a second, or twenty times a checkpoint's cost: these take 5 % of the time at most.
EVERY, SHARE = 1.0, 1 / 20


class Cadence:
    """When the next checkpoint is due."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() > self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside this context, a checkpoint is saved; the longer it takes, the later the next one."""
        begun = time.monotonic()
        yield
        cost = time.monotonic() - begun
        self._next = begun + cost + max(EVERY, cost / SHARE)


class Checkpoints:
    """The checkpoints of one trial, of which the newest is kept. Nothing is opened before it is used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._manager: Any = None

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write `state` (a pytree of arrays) and `meta` (serializable as JSON).

        Returns as soon as the state may be changed again.
        """
        import orbax.checkpoint as ocp  # takes half a second, which most trials can avoid

        manager = self._open()
        manager.wait_until_finished()
        described = {**meta, "leaves": _describe(state), "devices": jax.device_count()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_named(state)), meta=ocp.args.JsonSave(described)
        )
        manager.save(self._number(), args=items)
        if jax.default_backend() == "cpu":
            # If the host computes, writing in the background would slow the timed steps; and the arrays
            # are read in place, where the next step overwrites them.
            manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state and meta; None if there is no checkpoint, or only a damaged one.

        Args:
          like: a state with the tree, shapes, dtypes and placement to be restored.

        Raises:
          RequestError: the checkpoint has other shapes, as Shampoo's blocks have on another number of
            devices.
        """
        if devices.any_host(not self._folder.exists()):
            return None
        import orbax.checkpoint as ocp

        manager = self._open()
        number = manager.latest_step()
        if number is None:
            return None
        damaged, arrays, meta = False, {}, {}
        try:
            only_meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = manager.restore(number, args=only_meta).meta
            if meta["leaves"] == _describe(like):
                abstract = jax.tree.map(_abstract, _named(like))
                items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                arrays = manager.restore(number, args=items).state
        except (ValueError, KeyError, TypeError):
            damaged = True
        if devices.any_host(damaged):
            return None
        if meta["leaves"] != _describe(like):
            raise RequestError(
                f"checkpoint {self._folder}: it was made on {meta['devices']} devices and does not fit "
                f"{jax.device_count()}; use that number again, or start over with --fresh"
            )
        leaves, tree = jax.tree.flatten(like)
        restored = [
            _unraw(arrays[_name(i)], leaf) if leaf.size else leaf for i, leaf in enumerate(leaves)
        ]
        kept = {name: value for name, value in meta.items() if name not in ("leaves", "devices")}
        return jax.tree.unflatten(tree, restored), kept

    def close(self) -> None:
        """Waits until all started writes are complete."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def delete(self) -> None:
        """Forgets all."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            # It reports what a killed process left half-deleted, and deletes it.
            logging.getLogger("absl").setLevel(logging.ERROR)
            options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager

    def _number(self) -> int:
        """Numbers count checkpoints, not steps: a resumed trial may be at the same step."""
        latest = self._open().latest_step()
        return 0 if latest is None else latest + 1


def _named(state: Any) -> dict[str, Any]:
    """Leaves by number, without the empty ones, which Orbax does not accept."""
    return {_name(i): _raw(leaf) for i, leaf in enumerate(jax.tree.leaves(state)) if leaf.size}


def _name(number: int) -> str:
    return f"leaf{number:05}"


def _describe(state: Any) -> list[list[Any]]:
    return [[list(leaf.shape), str(leaf.dtype)] for leaf in jax.tree.leaves(state)]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unraw(array: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array
