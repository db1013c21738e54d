"""Teachers by name: fixed networks, and where their weights come from.

Shipped ones lie beside this file: weights as .npz, and a card (.json) with checksum, recipe and
accuracy; `benchmarks/make_teacher.py` makes them. Public ones are looked for in
`places.checkpoints()`; nobody publishes their checksums, so the record says what was used. Loading
never unpickles.
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
from flax.traverse_util import flatten_dict

from testbed import places
from testbed.errors import RequestError
from testbed.models import public
from testbed.models.bit import bit
from testbed.models.convolution import ConvNet

FOLDER = Path(__file__).parent
RELEASE = "https://storage.googleapis.com/bit_models/distill"


class Public(NamedTuple):
    """Weights that others published."""

    file: str  # in `places.checkpoints()`
    address: str


class Entry(NamedTuple):
    """A network, what images it takes, and who published its weights; None for shipped ones."""

    network: nn.Module
    image_shape: tuple[int, int, int]
    public: Public | None = None


def _released(file: str, classes: int, size: int) -> Entry:
    """R152x2 fine-tuned by the paper's authors (big_vision, `configs/proj/distill/common.py`)."""
    network = bit("R152x2", classes)
    return Entry(network, (size, size, 3), Public(file, f"{RELEASE}/{file}"))


TEACHERS: Mapping[str, Entry] = MappingProxyType(
    {
        "digits-a": Entry(ConvNet(features=(32, 64, 64), classes=10), (8, 8, 1)),
        "digits-b": Entry(ConvNet(features=(32, 64, 64), classes=10), (8, 8, 1)),
        "R152x2-flowers": _released("R152x2_T_flowers128.npz", 102, 128),
        "R152x2-pets": _released("R152x2_T_pet128.npz", 37, 128),
        "R152x2-food": _released("R152x2_T_food128.npz", 101, 128),
        "R152x2-sun": _released("R152x2_T_sun128.npz", 397, 128),
        "R152x2-imagenet-224": _released("R152x2_T_224.npz", 1000, 224),
        "R152x2-imagenet-384": _released("R152x2_T_384.npz", 1000, 384),
    }
)


class Teacher(NamedTuple):
    """A fixed network with its weights."""

    name: str
    network: nn.Module
    params: dict[str, Any]
    sha256: str  # of the .npz file
    card: Mapping[str, Any]  # parameters; of shipped ones also recipe, test_accuracy, ...


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
def load(name: str, folder: Path | None = None) -> Teacher:
    """The teacher `name`, from `folder` or else from where it belongs.

    Raises:
      RequestError: the file is missing, or is not the one that its card describes, or does not fill
        the network.
    """
    entry = TEACHERS[name]
    if entry.public:
        return _load_public(name, entry, entry.public, folder or places.checkpoints())
    path = (folder or FOLDER) / f"{name}.npz"
    remedy = "restore it, for instance with `git checkout`"
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"teacher {name}: cannot be read ({error}); {remedy}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != card["sha256"]:
        raise RequestError(
            f"teacher {name}: {path} has SHA-256 {sha256[:16]}…, its card says "
            f"{card['sha256'][:16]}…: the file is damaged; {remedy}"
        )
    params = public.fill(content, f"{path} of teacher {name}", shapes(entry.network, entry.image_shape))
    return Teacher(name, entry.network, params, sha256, MappingProxyType(card))


def _load_public(name: str, entry: Entry, source: Public, folder: Path) -> Teacher:
    path = folder / source.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"teacher {name}: no {source.file} in {folder} (FUNMATCH_CHECKPOINTS names another folder); "
            f"fetch it from {source.address}"
        ) from error
    params = public.fill(content, f"{path} of teacher {name}", shapes(entry.network, entry.image_shape))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    card = {"parameters": sum(sizes), "test_accuracy": None, "address": source.address}
    return Teacher(
        name, entry.network, params, hashlib.sha256(content).hexdigest(), MappingProxyType(card)
    )


def shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The shapes and dtypes of a network's parameters."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)["params"]
