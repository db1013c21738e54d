"""Reads data sets that do not fit the device: tensorflow-datasets, stored as array_record.

This needs no TensorFlow. `loader` makes batches of these data.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image as Pillow

from testbed import paths
from testbed.data import crops
from testbed.data.arrays import InputSpec
from testbed.data.disk_cache import stored
from testbed.errors import RequestError


class Labelled(NamedTuple):
    """One image."""

    image: crops.Image  # [h, w, 3]
    label: int


class Images(Protocol):
    """A part of a data set, by index; it can be sent to other processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Labelled: ...


class Records(Protocol):
    """Dictionaries of an encoded `image` and its `label`, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Encoded:
    """The images of a TFDS split, decoded at every access."""

    def __init__(self, records: Records, name: str) -> None:
        self._records, self.name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Labelled:
        record = self._records[index]
        try:
            with Pillow.open(io.BytesIO(record["image"])) as image:
                return Labelled(np.asarray(image.convert("RGB")), int(record["label"]))
        except OSError as error:
            raise RequestError(
                f"data set {self.name}: image {index} cannot be decoded ({error}); build the set again"
            ) from error

    def label(self, index: int) -> int:
        """The label alone, without decoding."""
        return int(self._records[index]["label"])

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width, read from the image file's header."""
        with Pillow.open(io.BytesIO(self._records[index]["image"])) as image:
            return image.height, image.width


class Decoded:
    """The same images, decoded once into one memory-mapped file."""

    def __init__(self, pixels: Path, index: Path) -> None:
        self._paths = (pixels, index)

    def __len__(self) -> int:
        return len(self._maps[1])

    def __getitem__(self, index: int) -> Labelled:
        pixels, rows = self._maps
        begin, height, width, label = (int(value) for value in rows[index])
        return Labelled(pixels[begin : begin + 3 * height * width].reshape(height, width, 3), label)

    @functools.cached_property
    def _maps(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        pixels, index = (np.load(path, mmap_mode="r") for path in self._paths)
        return pixels, index

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths}  # a memory map would be sent as a copy


class Opened(NamedTuple):
    """An opened data set."""

    training: Encoded
    validation: Encoded
    test: Encoded
    sha256: str  # of TFDS's description of it, and of the splits and sizes chosen
    classes: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """A TFDS data set of labelled images, stored as array_record, and the views cut from it.

    Attributes:
      dataset: TFDS name, with its config if it has several.
      training: split, in TFDS's notation.
      validation: split.
      test: split.
      classes: number of classes.
      size: side of crops and central views, in pixels.
      shorter_side: of an image before its central view is cut, in pixels.
      lessons_from: another data set, whose training split is used for lessons instead.
    """

    dataset: str
    training: str
    validation: str
    test: str
    classes: int
    size: int
    shorter_side: int
    lessons_from: "Stream | None" = None

    @property
    def inputs(self) -> InputSpec:
        """The shape and dtype of a view, as the host cuts it."""
        return InputSpec((self.size, self.size, 3), np.uint8)

    def __call__(self) -> Opened:
        """Opens the data set.

        Raises:
          RequestError: it is missing, or not array_record; the message has the command that builds it.
        """
        return _open(self, paths.data_sets())

    def command(self) -> str:
        """The command that builds the data set."""
        return f"tfds build {self.dataset} --file_format=array_record --data_dir={paths.data_sets()}"


@functools.cache
def _open(stream: Stream, folder: Path) -> Opened:
    other = stream.lessons_from
    builder, lessons = _builder(stream, folder), _builder(other or stream, folder)
    facts = [
        dataclasses.asdict(stream),
        *(
            {n: [s.shard_lengths, s.num_bytes] for n, s in b.info.splits.items()}
            for b in (builder, lessons)
        ),
        *(b.info.full_name for b in (builder, lessons)),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Opened(
        training=_records(lessons, (other or stream).training),
        validation=_records(builder, stream.validation),
        test=_records(builder, stream.test),
        sha256=digest,
        classes=stream.classes,
    )


def _builder(stream: Stream, folder: Path) -> Any:
    found = sorted((folder / stream.dataset).glob("*/dataset_info.json"), key=_version)
    remedy = f"build it with `{stream.command()}` (once; it needs TensorFlow)"
    if not found:
        raise RequestError(
            f"data set {stream.dataset}: not in {folder} (TFDS_DATA_DIR sets another folder); {remedy}"
        )
    import tensorflow_datasets as tfds  # takes a second, which most commands can avoid

    try:
        builder = tfds.builder_from_directory(str(found[-1].parent))
    except Exception as error:  # a damaged description can raise anything
        message = " ".join(str(error).split())[:200]
        raise RequestError(
            f"data set {stream.dataset}: {found[-1]} cannot be read ({message}); {remedy}"
        ) from error
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise RequestError(
            f"data set {stream.dataset}: {found[-1].parent} holds {builder.info.file_format.value}, "
            f"not array_record; {remedy}"
        )
    return builder


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.parent.name))


def _records(builder: Any, split: str) -> Encoded:
    import tensorflow_datasets as tfds

    name = f"{builder.info.full_name} {split}"
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise RequestError(f"data set {name}: cannot be read ({message}); build it again") from error
    return Encoded(records, name)


def in_memory(images: Encoded, sha256: str) -> Images:
    """The images decoded once, if they take at most a quarter of the available memory."""
    limit = _available_memory() // 4
    step = max(1, len(images) // 16)
    sample = [3 * h * w for h, w in map(images.shape, range(0, len(images), step))]
    if np.mean(sample) * len(images) > limit:
        return images

    def fill_index(rows: NDArray[Any]) -> None:
        with ThreadPoolExecutor() as pool:
            rows[:, 1:3] = list(pool.map(images.shape, range(len(images))))
        ends = np.cumsum(3 * rows[:, 1] * rows[:, 2])
        rows[:, 0] = ends - 3 * rows[:, 1] * rows[:, 2]
        rows[:, 3] = [images.label(i) for i in range(len(images))]

    def fill_pixels(pixels: NDArray[Any]) -> None:
        def decode(i: int) -> None:
            begin = rows[i, 0]
            flat = images[i].image.reshape(-1)
            pixels[begin : begin + len(flat)] = flat

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(images))))

    key = {"images": images.name, "data_sha256": sha256, **decoding()}
    index = stored("decoded-index", key, (len(images), 4), np.int64, fill_index)
    rows = np.load(index)
    total = int(rows[-1, 0] + 3 * rows[-1, 1] * rows[-1, 2])
    if total > limit:
        return images
    return Decoded(stored("decoded", key, (total,), np.uint8, fill_pixels), index)


def decoding() -> dict[str, Any]:
    """What pixels depend on besides the data: decoders differ by a grey level in some pixels."""
    return {"pillow": PIL.__version__, "crops": crops.VERSION}


def _available_memory() -> int:
    """Bytes of available memory; half of all memory if the system does not report it."""
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", text)[0])
    except (OSError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
