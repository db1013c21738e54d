"""Checkpoints: kill anywhere, resume exactly.

A checkpoint is a numbered folder, which appears under its number only when it is complete. Each host
writes one file there: its shards of the arrays, and with them the SHA-256 of all that the file holds
(with several hosts, all of them must see the folder). So every changed, missing or added byte is noticed
before anything is believed. Of the two newest, the older one is used where the newer one is damaged.

Leaves are raw bytes, of any dtype; their tree, shapes and placement come from the state that the trial
starts with, so that nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from testbed import devices
from testbed.errors import RequestError, describe, notify

# A kill costs a second, or twenty times a checkpoint's cost: these take 5 % of the time at most.
EVERY, SHARE = 1.0, 1 / 20
FORMAT = 1
DIGEST = 32  # bytes of a SHA-256, at the end of a file

Meta = dict[str, Any]


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


class Unusable(Exception):  # noqa: N818 (a reason, which `restore` reports)
    """Why a checkpoint cannot be used."""


def require_fields(meta: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises Unusable if a value is missing or of another kind.

    Args:
      meta: the values.
      kinds: name -> a type, or the kinds of the values in a mapping.
    """
    for name, kind in kinds.items():
        value = meta.get(name)
        if not isinstance(value, dict if isinstance(kind, Mapping) else kind):
            raise Unusable(f"is damaged: it has no {name}, or one of another kind")
        if isinstance(kind, Mapping):
            require_fields(value, kind)


class Checkpoints:
    """The checkpoints of one trial, of which the two newest are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[str] | None = None
        self._number = -1  # of the last attempt to save one
        self._failing = False

    def save(self, state: Any, meta: Meta, *, program: str | None = None, last: bool = False) -> bool:
        """Writes `state` (a pytree of arrays) and `meta` (serializable as JSON).

        Returns as soon as the state may be changed again. A checkpoint that cannot be written ends no
        trial: a Notice says so, once until one can be written again.

        Args:
          state: the state.
          meta: what else is restored.
          program: the checksum of the program that computes the state, to be compared by `restore`.
          last: wait until it is written.

        Returns:
          whether no write has failed, as far as that is known.
        """
        self._prune()
        number = int(devices.from_host_0(self._number + 1))
        self._number = number
        # The arrays are copied here, unless the host computes: there they are read in place.
        shards = _shards(state)
        about = {
            "format": FORMAT,
            "hosts": jax.process_count(),
            "devices": jax.device_count(),
            "program": program,
            "leaves": _describe(state),
            "shards": [[shard.leaf, shard.start, list(shard.array.shape)] for shard in shards],
            "meta": meta,
        }
        arrays = [shard.array for shard in shards]
        # If the host computes, writing in the background would slow the timed steps; and the next step
        # overwrites the arrays.
        if last or jax.default_backend() == "cpu":
            return self._reported(self._write(number, about, arrays))
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1)
        self._writing = self._writer.submit(self._write, number, about, arrays)
        return True

    def restore(
        self,
        like: Any,
        fits: Callable[[Meta], bool] = lambda meta: True,
        *,
        program: str | None = None,
    ) -> tuple[Any, Meta] | None:
        """The newest state and meta that can be used; None if there are none.

        Those that cannot be used are set aside, in the folder `<name>.damaged.checkpoint`, and a Notice
        says why.

        Args:
          like: a state with the tree, shapes, dtypes and placement to be restored.
          fits: whether a checkpoint with this meta may be used; if not, it is deleted. May raise
            Unusable, and any error if `meta` lacks what it needs.
          program: the checksum of the program that will continue the state; None: not compared.

        Raises:
          RequestError: the checkpoint has other shapes, as Shampoo's blocks have on another number of
            devices.
        """
        reasons: dict[str, list[str]] = {}  # -> the numbers of those that are set aside for it
        found = None
        number = 10**9
        while found is None and (number := int(devices.from_host_0(self._newest(number)))) >= 0:
            reason, refused, usable = "", None, True
            try:
                state, meta = self._read(number, like, program)
                usable = fits(meta)
            except RequestError as error:
                refused = error
            except Exception as error:  # damage can raise anything
                known = isinstance(error, Unusable)
                reason = str(error) if known else f"is damaged ({describe(error)})"
            if devices.any_host(refused is not None):
                raise refused or RequestError(f"checkpoint {self._folder}: another host cannot use it")
            if devices.any_host(bool(reason)):
                reasons.setdefault(reason or "is damaged, says another host", []).append(str(number))
                self._set_aside(number)
            elif devices.any_host(not usable):
                if devices.is_first():
                    shutil.rmtree(self._folder / str(number), ignore_errors=True)
            else:
                found = state, meta
        if reasons:
            then = "the trial goes on from the one before" if found else "the trial starts over"
            why = "; ".join(f"{' and '.join(found_in)} {why}" for why, found_in in reasons.items())
            notify(f"checkpoint {self._folder}: {why}; set aside as {self._aside.name}; {then}")
        return found

    def close(self) -> None:
        """Waits until all started writes are complete."""
        self._finish()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def delete(self) -> None:
        """Forgets all, but what was set aside."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _aside(self) -> Path:
        return self._folder.with_name(
            f"{self._folder.name.removesuffix('.checkpoint')}.damaged.checkpoint"
        )

    def _set_aside(self, number: int) -> None:
        if devices.is_first():
            shutil.rmtree(self._aside, ignore_errors=True)
            with suppress(OSError):
                (self._folder / str(number)).rename(self._aside)
            # What cannot be moved must at least not be found again.
            shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def _numbers(self) -> list[int]:
        """Those of complete checkpoints; they count checkpoints, and not steps."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        return [int(name) for name in names if re.fullmatch("[0-9]{1,9}", name)]

    def _newest(self, below: int = 10**9) -> int:
        return max((number for number in self._numbers() if number < below), default=-1)

    def _prune(self) -> None:
        """Waits for the write before, and keeps the newest checkpoint alone: the next one follows."""
        self._finish()
        devices.any_host(False)  # all hosts have finished theirs
        newest = self._newest()
        self._number = max(self._number, newest)
        if devices.is_first():
            with suppress(OSError):
                for path in self._folder.iterdir():
                    if path.name != str(newest):
                        shutil.rmtree(path, ignore_errors=True)

    def _finish(self) -> None:
        if self._writing is not None:
            done, self._writing = self._writing, None
            self._reported(done.result())

    def _reported(self, problem: str) -> bool:
        """Whether there is no problem; a new one is reported."""
        if problem and not self._failing:
            notify(
                f"checkpoint {self._folder}: cannot be written ({problem}); the trial goes on, and "
                "tries again later"
            )
        self._failing = bool(problem)
        return not problem

    def _write(self, number: int, about: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> str:
        """Writes this host's file, completely or not at all; returns what went wrong, or nothing."""
        folder = self._folder / f"{number}.tmp"
        mine = folder / f"host-{jax.process_index()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_file(mine.with_suffix(".tmp"), about, arrays)
            mine.with_suffix(".tmp").rename(mine)
            if all((folder / f"host-{i}").exists() for i in range(about["hosts"])):
                with suppress(FileNotFoundError):  # two hosts may have finished at once
                    folder.rename(self._folder / str(number))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            size = sum(array.nbytes for array in arrays)
            return f"{error.strerror or error}; it needs {size / 1e6:.3g} MB"
        return ""

    def _read(self, number: int, like: Any, program: str | None) -> tuple[Any, Meta]:
        """The state and meta of one checkpoint; raises anything where it is damaged."""
        folder = self._folder / str(number)
        files = [_read_file(folder / "host-0")]
        about = files[0].about
        files += [_read_file(folder / f"host-{host}") for host in range(1, about["hosts"])]
        differs = _difference(about["leaves"], _describe(like))
        elsewhere = about["devices"] != jax.device_count()
        if differs and elsewhere:
            raise RequestError(
                f"checkpoint {self._folder}: it was made on {about['devices']} devices and does not fit "
                f"{jax.device_count()}; use that number again, or start over with --fresh"
            )
        if differs:
            raise Unusable(f"is of another state than the optimizer has now: {differs}")
        # On another number of devices, another program computes the same.
        if program and about["program"] not in (None, program) and not elsewhere:
            raise Unusable(
                "was written by another program: the optimizer computes something else now, as when it "
                "depends on the environment or on the order of a set"
            )
        return _assemble(like, files), about["meta"]


class Shard(NamedTuple):
    """A part of a leaf."""

    leaf: int  # number
    start: list[int]  # index of its first element
    array: NDArray[Any]


def _shards(state: Any) -> list[Shard]:
    """What this host writes: each part of each leaf is written by one host."""
    leaves = [_raw(leaf) for leaf in jax.tree.leaves(state)]
    mine = [
        (i, [part.start or 0 for part in shard.index], shard.data)
        for i, leaf in enumerate(leaves)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    arrays = jax.device_get([data for _, _, data in mine])
    return [Shard(i, start, array) for (i, start, _), array in zip(mine, arrays, strict=True)]


def _write_file(path: Path, about: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> None:
    """One line of JSON, the arrays' bytes, and the SHA-256 of both."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (json.dumps(about).encode() + b"\n", *(array.tobytes() for array in arrays)):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())


class File(NamedTuple):
    """What one host wrote."""

    about: dict[str, Any]
    content: bytes  # of the shards, one after the other


def _read_file(path: Path) -> File:
    """What `_write_file` wrote; raises Unusable, or anything else, if it is not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unusable(f"is damaged: {path.name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise Unusable(f"is damaged: {path.name} is not what was written")
    line, _, rest = content[:-DIGEST].partition(b"\n")
    about = json.loads(line)
    if about["format"] != FORMAT:
        raise Unusable(f"is of another version of the testbed (format {about['format']})")
    return File(about, rest)


def _assemble(like: Any, files: Sequence[File]) -> Any:
    """The state of all shards, placed as `like` is."""
    leaves, tree = jax.tree.flatten(like)
    raw = [_raw(leaf) for leaf in leaves]
    whole = [np.empty(leaf.shape, leaf.dtype) for leaf in raw]
    for about, content in files:
        at = 0
        for number, start, shape in about["shards"]:
            part = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
            count, dtype = math.prod(shape), whole[number].dtype
            values = np.frombuffer(content, dtype, count, at) if count else np.empty(0, dtype)
            whole[number][part] = values.reshape(shape)
            at += count * dtype.itemsize
    placed = [
        jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
        for leaf, array in zip(raw, whole, strict=True)
    ]
    return jax.tree.unflatten(tree, map(_unraw, placed, leaves))


def _describe(state: Any) -> list[list[Any]]:
    """Path, shape and dtype of each leaf."""
    leaves = jax.tree.leaves_with_path(state)
    return [[jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves]


def _difference(then: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """The first leaf that differs, and how; empty if none does."""
    before, after = (
        {path: f"{dtype}{shape}" for path, shape, dtype in leaves} for leaves in (then, now)
    )
    for path in [*before, *after]:
        if before.get(path) != after.get(path):
            was, is_now = (found.get(path, "nothing") for found in (before, after))
            return f"{path or 'the root'} was {was} and is {is_now}"
    return ""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unraw(array: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array
