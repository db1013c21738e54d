"""Crops on the host, image by image: uint8 [h, w, 3] -> uint8 [size, size, 3].

The paper's preprocessing (big_vision `pp/ops_image.py`), in numpy: training images by an "inception
crop" resized bilinearly, evaluation images by an area average of their shorter side, then the centre.
Results are truncated to whole grey levels, not rounded, as there.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

VERSION = 1  # to be raised with any change of the pixels computed here
AREA, ASPECT = (0.05, 1.0), (0.75, 1.33)
ATTEMPTS = 100


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def inception_crop(rng: np.random.Generator, image: Image, size: int) -> Image:
    """A random window of the image, resized to size x size."""
    return resize(image, random_window(rng, *image.shape[:2]), size)


def random_window(rng: np.random.Generator, height: int, width: int) -> Window:
    """A window by TensorFlow's rule (`sample_distorted_bounding_box`), not torchvision's.

    The aspect (width / height) is uniform, not log-uniform; the window's height is uniform over whole
    numbers from that of the least area to the largest that fits, so small areas are likelier; offsets
    are uniform, but the last one is never drawn. After 100 failures the window is the whole image.
    """
    for _ in range(ATTEMPTS):
        aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * rng.random()
        window = _window(rng, height, width, aspect)
        if window:
            return window
    return Window(0, 0, height, width)


def _window(rng: np.random.Generator, height: int, width: int, aspect: float) -> Window | None:
    least, most = (share * height * width for share in AREA)
    low, high = (round(math.sqrt(area / aspect)) for area in (least, most))
    if round(high * aspect) > width:
        # The largest whose rounded width fits.
        high = int((width + 0.5 - 1e-7) / aspect)
        high -= round(high * aspect) > width
    high = min(high, height)
    h = min(low, high)
    h += _below(rng, high - h + 1)
    if h * round(h * aspect) < least:  # too small after rounding
        h += 1
    w = round(h * aspect)
    if not (least <= h * w <= most and 0 < w <= width and 0 < h <= height):
        return None
    top = _below(rng, height - h)
    left = _below(rng, width - w)
    return Window(top, left, h, w)


def _below(rng: np.random.Generator, n: int) -> int:
    """A whole number from 0 to n - 1; 0 where n is 0."""
    return int(rng.random() * n)


def resize(image: Image, window: Window, size: int) -> Image:
    """Bilinear resize at half-pixel centres, without antialiasing at any scale; truncated."""
    top, bottom, down = _neighbours(window.height, size)
    left, right, across = _neighbours(window.width, size)
    columns = (window.left + left, window.left + right)
    # Rows first: each gather then reads whole rows. a + (b - a) * f keeps flat areas exact.
    upper, lower = image[window.top + top], image[window.top + bottom]
    corners = [np.take(r, c, axis=1).astype(np.float32) for r in (upper, lower) for c in columns]
    f = across[None, :, None]
    above = corners[0] + (corners[1] - corners[0]) * f
    below = corners[2] + (corners[3] - corners[2]) * f
    return (above + (below - above) * down[:, None, None]).astype(np.uint8)


def _neighbours(length: int, size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """For each of `size` new pixels: the two old ones beside its centre, and the second's weight."""
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(
        length / size
    ) - np.float32(0.5)
    floor = np.floor(centre)
    first = floor.astype(np.int64)
    return np.clip(first, 0, length - 1), np.clip(first + 1, 0, length - 1), centre - floor


def central_crop(image: Image, shorter_side: int, size: int) -> Image:
    """The evaluation view: shorter side averaged to `shorter_side`, then the middle size x size."""
    height, width = image.shape[:2]
    factor = np.float32(shorter_side) / np.float32(min(height, width))
    rows, columns = (round(float(np.float32(side) * factor)) for side in (height, width))
    top, left = (rows - size) // 2, (columns - size) // 2
    down = _averages(height, rows)[top : top + size]
    across = _averages(width, columns)[left : left + size]
    columns_first = np.tensordot(image, across, axes=([1], [1]))  # [h, c, size]
    both = np.tensordot(down, columns_first, axes=([1], [0]))  # [size, c, size]
    # Sums of weights are 1 to rounding: without the nudge, flat areas would lose a grey level.
    return (both.transpose(0, 2, 1) + 1e-6).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _averages(length: int, size: int) -> NDArray[np.float64]:
    """Weights [size, length]: each row averages the old pixels under a new one, by their overlap."""
    edges = np.arange(size + 1) * (length / size)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(length)[None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return overlap / (length / size)
