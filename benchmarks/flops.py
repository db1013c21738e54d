"""FLOPs of a program, counted in the program and not in what XLA makes of it.

XLA counts the body of a loop once.
"""

import math
from typing import Any

import jax

EIGH = 9.0  # times n^3, with eigenvectors by the symmetric QR algorithm (Golub and Van Loan, 8.3)
FREE = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather",
    "dynamic_update_slice", "iota", "pad", "reshape", "scatter", "select_n", "slice", "squeeze",
    "stop_gradient", "transpose",
}  # fmt: skip


def flops(jaxpr: Any, *, products_only: bool = False) -> float:
    """FLOPs of a program; of a branch the more expensive side, of a `while` one turn (Newton's too).

    Args:
      jaxpr: the program.
      products_only: count convolutions and matrix products, and nothing else.
    """
    return sum(_flops_of(eqn, products_only) for eqn in jaxpr.eqns)


def _flops_of(eqn: Any, products_only: bool) -> float:
    name = eqn.primitive.name
    out: Any = eqn.outvars[0].aval if eqn.outvars else None
    if name == "dot_general":
        ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
        return 2.0 * out.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, where = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
        return 2.0 * out.size * kernel.size / kernel.shape[where[0]]
    if name == "eigh" and not products_only:
        *batch, n, _ = eqn.invars[0].aval.shape
        return EIGH * math.prod(batch) * n**3
    if name == "triangular_solve" and not products_only:
        return float(out.size) * eqn.invars[0].aval.shape[-1]
    if name == "cond":
        platforms = eqn.params.get("branches_platforms")
        chosen = [
            branch
            for i, branch in enumerate(eqn.params["branches"])
            if not platforms or jax.default_backend() in (platforms[i] or (jax.default_backend(),))
        ]
        costs = [flops(branch.jaxpr, products_only=products_only) for branch in chosen]
        return costs[0] if platforms else max(costs)
    times = eqn.params.get("length", 1) if name == "scan" else 1
    inner = [
        getattr(value, "jaxpr", value)
        for value in eqn.params.values()
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    if inner:
        return times * sum(flops(jaxpr, products_only=products_only) for jaxpr in inner)
    if products_only or name in FREE or out is None:
        return 0.0
    # A sum over n entries is n.
    return float(getattr(eqn.invars[0].aval if name.startswith("reduce_") else out, "size", 0))
