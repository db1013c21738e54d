"""What the testbed needs to know about a network (a stateless flax.linen module)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from testbed.devices import in_full_precision


def fields_of(network: nn.Module) -> dict[str, str]:
    """The fields of a network, as text (its repr depends on flax's version, its fields do not)."""
    return {
        field.name: repr(getattr(network, field.name))
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name")
    }


def has_precision(network: nn.Module) -> bool:
    """Whether a network can compute in a precision other than float32."""
    return "dtype" in fields_of(network)


def in_precision(network: nn.Module, precision: str) -> nn.Module:
    """The network, computing in `precision` if it supports it."""
    return network.clone(dtype=precision) if has_precision(network) else network


def parts_of(value: Any) -> Any:
    """A network, or what contains networks, as dictionaries of classes and fields: for a checksum.

    Its repr depends on flax's version and may hold addresses, its fields do not.
    """
    if isinstance(value, nn.Module):
        names = (f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name"))
        fields = {name: parts_of(getattr(value, name)) for name in names}
        return {"class": type(value), **fields}
    if isinstance(value, tuple | list):
        return [parts_of(part) for part in value]
    if isinstance(value, Mapping):
        return {key: parts_of(part) for key, part in value.items()}
    return value


@in_full_precision
def apply(network: nn.Module, params: Any, inputs: Any) -> Any:
    """Outputs [b, ...] of a network on inputs [b, ...]."""
    return network.apply({"params": params}, inputs)
