"""One convolution for all networks, and a plain convolutional network."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def convolve(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution, NHWC x HWIO -> NHWC, padded by (k - 1) // 2 on all sides.

    On CPU it is patches times a matrix: XLA runs its own convolution about five times slower inside
    a loop than outside one, and a trial is a loop.
    """
    size, _, channels, features = kernel.shape
    pad = (size - 1) // 2
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height = (images.shape[1] + 2 * pad - size) // stride + 1
    width = (images.shape[2] + 2 * pad - size) // stride + 1
    patches = [
        padded[:, y : y + stride * (height - 1) + 1 : stride, x : x + stride * (width - 1) + 1 : stride]
        for y in range(size)
        for x in range(size)
    ]
    matrix = kernel.reshape(size * size * channels, features)
    return jnp.concatenate(patches, axis=-1) @ matrix


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
