"""BiT ResNet-v2: pre-activation bottlenecks, GroupNorm, weight standardization.

Kolesnikov et al. 2020 (arXiv 1912.11370), in the form of big_vision's `models/bit_paper.py`, with its
parameter names. Parameters are float32; with `dtype` "bfloat16" convolutions are computed in it, while
standardization, normalization's statistics, the mean before the head and the head stay float32.
"""

import re
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from testbed.models.convolution import convolve

Root = Literal["paper", "big_transfer", "small"]
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def bit(name: str, classes: int, root: Root = "paper") -> "BiT":
    """The network called R<depth>x<width>: R50x1, R101x1, R152x2, ...

    Raises:
      ValueError: unknown name.
    """
    match = re.fullmatch(r"R(50|101|152)x([1-9])", name)
    if not match:
        raise ValueError(f"{name}: BiT networks are R50, R101 or R152, x1 to x9, such as R50x1")
    depth, width = map(int, match.groups())
    return BiT(depths=DEPTHS[depth], width=64 * width, groups=32, classes=classes, root=root)


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
        return convolve(x, standardize(kernel).astype(x.dtype), self.stride)


class GroupNorm(nn.Module):
    """Group normalization with scale and bias [1, 1, 1, c]; biased variance, eps 1e-5.

    Statistics and arithmetic are float32 for any dtype of x; the result has the dtype of x.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (1, 1, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, channels))
        grouped = x.astype(jnp.float32).reshape(
            batch, height, width, self.groups, channels // self.groups
        )
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.var(grouped, axis=(1, 2, 4), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + 1e-5)
        return (normal.reshape(x.shape) * scale + bias).astype(x.dtype)


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


class Block(nn.Module):
    """Units of one width; the first has the block's stride."""

    depth: int
    middle: int
    stride: int
    groups: int
    checkpoint: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = nn.remat(Unit) if self.checkpoint else Unit
        for j in range(self.depth):
            stride = self.stride if j == 0 else 1
            x = unit(self.middle, stride, self.groups, project=j == 0, name=f"unit{j + 1:02}")(x)
        return x


class RootBlock(nn.Module):
    """The layers before the blocks: a convolution, without normalization or ReLU, and a max-pool.

    Attributes:
      width: channels.
      kind: "paper": 7x7 of stride 2, then 3x3 max-pool of stride 2 whose padding never wins.
        "big_transfer": the same with zeros as padding, which can win; public BiT-M weights were made
        with it. "small": 3x3 of stride 1 and no pool, for images of a few pixels (ours).
    """

    width: int
    kind: Root

    @nn.compact
    def __call__(self, images: Array) -> Array:
        if self.kind == "small":
            return StandardizedConvolution(self.width, 3, name="conv_root")(images)
        x = StandardizedConvolution(self.width, 7, 2, name="conv_root")(images)
        padding = -jnp.inf if self.kind == "paper" else 0.0
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=padding)
        return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class BiT(nn.Module):
    """Images [b, h, w, c] -> logits [b, classes], float32.

    Attributes:
      depths: units of each block; blocks after the first start with stride 2.
      width: middle channels of the first block, doubled by each further one (64 in the paper).
      groups: of GroupNorm (32 in the paper); divides every number of channels.
      root: see `RootBlock`.
      dtype: "float32" or "bfloat16", of activations and convolutions.
      checkpoint: keep only the units' inputs for the backward pass, and recompute the rest
        (`jax.checkpoint`): a third more FLOPs for the student, a fraction of its memory.
    """

    depths: tuple[int, ...]
    width: int
    groups: int
    classes: int
    root: Root = "small"
    dtype: str = "float32"
    checkpoint: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = RootBlock(self.width, self.root, name="root_block")(images.astype(self.dtype))
        for i, depth in enumerate(self.depths):
            stride = 1 if i == 0 else 2
            middle = self.width * 2**i
            block = Block(depth, middle, stride, self.groups, self.checkpoint, name=f"block{i + 1}")
            x = block(x)
        x = jax.nn.relu(GroupNorm(self.groups, name="norm-pre-head")(x))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)
