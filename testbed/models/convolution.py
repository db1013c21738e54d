"""One convolution for all networks, and a plain convolutional network."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def convolve(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution, NHWC x HWIO -> NHWC, padded by (k - 1) // 2 on all sides.

    On CPU it multiplies patches by a matrix: XLA runs its own convolution about five times slower inside
    a loop than outside one, and a trial is a loop.
    """
    size, _, channels, features = kernel.shape
    if jax.default_backend() != "cpu":
        return _xla(images, kernel, stride, groups=1)
    patches = list(_shifted(images, size, stride))
    matrix = kernel.reshape(size * size * channels, features)
    return jnp.concatenate(patches, axis=-1) @ matrix


def convolve_depthwise(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves each channel with its own kernel [k, k, 1, c]; padding as in `convolve`."""
    size, _, _, channels = kernel.shape
    if jax.default_backend() != "cpu":
        return _xla(images, kernel, stride, groups=channels)
    weights = kernel.reshape(size * size, channels)
    return sum(patch * w for patch, w in zip(_shifted(images, size, stride), weights, strict=True))


def _xla(images: Array, kernel: Array, stride: int, groups: int) -> Array:
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _shifted(images: Array, size: int, stride: int) -> Iterator[Array]:
    """Yields, for each position in a kernel, in the order of its entries, the pixels under it."""
    pad = (size - 1) // 2
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = stride * ((images.shape[1] + 2 * pad - size) // stride) + 1
    columns = stride * ((images.shape[2] + 2 * pad - size) // stride) + 1
    for y in range(size):
        for x in range(size):
            yield padded[:, y : y + rows : stride, x : x + columns : stride]


class Convolution(nn.Module):
    """`convolve` with a kernel [k, k, in, out] and a bias [out]."""

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(x, kernel, self.stride) + bias


class ConvNet(nn.Module):
    """3x3 convolutions with ReLU, all but the first of stride 2, then a dense head."""

    features: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images
        for i, features in enumerate(self.features, start=1):
            stride = 1 if i == 1 else 2
            x = jax.nn.relu(Convolution(features, stride=stride, name=f"conv{i}")(x))
        return nn.Dense(self.classes, name="head")(x.reshape(x.shape[0], -1))
