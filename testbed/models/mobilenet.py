"""MobileNet-v3 with GroupNorm.

Howard et al. 2019 (arXiv 1905.02244), tables 1 (large) and 2 (small): inverted residuals with squeeze
and excitation, hard swish. One difference: GroupNorm of 8 channels per group, not BatchNorm. Batch
statistics would make a student's function of one view depend on the others in its batch, on how
batches are divided over devices, and on running averages, which are state besides the parameters; and
under mixup, training and evaluation have different statistics. The parameter count stays the same.
The head starts at zero, like the paper's students.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from testbed.models.bit import GroupNorm
from testbed.models.convolution import convolve, convolve_depthwise


class Bottleneck(NamedTuple):
    """One row of the tables."""

    size: int  # of the depthwise kernel
    expanded: int
    out: int
    squeeze: bool
    swish: bool  # hard swish, else ReLU
    stride: int


LARGE = (
    Bottleneck(3, 16, 16, False, False, 1),
    Bottleneck(3, 64, 24, False, False, 2),
    Bottleneck(3, 72, 24, False, False, 1),
    Bottleneck(5, 72, 40, True, False, 2),
    Bottleneck(5, 120, 40, True, False, 1),
    Bottleneck(5, 120, 40, True, False, 1),
    Bottleneck(3, 240, 80, False, True, 2),
    Bottleneck(3, 200, 80, False, True, 1),
    Bottleneck(3, 184, 80, False, True, 1),
    Bottleneck(3, 184, 80, False, True, 1),
    Bottleneck(3, 480, 112, True, True, 1),
    Bottleneck(3, 672, 112, True, True, 1),
    Bottleneck(5, 672, 160, True, True, 2),
    Bottleneck(5, 960, 160, True, True, 1),
    Bottleneck(5, 960, 160, True, True, 1),
)
SMALL = (
    Bottleneck(3, 16, 16, True, False, 2),
    Bottleneck(3, 72, 24, False, False, 2),
    Bottleneck(3, 88, 24, False, False, 1),
    Bottleneck(5, 96, 40, True, True, 2),
    Bottleneck(5, 240, 40, True, True, 1),
    Bottleneck(5, 240, 40, True, True, 1),
    Bottleneck(5, 120, 48, True, True, 1),
    Bottleneck(5, 144, 48, True, True, 1),
    Bottleneck(5, 288, 96, True, True, 2),
    Bottleneck(5, 576, 96, True, True, 1),
    Bottleneck(5, 576, 96, True, True, 1),
)
# variant: bottlenecks, channels after them, features before the head
VARIANTS = {"large": (LARGE, 960, 1280), "small": (SMALL, 576, 1024)}
CHANNELS_PER_GROUP = 8  # divides every number of channels here


class NormalizedConvolution(nn.Module):
    """Convolution without bias, then GroupNorm; full, or with one kernel per channel."""

    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.size, self.size, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(x.dtype)
        apply = convolve_depthwise if self.depthwise else convolve
        groups = self.features // CHANNELS_PER_GROUP
        return GroupNorm(groups, name="norm")(apply(x, kernel, self.stride))


class SqueezeExcite(nn.Module):
    """Multiplies channels by gates [b, 1, 1, c], computed from the channels' means."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        y = jax.nn.relu(nn.Dense(_divisible(channels // 4), name="reduce")(y))
        gates = jax.nn.hard_sigmoid(nn.Dense(channels, name="expand")(y))
        return x * gates[:, None, None].astype(x.dtype)


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, squeeze-excitation, 1x1 to fewer; residual if shapes match."""

    row: Bottleneck

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, expanded, out, squeeze, swish, stride = self.row
        activate = jax.nn.hard_swish if swish else jax.nn.relu
        y = x
        if expanded != x.shape[-1]:
            y = activate(NormalizedConvolution(expanded, name="expand")(y))
        y = activate(NormalizedConvolution(expanded, size, stride, depthwise=True, name="depthwise")(y))
        if squeeze:
            y = SqueezeExcite(name="squeeze")(y)
        y = NormalizedConvolution(out, name="project")(y)
        return x + y if y.shape == x.shape else y


class MobileNetV3(nn.Module):
    """Images [b, h, w, 3] -> logits [b, classes], float32.

    Attributes:
      variant: "large" or "small".
      dtype: "float32" or "bfloat16", of activations and convolutions.
    """

    variant: Literal["large", "small"]
    classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        rows, last, features = VARIANTS[self.variant]
        x = NormalizedConvolution(16, 3, 2, name="root")(images.astype(self.dtype))
        x = jax.nn.hard_swish(x)
        for i, row in enumerate(rows, start=1):
            x = InvertedResidual(row, name=f"block{i:02}")(x)
        x = jax.nn.hard_swish(NormalizedConvolution(last, name="last")(x))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        x = jax.nn.hard_swish(nn.Dense(features, name="pre_head")(x))
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)


def _divisible(channels: float) -> int:
    """The nearest multiple of 8 that is at least nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
