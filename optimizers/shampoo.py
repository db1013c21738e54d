"""Shampoo, plain: one preconditioner per axis, inverse roots at an interval, Adam grafting.

For a gradient G [m, n]: statistics L ~ average of G G^T [m, m] and R ~ average of G^T G [n, n];
direction L^(-1/4) M R^(-1/4), where M is the averaged gradient, scaled per tensor to the norm of
Adam's direction. A vector has one axis, and so the exponent -1/2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.recipe import ALLOWED, WEIGHT_DECAY, recipe
from optimizers.spec import Allowed, Search, Spec

Matrices = tuple[tuple[Array, ...], ...]  # per leaf, per preconditioned axis: [d, d]


def build(
    total_steps: int,
    *,
    learning_rate: float = 0.0146,
    weight_decay: float = 1.19e-4,
    b1: float = 0.9,
    b2: float = 0.95,
    shampoo_b2: float = 0.95,
    interval: int = 20,
    ridge: float = 1e-6,
    max_size: int = 512,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """scale_by_shampoo in the shared recipe.

    Learning rate and weight decay: the best of 12 on `digits`, short horizon (docs/digits.md).
    """
    return recipe(
        scale_by_shampoo(b1, b2, shampoo_b2, interval, ridge, max_size),
        total_steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
    )


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`."""

    adam: optax.ScaleByAdamState  # count, first and second moment
    statistics: Matrices  # exponential averages of the Gram matrices
    roots: Matrices  # their inverse p-th roots, as of the last renewal


def scale_by_shampoo(
    b1: float = 0.9,
    b2: float = 0.999,
    shampoo_b2: float = 0.95,
    interval: int = 20,
    ridge: float = 1e-6,
    max_size: int = 512,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Shampoo's direction with the norm of Adam's, tensor by tensor.

    Args:
      b1: decay of the averaged gradient that is preconditioned (bias-corrected, as Adam's).
      b2: decay of Adam's second moment.
      shampoo_b2: decay of the statistics. Their bias is a scalar, which grafting cancels.
      interval: steps between renewals of the inverse roots; the first step renews them.
      ridge: added to the eigenvalues, relative to the largest.
      max_size: axes that are longer are left as they are (and so are axes of length 1).
      eps: Adam's.

    Convolution kernels [k, k, in, out] are treated as matrices [k * k * in, out].
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: Any) -> ShampooState:
        axes = [_axes(leaf, max_size) for leaf in jax.tree.leaves(params)]
        statistics = tuple(tuple(jnp.zeros((d, d)) for _, d in leaf) for leaf in axes)
        roots = tuple(tuple(jnp.eye(d) for _, d in leaf) for leaf in axes)
        return ShampooState(adam.init(params), statistics, roots)

    def update(grads: Any, state: ShampooState, params: Any = None) -> tuple[Any, ShampooState]:
        del params
        leaves, tree = jax.tree.flatten(grads)
        matrices = [_as_matrix(leaf) for leaf in leaves]
        axes = [_axes(leaf, max_size) for leaf in leaves]
        statistics = tuple(
            tuple(
                shampoo_b2 * s + (1 - shampoo_b2) * gram(matrix, axis)
                for (axis, _), s in zip(leaf_axes, leaf_statistics, strict=True)
            )
            for matrix, leaf_axes, leaf_statistics in zip(matrices, axes, state.statistics, strict=True)
        )
        roots = jax.lax.cond(
            state.adam.count % interval == 0,
            lambda s: _inverse_roots(s, ridge),
            lambda _: state.roots,
            statistics,
        )
        grafts, adam_state = adam.update(grads, state.adam)
        # The bias correction of the average is a scalar; grafting cancels it.
        averages = [_as_matrix(leaf) for leaf in jax.tree.leaves(adam_state.mu)]
        directions = [
            graft(precondition(average, leaf_axes, leaf_roots), norm_of)
            for average, leaf_axes, leaf_roots, norm_of in zip(
                averages, axes, roots, jax.tree.leaves(grafts), strict=True
            )
        ]
        return jax.tree.unflatten(tree, directions), ShampooState(adam_state, statistics, roots)

    return optax.GradientTransformation(init, update)


def gram(matrix: Array, axis: int) -> Array:
    """G G^T for axis 0, G^T G for axis 1 of a matrix [m, n]; v v^T of a vector."""
    other = [a for a in range(matrix.ndim) if a != axis]
    return jnp.tensordot(matrix, matrix, axes=(other, other))


def precondition(matrix: Array, axes: list[tuple[int, int]], roots: tuple[Array, ...]) -> Array:
    """Multiplies each (axis, length) of `axes` by its root [d, d]."""
    for (axis, _), root in zip(axes, roots, strict=True):
        matrix = jnp.moveaxis(jnp.tensordot(root, matrix, axes=(1, axis)), 0, axis)
    return matrix


def graft(direction: Array, norm_of: Array) -> Array:
    """`direction` with the shape and the norm of `norm_of`; a zero direction stays zero."""
    norm = jnp.linalg.norm(direction)
    scale = jnp.where(norm > 0, jnp.linalg.norm(norm_of) / jnp.maximum(norm, 1e-30), 0.0)
    return (direction * scale).reshape(norm_of.shape)


def inverse_root(statistics: Array, exponent: float, ridge: float) -> Array:
    """(A + ridge * l I)^exponent of a symmetric A [d, d] with largest eigenvalue l.

    Of A / l, that is, times l^exponent left out: grafting cancels it, and the root of tiny or huge
    statistics stays finite. The root of zero is the identity.
    """
    scale = jnp.max(jnp.abs(statistics))
    values, vectors = jnp.linalg.eigh(statistics / jnp.where(scale > 0, scale, 1.0))
    largest = jnp.where(scale > 0, values[-1], 1.0)
    values = jnp.where(scale > 0, jnp.maximum(values, 0) / largest + ridge, 1.0)
    return (vectors * values**exponent) @ vectors.T


def _inverse_roots(statistics: Matrices, ridge: float) -> Matrices:
    """All roots, size by size.

    One at a time under lax.map: several independent batched `eigh` in one program can block forever
    on CPU, above all inside lax.cond.
    """
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (size, axes) -> (leaf, which)
    for i, leaf in enumerate(statistics):
        for j, s in enumerate(leaf):
            places.setdefault((s.shape[0], len(leaf)), []).append((i, j))
    roots: list[list[Array]] = [list(leaf) for leaf in statistics]
    for (_, count), group in places.items():
        exponent = -1 / (2 * count)
        stack = jnp.stack([statistics[i][j] for i, j in group])
        renewed = jax.lax.map(lambda s, e=exponent: inverse_root(s, e, ridge), stack)
        for root, (i, j) in zip(renewed, group, strict=True):
            roots[i][j] = root
    return tuple(tuple(leaf) for leaf in roots)


def _as_matrix(leaf: Array) -> Array:
    """[..., n] -> [m, n] for tensors of rank above 2; others as they are."""
    return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 2 else leaf


def _axes(leaf: Array, max_size: int) -> list[tuple[int, int]]:
    """(axis, length) of the axes of the leaf's matrix that are preconditioned."""
    shape = jax.eval_shape(_as_matrix, leaf).shape
    return [(axis, d) for axis, d in enumerate(shape) if 1 < d <= max_size]


SPEC = Spec(
    name="shampoo",
    build=build,
    space={"learning_rate": Search(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    allowed={
        **ALLOWED,
        "b1": Allowed(0.0, 1.0),
        "b2": Allowed(0.0, 1.0),
        "shampoo_b2": Allowed(0.0, 1.0),
        "interval": Allowed(1),
        "ridge": Allowed(1e-12),
        "max_size": Allowed(1),
    },
    reference=(
        "Gupta, Koren and Singer 2018 (arXiv 1802.09568), with averages instead of sums, roots at an "
        "interval and grafting as in Anil et al. 2020 (arXiv 2002.09018); momentum before the "
        "preconditioner, grafting on Adam, as in Shi et al. 2023 (arXiv 2309.06497). No blocks yet: "
        "axes longer than max_size are not preconditioned."
    ),
)
