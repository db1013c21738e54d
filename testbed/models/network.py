"""What the testbed needs to know about a network (a stateless flax.linen module)."""

import dataclasses
from typing import Any

from flax import linen as nn


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


def describe(network: nn.Module) -> str:
    """Its class and fields, for a fingerprint."""
    return f"{type(network).__name__}{sorted(fields_of(network).items())}"


def apply(network: nn.Module, params: Any, inputs: Any) -> Any:
    """Outputs [b, ...] of a network on inputs [b, ...]."""
    return network.apply({"params": params}, inputs)
