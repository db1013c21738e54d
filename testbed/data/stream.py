"""Data sets that do not fit the device: tensorflow-datasets, fed by Grain, without TensorFlow.

A training batch is a function of (data set, seed, step) alone: example p = step * batch + row is the
(p mod n)-th of the (p div n)-th shuffled epoch, and its crops have random numbers of their own. So the
position of a stream is the step, and any number of worker processes, threads or hosts sees the same.
"""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsIndex

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image as Pillow

from testbed import places
from testbed.data import crops
from testbed.data.stored import stored
from testbed.errors import RequestError

Batch = Mapping[str, NDArray[Any]]
Rows = NDArray[np.int64]


class Labelled(NamedTuple):
    """One image."""

    image: crops.Image  # [h, w, 3]
    label: int


class Images(Protocol):
    """A part of a data set, by index; can be sent to other processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Labelled: ...


class Records(Protocol):
    """Dictionaries of an encoded `image` and its `label`, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Encoded:
    """The images of a TFDS split, decoded anew each time."""

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
        """Height and width, read from the file's head."""
        with Pillow.open(io.BytesIO(self._records[index]["image"])) as image:
            return image.height, image.width


class Decoded:
    """The same, decoded once for all into one memory-mapped file."""

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
    """A data set that is there."""

    training: Encoded
    validation: Encoded
    test: Encoded
    sha256: str  # of what TFDS tells of it, and of the splits and sizes chosen
    classes: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """A TFDS data set of labelled images, stored as array_record, and the views that are cut from it.

    Attributes:
      dataset: TFDS name, with its config where it has several.
      training: split, in TFDS's notation.
      validation: split.
      test: split.
      classes: how many.
      size: of crops and central views.
      shorter_side: of an image before its central view is cut.
      lessons_from: another data set, whose training split is taught from instead.
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
    def image_shape(self) -> tuple[int, int, int]:
        """Of a view."""
        return self.size, self.size, 3

    def __call__(self) -> Opened:
        """Opens the data set.

        Raises:
          RequestError: it is not there, or not as array_record; the message says how to make it.
        """
        return _open(self, places.data_sets())

    def command(self) -> str:
        """What builds the data set."""
        return f"tfds build {self.dataset} --file_format=array_record --data_dir={places.data_sets()}"


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
            f"data set {stream.dataset}: not in {folder} (TFDS_DATA_DIR names another folder); {remedy}"
        )
    import tensorflow_datasets as tfds  # a second, which most commands need not wait for

    try:
        builder = tfds.builder_from_directory(str(found[-1].parent))
    except Exception as error:  # whatever a damaged description makes it raise
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
    """The images decoded once for all, where they take at most a quarter of the memory there is."""
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
    """What pixels depend on beside the data: decoders differ by a grey level here and there."""
    return {"pillow": PIL.__version__, "crops": crops.VERSION}


def _available_memory() -> int:
    """Bytes; where the system does not say, half of all."""
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", text)[0])
    except (OSError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class TrainingCrops:
    """Crops of training images, in the order of steps and of this host's rows of each batch.

    Item i is a dictionary of the crop `images`, the image's `labels` and `index`, and `second`, another
    crop of the same image, where that is asked for.
    """

    def __init__(
        self, images: Images, seed: int, batch_size: int, rows: Rows, size: int, *, second: bool
    ) -> None:
        self._images, self._seed, self._size, self._second = images, seed, size, second
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return 2**60  # epochs without end

    def __getitem__(self, item: SupportsIndex) -> dict[str, Any]:
        step, row = divmod(int(item), len(self._rows))
        position = step * self._batch_size + int(self._rows[row])
        epoch, rank = divmod(position, len(self._images))
        index = int(epoch_order(self._seed, epoch, len(self._images))[rank])
        image, label = self._images[index]
        rng = _generator(self._seed, 1, position)
        example = {
            "images": crops.inception_crop(rng, image, self._size),
            "labels": np.int32(label),
            "index": np.int32(index),
        }
        if self._second:
            example["second"] = crops.inception_crop(rng, image, self._size)
        return example


class CentralViews:
    """The evaluation's views, in the order of the data set."""

    def __init__(self, images: Images, shorter_side: int, size: int) -> None:
        self._images, self._shorter_side, self._size = images, shorter_side, size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: SupportsIndex) -> dict[str, Any]:
        image, label = self._images[int(item)]
        view = crops.central_crop(image, self._shorter_side, self._size)
        return {"images": view, "labels": np.int32(label)}


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int32]:
    """A permutation of n images."""
    return np.argsort(_generator(seed, 0, epoch).random(n), kind="stable").astype(np.int32)


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Random numbers of their own for each epoch (purpose 0) and example (purpose 1) of a seed."""
    counter = np.array([0, 0, number, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def default_workers() -> int:
    """Worker processes: none on small machines, whose threads do; else one for every second core."""
    return 0 if cores() <= 4 else min(cores() // 2, 64)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed instead of giving it back to the system.

    Images of half a megabyte come and go, and to get fresh pages for each takes a good part of the time
    of decoding and cropping them (`throughput.py --data` prints both).
    """
    if sys.platform == "linux":
        trim_threshold, top_pad, mmap_threshold, gib = -1, -2, -3, 2**30
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            for parameter, value in ((mmap_threshold, gib), (trim_threshold, gib), (top_pad, 2**26)):
                libc.mallopt(parameter, value)


class _InWorkers:
    """A source that prepares the process that it is sent to, and ends it when its sender is gone.

    Grain's workers would live on for ever, and keep their memory, if this process was killed.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, item: SupportsIndex) -> Any:
        return self._source[item]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None:
            # An interrupt reaches them too, and is for the trial to hear.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            keep_freed_memory()
            threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def batches(source: Any, batch_size: int, *, start: int = 0, workers: int = 0) -> Iterator[Batch]:
    """Batches of a random-access source, from batch `start` on, made ahead by threads or processes.

    Args:
      source: item -> dictionary of arrays.
      batch_size: items to a batch; the last may be smaller.
      start: number of the first batch.
      workers: processes; with 0, threads of this one.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, which nobody here sets
    keep_freed_memory()
    dataset = grain.MapDataset.source(_InWorkers(source))[start * batch_size :].batch(batch_size)
    threads = 1 if workers else cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    ahead = dataset.to_iter_dataset(options)
    if workers:
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return iter(ahead)
