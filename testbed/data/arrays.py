"""Arrays of examples: what a data set holds, and what one input looks like."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike


class InputSpec(NamedTuple):
    """Shape and dtype of one input, without the batch axis."""

    shape: tuple[int, ...]
    dtype: DTypeLike = np.float32

    def batch(self, size: int, sharding: Any = None) -> jax.ShapeDtypeStruct:
        """The shape of a batch of `size` inputs."""
        return jax.ShapeDtypeStruct((size, *self.shape), self.dtype, sharding=sharding)


class Part(NamedTuple):
    """A part of a data set."""

    inputs: Any  # [n, ...]: a NumPy array or, from a generator, a JAX array
    labels: Any = None  # integers [n] or, one for each position, [n, positions]


class Data(NamedTuple):
    """A data set that fits the device, and the SHA-256 of its content."""

    training: Part
    validation: Part
    test: Part
    sha256: str = ""  # as recorded; default: that of the arrays


class Generated(NamedTuple):
    """Endless data, drawn on the device from a known source: no example is seen twice.

    Attributes:
      draw: the source's arrays, a key, n -> a Part of n examples. Pure; it runs inside the step.
      held_out: number of examples in each held-out part, drawn once with separate keys.
      arrays: () -> the source's arrays (a pytree), passed to programs as arguments.
      rounds: how many times as many test examples are scored at the end of a trial (validation: a
        quarter of that), so that their choice adds little to the spread between students.
    """

    draw: Callable[[Any, jax.Array, int], Part]
    held_out: int = 1024
    arrays: Callable[[], Any] = tuple
    rounds: int = 1
