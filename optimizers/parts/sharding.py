"""Arrays of many blocks, [K, ...], divided over all devices of the mesh in the context.

Without a mesh, or with one device in it, everything here does nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec


def devices() -> int:
    """How many devices blocks are divided over: those of `jax.set_mesh`, or 1."""
    return max(1, _mesh().size)  # an empty mesh has size 0


def device() -> Array:
    """Within `on_each`, the number of this device, from 0."""
    return lax.axis_index(_mesh().axis_names) if devices() > 1 else jnp.int32(0)


def total(x: Array) -> Array:
    """Within `on_each`, the sum over devices."""
    return lax.psum(x, _mesh().axis_names) if devices() > 1 else x


def divide(blocks: Any) -> Any:
    """Pads the leading axis of each array with zeros to a multiple of the devices, and divides it."""
    if devices() == 1:
        return blocks

    def pad(x: Array) -> Array:
        missing = -len(x) % devices()
        return _place(jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), _divided())

    return jax.tree.map(pad, blocks)


def on_each(f: Callable[..., Any], same: Any, *blocks: Any) -> Any:
    """f(same, *blocks) on each device, with its share of the blocks.

    Args:
      f: returns (trees of arrays [K, ...], a tree of arrays that are equal on all devices).
      same: a tree of arrays, given whole.
      blocks: trees of arrays [K, ...], each already divided, or whole and as long as before padding.

    Returns:
      what f returns; the blocks divided.
    """
    if devices() == 1:
        return f(same, *blocks)
    same = jax.tree.map(lambda x: _place(x, PartitionSpec()), same)
    return jax.shard_map(
        f,
        mesh=_mesh(),
        in_specs=(PartitionSpec(), *[_divided()] * len(blocks)),
        out_specs=(_divided(), PartitionSpec()),
        check_vma=False,  # `total` makes equal what is returned as equal
    )(same, *divide(blocks))


def whole(blocks: Any) -> Any:
    """The blocks on all devices, with their padding."""
    return jax.tree.map(lambda x: _place(x, PartitionSpec()), blocks) if devices() > 1 else blocks


def _mesh() -> AbstractMesh:
    return jax.sharding.get_abstract_mesh()


def _divided() -> PartitionSpec:
    return PartitionSpec(_mesh().axis_names)


def _place(x: Array, spec: PartitionSpec) -> Array:
    if AxisType.Explicit in _mesh().axis_types:
        return jax.sharding.reshard(x, spec)
    return lax.with_sharding_constraint(x, spec)
