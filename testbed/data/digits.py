"""scikit-learn's bundled digits: 1,797 real 8x8 images, with a fixed split.

1,020 training images (the number in Flowers-102), 377 validation images and 400 test images; each part
has the class shares of the whole set. Within a class, images are ordered by the SHA-256 of their
pixels: the split depends only on the images, not on any library's random numbers.
"""

import functools
import gzip
import hashlib
from importlib.metadata import distribution

import numpy as np
from numpy.typing import NDArray

from testbed.data.arrays import Data, Part

SIZES = (1020, 377, 400)  # training, validation, test
_SHA256 = "5319fbe8f367130cab400eae62f43db18f039bb44f389d2d14fff4adcbb94157"


@functools.cache
def load() -> Data:
    """The three parts: inputs [n, 8, 8, 1] float32 in [-1, 1], labels [n].

    Raises:
      ValueError: scikit-learn's images differ from those that the split was made for.
    """
    pixels, labels = _read()
    images = (pixels / 8 - 1).astype(np.float32)[..., None]
    parts = [Part(images[index], labels[index]) for index in split(pixels, labels)]
    digest = hashlib.sha256()
    for part in parts:
        assert part.labels is not None
        digest.update(part.inputs.tobytes() + part.labels.tobytes())
    if digest.hexdigest() != _SHA256:
        raise ValueError(
            f"scikit-learn's digits have SHA-256 {digest.hexdigest()}, not {_SHA256}: "
            "install a scikit-learn whose bundled digits are the original ones"
        )
    training, validation, test = parts
    return Data(training, validation, test, _SHA256)


def _read() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Reads what sklearn.datasets.load_digits reads, without the three seconds of its import."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    with gzip.open(str(path), "rt") as file:
        rows = np.loadtxt(file, np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int32)


def split(pixels: NDArray[np.uint8], labels: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Stratified indices into pixels [n, ...] and labels [n], one array for each of SIZES.

    Spreads every class evenly over a common order, and cuts that order at SIZES.
    """
    classes = np.unique(labels)
    place = np.empty(len(labels))
    for c in classes:
        members = np.flatnonzero(labels == c)
        order = np.argsort([hashlib.sha256(pixels[i].tobytes()).hexdigest() for i in members])
        # The offset breaks ties between classes of one size.
        place[members[order]] = (np.arange(len(members)) + (c + 1) / (len(classes) + 1)) / len(members)
    ordered = np.argsort(place, kind="stable")
    ends = np.cumsum(SIZES)
    return np.split(ordered, ends[:-1])
