"""Tensors along one axis: multiplied by a matrix, and summed to a Gram matrix over all others.

In full precision on every device: accelerators round the factors of a product by default.
"""

import jax.numpy as jnp
from jax import Array, lax


def product(a: Array, b: Array) -> Array:
    """Matrix product."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def along(matrix: Array, tensor: Array, axis: int) -> Array:
    """A matrix [d, d], or the diagonal [d] of one, times a tensor along an axis of length d."""
    first = jnp.moveaxis(tensor, axis, 0)
    flat = first.reshape(first.shape[0], -1)
    flat = product(matrix, flat) if matrix.ndim == 2 else matrix[:, None] * flat
    return jnp.moveaxis(flat.reshape(first.shape), 0, axis)


def gram(tensor: Array, axis: int, *, diagonal: bool = False) -> Array:
    """The tensor times itself, summed over all axes but one: [d, d], or its diagonal [d]."""
    flat = jnp.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return jnp.sum(flat**2, axis=1) if diagonal else product(flat, flat.T)
