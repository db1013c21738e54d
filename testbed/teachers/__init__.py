"""Teachers: fixed networks with weights, and functions that are known exactly.

Shipped networks are next to this file: weights as .npz, and a card (.json) with checksum, recipe and
accuracy; `benchmarks/make_teacher.py` makes them. Public networks are read from `paths.checkpoints()`;
their checksums are not published, so the record has those of the files that were used. Loading never
unpickles.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from testbed import paths
from testbed.data.arrays import InputSpec
from testbed.errors import RequestError
from testbed.identity import source_sha256
from testbed.models import public
from testbed.models.bit import bit
from testbed.models.convolution import ConvNet
from testbed.models.network import apply, has_precision, in_precision, parts_of

FOLDER = Path(__file__).parent
RELEASE = "https://storage.googleapis.com/bit_models/distill"


class Public(NamedTuple):
    """Weights published by others."""

    file: str  # in `paths.checkpoints()`
    address: str


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkTeacher:
    """A network, and where its weights come from.

    Attributes:
      name: as in records.
      network: inputs [b, ...] -> logits.
      inputs: shape and dtype of its input.
      public: its published weights. Without `public` and `path`, its weights are shipped.
      path: of a user's own .npz file, as `testbed.models.public.save` writes it.
    """

    name: str
    network: nn.Module
    inputs: InputSpec
    public: Public | None = None
    path: Path | None = None

    def logits(self, params: Any, inputs: Array, precision: str) -> Array:
        """Its logits [b, ...], computed in `precision` if the network supports it."""
        return apply(in_precision(self.network, precision), params, inputs)

    def precision(self, wanted: str) -> str:
        """The precision in which it computes if `wanted` is requested."""
        return wanted if has_precision(self.network) else "float32"

    def code_sha256(self) -> str:
        """SHA-256 of its name, network and inputs: of all but its weights."""
        parts = (self.name, parts_of(self.network), self.inputs.shape, np.dtype(self.inputs.dtype).name)
        return source_sha256(parts, f"teacher {self.name}")


@dataclasses.dataclass(frozen=True, eq=False)
class ExactTeacher:
    """A function that is known exactly, such as the conditional distribution of a known source.

    Attributes:
      name: as in records.
      function: its arrays, inputs [b, ...] -> logits. Pure.
      arrays: () -> the arrays (a pytree) that it needs, passed to programs as arguments.
    """

    name: str
    function: Callable[[Any, Array], Array]
    arrays: Callable[[], Any] = tuple

    def logits(self, params: Any, inputs: Array, precision: str) -> Array:
        """Its logits [b, ...]."""
        del precision
        return self.function(params, inputs)

    def precision(self, wanted: str) -> str:
        """The precision in which it computes."""
        del wanted
        return "float32"

    def code_sha256(self) -> str:
        """SHA-256 of its name and function: of all but its arrays."""
        return source_sha256((self.name, self.function), f"teacher {self.name}")


def _shipped(name: str) -> NetworkTeacher:
    return NetworkTeacher(name, ConvNet(features=(32, 64, 64), classes=10), InputSpec((8, 8, 1)))


def _released(name: str, file: str, classes: int, size: int) -> NetworkTeacher:
    """R152x2 fine-tuned by the paper's authors (big_vision, `configs/proj/distill/common.py`)."""
    source = Public(file, f"{RELEASE}/{file}")
    return NetworkTeacher(name, bit("R152x2", classes), InputSpec((size, size, 3)), source)


TEACHERS: Mapping[str, NetworkTeacher] = MappingProxyType(
    {
        teacher.name: teacher
        for teacher in (
            _shipped("digits-a"),
            _shipped("digits-b"),
            _released("R152x2-flowers", "R152x2_T_flowers128.npz", 102, 128),
            _released("R152x2-pets", "R152x2_T_pet128.npz", 37, 128),
            _released("R152x2-food", "R152x2_T_food128.npz", 101, 128),
            _released("R152x2-sun", "R152x2_T_sun128.npz", 397, 128),
            _released("R152x2-imagenet-224", "R152x2_T_224.npz", 1000, 224),
            _released("R152x2-imagenet-384", "R152x2_T_384.npz", 1000, 384),
        )
    }
)


class Weights(NamedTuple):
    """The weights of a teacher, with their origin."""

    params: Any  # nested dictionaries of arrays; for an exact teacher, its arrays
    sha256: str  # of the .npz file, or of the arrays
    card: Mapping[str, Any]  # parameters; for shipped ones also recipe, test_accuracy, ...


def save(
    teacher: NetworkTeacher, params: dict[str, Any], card: dict[str, Any], folder: Path = FOLDER
) -> Weights:
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
    (folder / f"{teacher.name}.npz").write_bytes(content)
    (folder / f"{teacher.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return load(teacher, folder)


@functools.cache
def load(teacher: NetworkTeacher | ExactTeacher, folder: Path | None = None) -> Weights:
    """A teacher's weights, from `folder` or else from their usual place.

    Raises:
      RequestError: the file is missing, does not match its card, or does not fill the network.
    """
    if isinstance(teacher, ExactTeacher):
        arrays = teacher.arrays()
        return Weights(arrays, arrays_sha256(arrays), _card(arrays))
    if teacher.path:
        remedy = "testbed.models.public.save writes such a file"
        return _load_file(teacher, teacher.path, remedy)
    if teacher.public:
        path = (folder or paths.checkpoints()) / teacher.public.file
        remedy = (
            f"FUNMATCH_CHECKPOINTS sets another folder than {path.parent}; fetch it from "
            f"{teacher.public.address}"
        )
        return _load_file(teacher, path, remedy)
    if teacher.name not in TEACHERS or (folder is None and teacher is not TEACHERS[teacher.name]):
        raise RequestError(f"teacher {teacher.name}: it has no weights; give it path=..., of an .npz")
    return _load_shipped(teacher, (folder or FOLDER) / f"{teacher.name}.npz")


def _load_shipped(teacher: NetworkTeacher, path: Path) -> Weights:
    remedy = "restore it, for instance with `git checkout`"
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"teacher {teacher.name}: cannot be read ({error}); {remedy}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != card["sha256"]:
        raise RequestError(
            f"teacher {teacher.name}: {path} has SHA-256 {sha256[:16]}…, its card says "
            f"{card['sha256'][:16]}…: the file is damaged; {remedy}"
        )
    return Weights(_fill(teacher, path, content), sha256, MappingProxyType(card))


def _load_file(teacher: NetworkTeacher, path: Path, remedy: str) -> Weights:
    """Weights from a file without a card: the record has the checksum of the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"teacher {teacher.name}: no {path.name} in {path.parent}; {remedy}"
        ) from error
    params = _fill(teacher, path, content)
    address = {"address": teacher.public.address} if teacher.public else {}
    card = MappingProxyType({**_card(params), **address})
    return Weights(params, hashlib.sha256(content).hexdigest(), card)


def _fill(teacher: NetworkTeacher, path: Path, content: bytes) -> dict[str, Any]:
    expected = shapes(teacher.network, teacher.inputs)
    return public.fill(content, f"{path} of teacher {teacher.name}", expected)


def _card(arrays: Any) -> Mapping[str, Any]:
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(arrays)]
    return MappingProxyType({"parameters": sum(sizes), "test_accuracy": None})


def arrays_sha256(arrays: Any) -> str:
    """SHA-256 of a pytree's structure and of the bytes of its arrays."""
    digest = hashlib.sha256(str(jax.tree.structure(arrays)).encode())
    for leaf in map(np.asarray, jax.tree.leaves(arrays)):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode() + leaf.tobytes())
    return digest.hexdigest()


def shapes(network: nn.Module, inputs: InputSpec) -> dict[str, Any]:
    """The shapes and dtypes of a network's parameters."""
    return jax.eval_shape(network.init, jax.random.key(0), inputs.batch(1))["params"]
