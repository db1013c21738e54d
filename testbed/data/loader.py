"""Batches for the device, prepared ahead of time on the host by Grain.

A training batch is a function of (data set, seed, step) alone: example p = step * batch + row is the
(p mod n)-th of the (p div n)-th shuffled epoch, and its crops use separate random numbers. So the
position of a stream is the step, and any number of worker processes, threads or hosts gives the same.
"""

import collections
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from testbed.data import crops
from testbed.data.tfds import Images
from testbed.errors import RequestError

Batch = Mapping[str, NDArray[Any]]
Rows = NDArray[np.int64]
Item = TypeVar("Item")

AHEAD = 2  # batches in transfer to the devices while one is used


class TrainingCrops:
    """Crops of training images, in the order of steps and of this host's rows of each batch.

    Item i is a dictionary of the crop `inputs`, the image's `labels` and `index`, and `second`, another
    crop of the same image, if requested.
    """

    def __init__(
        self, images: Images, seed: int, batch_size: int, rows: Rows, size: int, *, second: bool
    ) -> None:
        self._images, self._seed, self._size, self._second = images, seed, size, second
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return 2**60  # unlimited epochs

    def __getitem__(self, item: SupportsIndex) -> dict[str, Any]:
        step, row = divmod(int(item), len(self._rows))
        position = step * self._batch_size + int(self._rows[row])
        epoch, rank = divmod(position, len(self._images))
        index = int(epoch_order(self._seed, epoch, len(self._images))[rank])
        image, label = self._images[index]
        rng = _generator(self._seed, 1, position)
        example = {
            "inputs": crops.inception_crop(rng, image, self._size),
            "labels": np.int32(label),
            "index": np.int32(index),
        }
        if self._second:
            example["second"] = crops.inception_crop(rng, image, self._size)
        return example


class CentralViews:
    """The evaluation views, in the order of the data set."""

    def __init__(self, images: Images, shorter_side: int, size: int) -> None:
        self._images, self._shorter_side, self._size = images, shorter_side, size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: SupportsIndex) -> dict[str, Any]:
        image, label = self._images[int(item)]
        view = crops.central_crop(image, self._shorter_side, self._size)
        return {"inputs": view, "labels": np.int32(label)}


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int32]:
    """A permutation of n images."""
    return np.argsort(_generator(seed, 0, epoch).random(n), kind="stable").astype(np.int32)


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """A separate random generator for each epoch (purpose 0) and example (purpose 1) of a seed."""
    counter = np.array([0, 0, number, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def default_workers() -> int:
    """Number of worker processes: 0 on small machines, where threads suffice; else one per two cores."""
    return 0 if cores() <= 4 else min(cores() // 2, 64)


def workers() -> int:
    """Number of worker processes: $FUNMATCH_WORKERS, or a default from the machine's size.

    Raises:
      RequestError: $FUNMATCH_WORKERS is not a number.
    """
    given = os.environ.get("FUNMATCH_WORKERS") or str(default_workers())
    if not given.isdecimal():
        raise RequestError(f"FUNMATCH_WORKERS={given}: must be a whole number, 0 or more")
    return int(given)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    Images of half a megabyte are allocated and freed all the time. Getting fresh pages for each takes a
    large part of the time of decoding and cropping it (`throughput.py --data` prints both).
    """
    if sys.platform == "linux":
        trim_threshold, top_pad, mmap_threshold, gib = -1, -2, -3, 2**30
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            for parameter, value in ((mmap_threshold, gib), (trim_threshold, gib), (top_pad, 2**26)):
                libc.mallopt(parameter, value)


class _InWorkers:
    """A source that sets up the worker process it is sent to, and ends that worker if its parent dies.

    Otherwise, Grain's workers would keep running, and hold their memory, if this process was killed.
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
            # An interrupt reaches the workers too, but only the trial handles it.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            keep_freed_memory()
            threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def batches(source: Any, batch_size: int, *, start: int = 0, workers: int = 0) -> Iterator[Batch]:
    """Batches of a random-access source, from batch `start` on, prepared ahead by threads or processes.

    Args:
      source: item -> dictionary of arrays.
      batch_size: items per batch; the last batch may be smaller.
      start: number of the first batch.
      workers: number of processes; 0: threads of this process.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, which are not set here
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


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, with AHEAD of them in transfer to the devices or being computed there."""
    waiting: collections.deque[Item] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting
