"""Views of images: random affine crops, flips and mixup, as pure functions of a key.

Images are arrays [batch, height, width, channels]; views are float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, random


@dataclasses.dataclass(frozen=True)
class AffineCrop:
    """A random affine crop: a rotated, zoomed, stretched and shifted window, resampled bilinearly.

    Attributes:
      rotation: largest rotation, in degrees, either way (uniform).
      zoom: smallest and largest side of the window, as a share of the image's (log-uniform).
      stretch: largest ratio of width to height of the window, either way (log-uniform).
      shift: largest displacement of the window's centre, as a share of the side (uniform, per axis).
      fill: the value of pixels outside the image.
    """

    rotation: float
    zoom: tuple[float, float]
    stretch: float
    shift: float
    fill: float

    def __call__(self, key: Array, images: Array) -> Array:
        """One independent crop per image, of the image's own size: [b, h, w, c] -> [b, h, w, c]."""
        matrix, centre = self.windows(key, images.shape[0])
        return _resample(images, matrix, centre, self.fill)

    def windows(self, key: Array, batch: int) -> tuple[Array, Array]:
        """The windows of `batch` crops: matrices [b, 2, 2] and centres [b, 2].

        In coordinates (y, x) where the image spans [-1, 1]^2; a window maps [-1, 1]^2 into it.
        """
        draw = random.uniform(key, (5, batch), minval=-1.0, maxval=1.0)
        angle = draw[0] * jnp.deg2rad(self.rotation)
        low, high = jnp.log(self.zoom[0]), jnp.log(self.zoom[1])
        zoom = jnp.exp((low + high) / 2 + draw[1] * (high - low) / 2)
        stretch = jnp.exp(draw[2] * jnp.log(self.stretch) / 2)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows = jnp.stack([cos * zoom / stretch, sin * zoom * stretch], axis=-1)
        columns = jnp.stack([-sin * zoom / stretch, cos * zoom * stretch], axis=-1)
        centre = 2 * self.shift * draw[3:5].T
        return jnp.stack([rows, columns], axis=-2), centre


def _resample(images: Array, matrix: Array, centre: Array, fill: float) -> Array:
    """Samples each image [h, w, c] on its affine window, bilinearly, at half-pixel centres."""
    _, height, width, _ = images.shape
    y = (jnp.arange(height) + 0.5) * 2 / height - 1
    x = (jnp.arange(width) + 0.5) * 2 / width - 1
    grid = jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1)  # [h, w, 2]
    # Sums, not a matrix product: products may be computed in reduced precision on accelerators.
    points = jnp.sum(matrix[:, None, None] * grid[None, :, :, None, :], axis=-1)
    points = points + centre[:, None, None]
    rows = (points[..., 0] + 1) * height / 2 - 0.5
    columns = (points[..., 1] + 1) * width / 2 - 0.5

    def sample(channel: Array, rows: Array, columns: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(
            channel, [rows, columns], order=1, mode="constant", cval=fill
        )

    over_channels = jax.vmap(sample, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(over_channels)(images, rows, columns)


@dataclasses.dataclass(frozen=True)
class Flip:
    """The device's part of the paper's crops: mirrors the crops from the host with probability 1/2."""

    def __call__(self, key: Array, images: Array) -> Array:
        """uint8 [b, h, w, c] -> float32 in [-1, 1]."""
        mirrored = random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return value_range(jnp.where(mirrored, images[:, :, ::-1], images))


def value_range(images: Array) -> Array:
    """Grey levels from 0 to 255 -> float32 from -1 to 1."""
    return images.astype(jnp.float32) / 255 * 2 - 1


def mixup(key: Array, images: Array) -> Array:
    """Mixes image i with image i - 1: a * x + (1 - a) * roll(x, 1), one a for the whole batch.

    a = max(u, 1 - u) with u uniform on [0, 1], which is Beta(1, 1): the paper's aggressive mixup
    (Beyer et al. 2021), in the form of big_vision's `mixup` with p = 1.
    """
    u = random.uniform(key)
    a = jnp.maximum(u, 1 - u)
    return a * images + (1 - a) * jnp.roll(images, 1, axis=0)
