"""Directions whose length, tensor by tensor, another direction can borrow (Agarwal et al. 2020).

Each is average / (sqrt(second moment) + eps), and differs in how, and of what, the second moment is
kept. Anil et al. 2020 graft Shampoo on them, so that the layers' learning rates stay the known ones.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Graft(NamedTuple):
    """Which direction."""

    second: Literal["none", "sum", "average"]  # of squared gradients
    debias: bool = False  # divide the averages by 1 - decay^t
    normalize: bool = False  # of gradients of norm 1


GRAFTS: Mapping[str, Graft] = MappingProxyType(
    {
        "sgd": Graft("none"),
        "adagrad": Graft("sum"),
        "rmsprop": Graft("average"),
        "adam": Graft("average", debias=True),
        "normalized": Graft("none", normalize=True),
        "adagrad_normalized": Graft("sum", normalize=True),
        "rmsprop_normalized": Graft("average", normalize=True),
    }
)


def init(kind: Graft, params: Any) -> Any:
    """The second moments, zero."""
    return jax.tree.map(jnp.zeros_like, params) if kind.second != "none" else None


def second_moments(kind: Graft, grads: Any, moments: Any, decay: float | Array) -> Any:
    """The next second moments."""
    if kind.second == "none":
        return None
    keep, take = (1.0, 1.0) if kind.second == "sum" else (decay, 1 - decay)

    def update(g: Array, v: Array) -> Array:
        return keep * v + take * (_unit(g) if kind.normalize else g) ** 2

    return jax.tree.map(update, grads, moments)


def direction(
    kind: Graft, averages: Any, moments: Any, decay: float | Array, count: Array, eps: float | Array
) -> Any:
    """The directions to borrow from.

    Args:
      kind: which.
      averages: the gradients, or their debiased averages.
      moments: of `second_moments`, this step included.
      decay: of the moments.
      count: steps, this one included.
      eps: added to the square root.
    """
    tops = jax.tree.map(_unit, averages) if kind.normalize else averages
    if kind.second == "none":
        return tops
    correction = 1 - decay**count if kind.debias else 1.0
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v / correction) + eps), tops, moments)


def borrow(length_of: Array, direction_of: Array) -> Array:
    """`direction_of` with the Frobenius norm of `length_of`; zero stays zero."""
    norm = jnp.linalg.norm(direction_of)
    scale = jnp.where(norm > 0, jnp.linalg.norm(length_of) / jnp.where(norm > 0, norm, 1.0), 0.0)
    return direction_of * scale


def _unit(x: Array) -> Array:
    return x / (jnp.linalg.norm(x) + 1e-25)
