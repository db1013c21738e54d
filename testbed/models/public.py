"""Converts public checkpoints (.npz) to parameters. Loading never unpickles.

Names, shapes and types are looked at first; only the parameters that the network has are read, each no
further than its declared size.

Layouts, distinguished by their keys:

- legacy, of big_transfer (BiT-S, BiT-M and the distillation release): `resnet/block1/unit01/a/...`,
  convolutions named `standardized_conv2d` or `standardized_conv2d_<n>`;
- native, of big_vision and of `save` here: a parameter's path; at the top, under `params/`, or under
  `opt/target/`. What a trainer saves next to the latter two, such as an optimizer's state, is ignored.
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from testbed.errors import RequestError, describe

Shape = tuple[int, ...]


class Stored(NamedTuple):
    """An array in a checkpoint, as its header declares it."""

    member: str  # of the archive
    shape: Shape  # of the parameter: that of the array without or with axes of length 1
    dtype: np.dtype[Any]
    fortran: bool  # whether its first axis is the one that is contiguous
    begin: int  # bytes of its header


Flat = Mapping[str, Stored]

# What a trainer saves parameters under; the last is for what was saved under both.
_PREFIXES = ("params/", "opt/target/", "params/")
_LONGEST_HEADER = 1 << 16  # bytes
_BFLOAT16 = np.dtype("V2")  # as NumPy reads it
_LEGACY_UNIT = re.compile(
    r"(block\d+)/(unit\d+)/([abc])/(?:"
    r"group_norm/(?P<norm>gamma|beta)|(?P<proj>proj/)?standardized_conv2d(?:_\d+)?/kernel)"
)
_NORM = {"gamma": "scale", "beta": "bias"}
_NUMBER = {"a": 1, "b": 2, "c": 3}


def fill(
    content: bytes, where: str, expected: Mapping[str, Any], *, fresh_head: bool = False
) -> dict[str, Any]:
    """The parameters in a checkpoint, as nested dictionaries of float32 arrays.

    Args:
      content: of an .npz file in one of the layouts above.
      where: the checkpoint's name in errors.
      expected: nested dictionaries with the shapes of the network's parameters.
      fresh_head: ignore the checkpoint's classifier; the head is then zero, as in a new student.

    Raises:
      RequestError: the file cannot be read; the first key that is not used or parameter that is not
        filled; a shape that does not fit. For a classifier of another size, both sizes.
    """
    archive = _opened(content, where)
    found = to_native(_declared(archive, where), where)
    expected = flatten_dict(expected, sep="/")
    filled = {}
    if fresh_head:
        found = {name: stored for name, stored in found.items() if not name.startswith("head/")}
        heads = {name: leaf for name, leaf in expected.items() if name.startswith("head/")}
        filled = {name: np.zeros(leaf.shape, np.float32) for name, leaf in heads.items()}
    needed = {name: leaf for name, leaf in expected.items() if name not in filled}
    _require_numbers(found, where)
    _require_fit(found, needed, where)
    filled |= {name: _read(archive, found[name], where) for name in needed}
    return unflatten_dict({name: filled[name] for name in expected}, sep="/")


def _require_numbers(found: Flat, where: str) -> None:
    """Raises RequestError if an array holds anything else; NumPy takes bfloat16 for two bytes."""
    for name, stored in found.items():
        if stored.dtype.kind not in "fiub" and stored.dtype != _BFLOAT16:
            kind = "Python objects" if stored.dtype.hasobject else f"of the type {stored.dtype}"
            raise _damaged(where, f"{name} is {kind}, not numbers")


def _require_fit(found: Flat, needed: Mapping[str, Any], where: str) -> None:
    """Raises RequestError unless the names and shapes that were found are those that are needed."""
    heads = [tree["head/kernel"].shape[-1:] for tree in (found, needed) if "head/kernel" in tree]
    if len(heads) == 2 and heads[0] != heads[1]:
        of_checkpoint, of_network = (head[0] if head else 1 for head in heads)
        raise RequestError(
            f"checkpoint {where}: its classifier has {of_checkpoint} classes, "
            f"the network {of_network}; take a checkpoint fine-tuned on this data set"
        )
    for name in found:
        if name not in needed:
            raise RequestError(f"checkpoint {where}: the network has no parameter for its {name}")
    for name, leaf in needed.items():
        if name not in found:
            raise RequestError(f"checkpoint {where}: nothing in it fills the parameter {name}")
        if found[name].shape != leaf.shape:
            raise RequestError(
                f"checkpoint {where}: {name} has the shape {found[name].shape}, "
                f"the network needs {leaf.shape}"
            )


def save(path: Path, params: Mapping[str, Any]) -> None:
    """Writes parameters in the native layout, at the top."""
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    with path.open("wb") as file:
        np.savez(file, **flat)  # type: ignore[arg-type]  # mypy takes it for allow_pickle


def to_native(flat: Flat, where: str) -> Flat:
    """Parameters under their native names, from any layout."""
    for prefix in _PREFIXES:
        inside = {n.removeprefix(prefix): a for n, a in flat.items() if n.startswith(prefix)}
        flat = inside or flat
    if not any(name.startswith("resnet/") for name in flat):
        return flat
    native: dict[str, Stored] = {}
    for name, stored in flat.items():
        renamed, shape = _from_legacy(name.removeprefix("resnet/"), stored.shape)
        if renamed is None or not name.startswith("resnet/"):
            raise RequestError(f"checkpoint {where}: {name} is not a name in the BiT layout")
        if renamed in native:
            raise RequestError(f"checkpoint {where}: {name} fills {renamed} a second time")
        if math.prod(shape) != math.prod(stored.shape):
            raise RequestError(f"checkpoint {where}: {name} has the shape {stored.shape}")
        native[renamed] = stored._replace(shape=shape)
    return native


def _from_legacy(name: str, shape: Shape) -> tuple[str | None, Shape]:
    """The native name of a legacy one, and the native shape."""
    size = math.prod(shape)
    if match := _LEGACY_UNIT.fullmatch(name):
        block, unit, letter = match.group(1, 2, 3)
        number = _NUMBER[letter]
        if norm := match["norm"]:
            return f"{block}/{unit}/gn{number}/{_NORM[norm]}", (1, 1, 1, size)
        layer = "conv_proj" if match["proj"] else f"conv{number}"
        return f"{block}/{unit}/{layer}/kernel", shape
    if re.fullmatch(r"root_block/standardized_conv2d(_\d+)?/kernel", name):
        return "root_block/conv_root/kernel", shape
    if match := re.fullmatch(r"group_norm/(gamma|beta)", name):
        return f"norm-pre-head/{_NORM[match[1]]}", (1, 1, 1, size)
    if match := re.fullmatch(r"head/conv2d/(kernel|bias)", name):
        return f"head/{match[1]}", shape[-2:] if match[1] == "kernel" else (size,)
    return None, shape


def _opened(content: bytes, where: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:
        raise _damaged(where, describe(error)) from error


def _declared(archive: zipfile.ZipFile, where: str) -> dict[str, Stored]:
    """What the headers of the arrays declare, by name; no array is read."""
    found = {}
    for member in archive.namelist():
        if member.endswith(".npy"):
            name = member.removesuffix(".npy")
            try:
                with archive.open(member) as file:
                    head = io.BytesIO(file.read(_LONGEST_HEADER))
                first = np.lib.format.read_magic(head) == (1, 0)
                read = (
                    np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = read(head)
            except Exception as error:  # whatever damage makes of a header
                raise _damaged(where, f"the header of {name}: {type(error).__name__}") from error
            found[name] = Stored(member, shape, dtype, fortran, head.tell())
    return found


def _read(archive: zipfile.ZipFile, stored: Stored, where: str) -> NDArray[np.float32]:
    """A parameter in float32, from an array of numbers of any type."""
    name = stored.member.removesuffix(".npy")
    dtype = jnp.dtype(jnp.bfloat16) if stored.dtype == _BFLOAT16 else stored.dtype
    size = math.prod(stored.shape) * dtype.itemsize
    try:
        with archive.open(stored.member) as file:
            file.read(stored.begin)
            data, more = file.read(size), file.read(1)  # to the end, where the checksum is compared
        if len(data) != size or more:
            raise _damaged(where, f"{name} has {'more' if more else 'fewer'} bytes than it declares")
        array = np.frombuffer(data, dtype).reshape(stored.shape, order="F" if stored.fortran else "C")
        return np.asarray(array, np.float32, order="C")
    except RequestError:
        raise
    except MemoryError as error:
        raise RequestError(f"checkpoint {where}: no memory for {name} of {size:,} bytes") from error
    except Exception as error:  # whatever damage makes of an archive
        raise _damaged(where, f"{name}: {describe(error)}") from error


def _damaged(where: str, reason: str) -> RequestError:
    return RequestError(f"checkpoint {where}: not an .npz of plain arrays ({reason}); fetch it again")
