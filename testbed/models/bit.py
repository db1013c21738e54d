"""BiT ResNet-v2: pre-activation bottlenecks, GroupNorm, weight standardization.

Kolesnikov et al. 2020 (arXiv 1912.11370), in the form of big_vision's `models/bit_paper.py`, with its
parameter names. So far with the small root for images of a few pixels; the paper's root (7x7 of
stride 2, then max-pooling) belongs to the tasks at the paper's scale.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from testbed.models.convolution import convolve


def standardize(kernel: Array) -> Array:
    """Zero mean and unit variance per output channel of a kernel [k, k, in, out]; biased variance."""
    mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
    variance = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
    return (kernel - mean) / jnp.sqrt(variance + 1e-10)


class StandardizedConvolution(nn.Module):
    """Convolution without bias by a standardized kernel; gradients flow through both."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return convolve(x, standardize(kernel), self.stride)


class GroupNorm(nn.Module):
    """Group normalization with scale and bias [1, 1, 1, c]; biased variance, eps 1e-5."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (1, 1, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, channels))
        grouped = x.reshape(batch, height, width, self.groups, channels // self.groups)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.var(grouped, axis=(1, 2, 4), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + 1e-5)
        return normal.reshape(x.shape) * scale + bias


class Unit(nn.Module):
    """Pre-activation bottleneck; its first in a block projects the activated input."""

    middle: int
    stride: int
    groups: int
    project: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = 4 * self.middle
        y = jax.nn.relu(GroupNorm(self.groups, name="gn1")(x))
        shortcut = x
        if self.project:
            shortcut = StandardizedConvolution(wide, 1, self.stride, name="conv_proj")(y)
        y = StandardizedConvolution(self.middle, 1, name="conv1")(y)
        y = jax.nn.relu(GroupNorm(self.groups, name="gn2")(y))
        y = StandardizedConvolution(self.middle, 3, self.stride, name="conv2")(y)
        y = jax.nn.relu(GroupNorm(self.groups, name="gn3")(y))
        return shortcut + StandardizedConvolution(wide, 1, name="conv3")(y)


class BiT(nn.Module):
    """Images [b, h, w, c] -> logits [b, classes].

    Attributes:
      depths: units of each block; blocks after the first start with stride 2.
      width: middle channels of the first block, doubled by each further one (64 in the paper).
      groups: of GroupNorm (32 in the paper); divides every number of channels.
    """

    depths: tuple[int, ...]
    width: int
    groups: int
    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = StandardizedConvolution(self.width, 3, name="root_block_conv_root")(images)
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"block{i + 1}_unit{j + 1:02}"
                x = Unit(self.width * 2**i, stride, self.groups, project=j == 0, name=name)(x)
        x = jax.nn.relu(GroupNorm(self.groups, name="norm-pre-head")(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)
