"""Shipped teachers: weights as .npz beside a card (.json) with checksum, recipe and accuracy.

`benchmarks/make_teacher.py` makes them. Loading never unpickles.
"""

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from testbed.errors import RequestError
from testbed.models.convolution import ConvNet

FOLDER = Path(__file__).parent

NETWORKS: Mapping[str, nn.Module] = MappingProxyType(
    {
        "digits-a": ConvNet(features=(32, 64, 64), classes=10),
        "digits-b": ConvNet(features=(32, 64, 64), classes=10),
    }
)


class Teacher(NamedTuple):
    """A fixed network."""

    name: str
    network: nn.Module
    params: dict[str, Any]
    sha256: str  # of the .npz file
    card: Mapping[str, Any]  # recipe, parameters, test_accuracy, ...


def save(name: str, params: dict[str, Any], card: dict[str, Any], folder: Path = FOLDER) -> Teacher:
    """Writes `<name>.npz` and its card; the card gets the checksum and the parameter count."""
    flat = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    buffer = io.BytesIO()
    np.savez(buffer, **flat)  # type: ignore[arg-type]  # taken for allow_pickle
    content = buffer.getvalue()
    card = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": sum(leaf.size for leaf in flat.values()),
        **card,
    }
    (folder / f"{name}.npz").write_bytes(content)
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return load(name, folder)


@functools.cache
def load(name: str, folder: Path = FOLDER) -> Teacher:
    """The shipped teacher `name`.

    Raises:
      RequestError: the file is missing, or is not the one that its card describes, or does not fill
        the network.
    """
    path = folder / f"{name}.npz"
    remedy = "restore it, for instance with `git checkout`"
    try:
        card = json.loads((folder / f"{name}.json").read_text())
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"teacher {name}: cannot be read ({error}); {remedy}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != card["sha256"]:
        raise RequestError(
            f"teacher {name}: {path} has SHA-256 {sha256[:16]}…, its card says "
            f"{card['sha256'][:16]}…: the file is damaged; {remedy}"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        params = unflatten_dict({key: arrays[key] for key in arrays.files}, sep="/")
    network = NETWORKS[name]
    images = jax.ShapeDtypeStruct((1, *card["image_shape"]), np.float32)
    expected = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise RequestError(f"teacher {name}: the weights in {path} do not fit {network}; {remedy}")
    return Teacher(name, network, params, sha256, MappingProxyType(card))
