"""Converts public checkpoints (.npz) to parameters. Loading never unpickles.

Layouts, distinguished by their keys:

- legacy, of big_transfer (BiT-S, BiT-M and the distillation release): `resnet/block1/unit01/a/...`,
  convolutions named `standardized_conv2d` or `standardized_conv2d_<n>`;
- native, of big_vision and of `save` here: a parameter's path; at the top, under `params/`, or under
  `opt/target/` next to an optimizer's state, which is ignored.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from testbed.errors import RequestError

Flat = dict[str, NDArray[Any]]

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
    found = to_native(_read(content, where), where)
    expected = flatten_dict(expected, sep="/")
    if fresh_head:
        found = {name: array for name, array in found.items() if not name.startswith("head/")}
        found |= {n: np.zeros(s.shape, s.dtype) for n, s in expected.items() if n.startswith("head/")}
    heads = [tree.get("head/kernel") for tree in (found, expected)]
    if heads[0] is not None and heads[1] is not None and heads[0].shape[-1] != heads[1].shape[-1]:
        raise RequestError(
            f"checkpoint {where}: its classifier has {heads[0].shape[-1]} classes, "
            f"the network {heads[1].shape[-1]}; take a checkpoint fine-tuned on this data set"
        )
    for name in found:
        if name not in expected:
            raise RequestError(f"checkpoint {where}: the network has no parameter for its {name}")
    for name, leaf in expected.items():
        if name not in found:
            raise RequestError(f"checkpoint {where}: nothing in it fills the parameter {name}")
        if found[name].shape != leaf.shape:
            raise RequestError(
                f"checkpoint {where}: {name} has the shape {found[name].shape}, "
                f"the network needs {leaf.shape}"
            )
    return unflatten_dict({name: np.asarray(found[name], np.float32) for name in expected}, sep="/")


def save(path: Path, params: Mapping[str, Any]) -> None:
    """Writes parameters in the native layout, at the top."""
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    with path.open("wb") as file:
        np.savez(file, **flat)  # type: ignore[arg-type]  # mypy takes it for allow_pickle


def to_native(flat: Flat, where: str) -> Flat:
    """Parameters under their native names, from either layout."""
    if any(name.startswith("opt/target/") for name in flat):  # next to an optimizer's state
        flat = {n.removeprefix("opt/target/"): a for n, a in flat.items() if n.startswith("opt/target/")}
    flat = {n.removeprefix("params/"): a for n, a in flat.items()}
    if not any(name.startswith("resnet/") for name in flat):
        return flat
    native: Flat = {}
    for name, array in flat.items():
        renamed, array = _from_legacy(name.removeprefix("resnet/"), array)
        if renamed is None or not name.startswith("resnet/"):
            raise RequestError(f"checkpoint {where}: {name} is not a name in the BiT layout")
        if renamed in native:
            raise RequestError(f"checkpoint {where}: {name} fills {renamed} a second time")
        native[renamed] = array
    return native


def _from_legacy(name: str, array: NDArray[Any]) -> tuple[str | None, NDArray[Any]]:
    if match := _LEGACY_UNIT.fullmatch(name):
        block, unit, letter = match.group(1, 2, 3)
        number = _NUMBER[letter]
        if norm := match["norm"]:
            return f"{block}/{unit}/gn{number}/{_NORM[norm]}", array.reshape(1, 1, 1, -1)
        layer = "conv_proj" if match["proj"] else f"conv{number}"
        return f"{block}/{unit}/{layer}/kernel", array
    if re.fullmatch(r"root_block/standardized_conv2d(_\d+)?/kernel", name):
        return "root_block/conv_root/kernel", array
    if match := re.fullmatch(r"group_norm/(gamma|beta)", name):
        return f"norm-pre-head/{_NORM[match[1]]}", array.reshape(1, 1, 1, -1)
    if match := re.fullmatch(r"head/conv2d/(kernel|bias)", name):
        return f"head/{match[1]}", array.reshape(array.shape[-2:] if match[1] == "kernel" else -1)
    return None, array


def _read(content: bytes, where: str) -> Flat:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RequestError(
            f"checkpoint {where}: not an .npz of plain arrays ({error}); fetch it again"
        ) from error
