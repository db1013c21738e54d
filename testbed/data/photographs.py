"""Lessons from other data, bundled: windows of scikit-learn's two sample photographs.

There are 1,020, the number of training images of the digits, in the same form: 8x8 grey values, where
each window's darkest pixel is -1 and its brightest 1, as in a digit.
"""

import functools
from importlib.metadata import distribution

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from testbed.data import crops
from testbed.data.arrays import Part

FILES = ("china.jpg", "flower.jpg")
COUNT, SIZE = 1020, 8
SIDES = (24, 192)  # of the windows, in pixels (log-uniform)


@functools.cache
def load() -> Part:
    """Inputs [1020, 8, 8, 1] in [-1, 1]; the labels are all 0, without meaning."""
    rng = np.random.Generator(np.random.Philox(key=2021))
    photographs = [_read(name) for name in FILES]
    windows = np.stack([_window(rng, photographs[i % len(photographs)]) for i in range(COUNT)])
    low, high = (f(windows, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    images = 2 * (windows - low) / np.maximum(high - low, 1) - 1
    return Part(images[..., None].astype(np.float32), np.zeros(COUNT, np.int32))


def _read(name: str) -> NDArray[np.uint8]:
    path = distribution("scikit-learn").locate_file(f"sklearn/datasets/images/{name}")
    with Image.open(str(path)) as image:
        return np.asarray(image.convert("RGB"))


def _window(rng: np.random.Generator, photograph: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A random square of a photograph, averaged down to SIZE x SIZE grey values."""
    side = int(np.exp(np.log(SIDES[0]) + np.log(SIDES[1] / SIDES[0]) * rng.random()))
    top, left = (int(rng.random() * (length - side + 1)) for length in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side]
    return crops.central_crop(square, SIZE, SIZE).mean(axis=-1)
