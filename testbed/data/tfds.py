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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from testbed.errors import RequestError, describe


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

    def __init__(self, records: Records, name: str, remedy: str = "build it again") -> None:
        self._records, self.name, self._remedy = records, name, remedy

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Labelled:
        with self._reading(index), self._image(index) as image:
            return Labelled(np.asarray(image.convert("RGB")), self.label(index))

    def label(self, index: int) -> int:
        """The label alone, without decoding."""
        with self._reading(index):
            return int(self._records[index]["label"])

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width, read from the image file's header."""
        with self._reading(index), self._image(index) as image:
            return image.height, image.width

    def _image(self, index: int) -> Pillow.Image:
        return Pillow.open(io.BytesIO(self._records[index]["image"]))

    @contextmanager
    def _reading(self, index: int) -> Iterator[None]:
        """Inside this context, whatever damage raises becomes a RequestError."""
        try:
            yield
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(
                f"data set {self.name}: image {index} is damaged ({describe(error)}); {self._remedy}"
            ) from error


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

    def remedy(self) -> str:
        """What to do where it is missing or damaged."""
        return f"build it with `{self.command()}` (once; it needs TensorFlow)"


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
        training=_records(lessons, other or stream, (other or stream).training),
        validation=_records(builder, stream, stream.validation),
        test=_records(builder, stream, stream.test),
        sha256=digest,
        classes=stream.classes,
    )


def _builder(stream: Stream, folder: Path) -> Any:
    path = _version(stream, folder)
    import tensorflow_datasets as tfds  # takes a second, which most commands can avoid

    with _refusing(f"data set {stream.dataset}: {path}/dataset_info.json cannot be read", stream):
        builder = tfds.builder_from_directory(str(path))
        files = [Path(file) for split in builder.info.splits.values() for file in split.filepaths]
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise RequestError(
            f"data set {stream.dataset}: {path} holds {builder.info.file_format.value}, "
            f"not array_record; {stream.remedy()}"
        )
    if missing := [file for file in files if not file.is_file()]:
        raise RequestError(f"data set {stream.dataset}: {missing[0]} is missing; {stream.remedy()}")
    return builder


def _version(stream: Stream, folder: Path) -> Path:
    """The newest version that was built to its end."""
    found = [path.parent for path in (folder / stream.dataset).glob("*/dataset_info.json")]
    whole = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if whole:
        return max(whole, key=lambda path: [int(number) for number in path.name.split(".")])
    begun = sorted(path for path in (folder / stream.dataset).glob("*") if path.is_dir())
    if begun:
        raise RequestError(
            f"data set {stream.dataset}: {begun[0]} was not built to its end; delete it, and "
            f"{stream.remedy()}"
        )
    raise RequestError(
        f"data set {stream.dataset}: not in {folder} (TFDS_DATA_DIR sets another folder); "
        f"{stream.remedy()}"
    )


@contextmanager
def _refusing(what: str, stream: Stream) -> Iterator[None]:
    """Inside this context, whatever damage raises becomes a RequestError."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{what} ({describe(error)}); {stream.remedy()}") from error


def _records(builder: Any, stream: Stream, split: str) -> Encoded:
    import tensorflow_datasets as tfds

    name = f"{builder.info.full_name} {split}"
    with _refusing(f"data set {name}: cannot be read", stream):
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if not len(records):
            raise RequestError(f"data set {name}: it has no images; {stream.remedy()}")
        found = Encoded(records, name, f"delete that version, and {stream.remedy()}")
    found.label(0)
    found.label(len(found) - 1)
    return found


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
