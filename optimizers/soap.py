"""SOAP: Adam in the eigenbasis of Shampoo's statistics.

For a matrix G [m, n]: L and R are averages of G G^T and G^T G, P and Q their eigenvectors; Adam's second
moment is kept of P^T G Q, and its direction is turned back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from optimizers.parts.axes import along, gram
from optimizers.parts.blocks import merge
from optimizers.parts.roots import eigenvectors
from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds

Matrices = tuple[Array, ...]  # of the turned axes, in order: [d, d]


class SOAPState(NamedTuple):
    """State of `scale_by_soap`."""

    step: Array  # [] int32: updates so far
    average: Any  # of gradients, like the parameters, not turned
    second_moment: tuple[Array, ...]  # per leaf, of turned gradients, in the merged shape
    statistics: tuple[Matrices, ...]  # per leaf
    bases: tuple[Matrices, ...]  # per leaf: eigenvectors in columns, eigenvalues ascending


def direction(
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_b2: float = 0.95,
    eps: float = 1e-8,
    interval: int = 10,
    longest: int = 1024,
) -> optax.GradientTransformation:
    """Adam's direction in the eigenbases of Shampoo's statistics, turned back."""
    return scale_by_soap(b1, b2, shampoo_b2, eps, interval, longest)


def scale_by_soap(
    b1: float, b2: float, shampoo_b2: float, eps: float, interval: int, longest: int
) -> optax.GradientTransformation:
    """Adam's direction in the eigenbases, turned back.

    Args:
      b1: decay of the average of gradients, debiased.
      b2: decay of the second moment, debiased.
      shampoo_b2: decay of the statistics.
      eps: Adam's.
      interval: steps from one renewal of the bases to the next; 0: none, which is Adam.
      longest: longer axes are not turned; nor are vectors.
    """

    def update(grads: Any, state: SOAPState, params: Any = None) -> tuple[Any, SOAPState]:
        del params
        leaves, tree = jax.tree.flatten(grads)
        tensors = [leaf.reshape(_merged(leaf)) for leaf in leaves]
        axes = [_turned(t.shape, longest) for t in tensors]
        # In the bases of its own statistics the first gradient is diagonal, and the rest of it rounding:
        # it gives the first bases, and no update.
        steps = state.step + (0 if interval else 1)
        counts = jnp.float32(steps > 0)

        average = jax.tree.map(lambda m, g: _mix(m, g, 1 - counts * (1 - b1)), state.average, grads)
        second, updates = [], []
        for t, m, v, turned, basis in zip(
            tensors, jax.tree.leaves(average), state.second_moment, axes, state.bases, strict=True
        ):
            v = _mix(v, turn(t, turned, [q.T for q in basis]) ** 2, 1 - counts * (1 - b2))
            top = turn(m.reshape(t.shape), turned, [q.T for q in basis]) / (
                1 - b1 ** jnp.maximum(steps, 1)
            )
            scaled = counts * top / (jnp.sqrt(v / (1 - b2 ** jnp.maximum(steps, 1))) + eps)
            second.append(v)
            updates.append(turn(scaled, turned, basis).reshape(m.shape))

        statistics = tuple(
            tuple(_mix(s, gram(t, axis), shampoo_b2) for axis, s in zip(turned, old, strict=True))
            for t, turned, old in zip(tensors, axes, state.statistics, strict=True)
        )
        bases = state.bases
        if interval:
            due = state.step % interval == 0
            bases = lax.cond(due, lambda s, b: _renewed(s, b, due), lambda s, b: b, statistics, bases)
        state = SOAPState(state.step + 1, average, tuple(second), statistics, bases)
        return jax.tree.unflatten(tree, updates), state

    return optax.GradientTransformation(lambda params: _init(params, longest), update)


def _init(params: Any, longest: int) -> SOAPState:
    shapes = [_merged(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [[shape[axis] for axis in _turned(shape, longest)] for shape in shapes]
    return SOAPState(
        step=jnp.zeros([], jnp.int32),
        average=jax.tree.map(jnp.zeros_like, params),
        second_moment=tuple(jnp.zeros(shape) for shape in shapes),
        statistics=tuple(tuple(jnp.zeros((d, d)) for d in leaf) for leaf in sizes),
        bases=tuple(tuple(jnp.eye(d) for d in leaf) for leaf in sizes),
    )


def turn(tensor: Array, axes: Sequence[int], matrices: Sequence[Array]) -> Array:
    """A tensor multiplied along each of `axes` by its matrix [d, d]."""
    for axis, matrix in zip(axes, matrices, strict=True):
        tensor = along(matrix, tensor, axis)
    return tensor


def _renewed(
    statistics: tuple[Matrices, ...], bases: tuple[Matrices, ...], due: Array
) -> tuple[Matrices, ...]:
    """The eigenvectors of all statistics, those of one size as one batch.

    Under vmap a branch is no branch, and `due` keeps what is not due from costing anything on CPU.
    """
    new = [list(leaf) for leaf in bases]
    places: dict[int, list[tuple[int, int]]] = {}
    for i, leaf in enumerate(statistics):
        for j, s in enumerate(leaf):
            places.setdefault(s.shape[0], []).append((i, j))
    for group in places.values():
        stack = jnp.stack([statistics[i][j] for i, j in group])
        for (i, j), q in zip(group, eigenvectors(stack, jnp.full(len(group), due)), strict=True):
            new[i][j] = jnp.where(due & jnp.all(jnp.isfinite(q)), q, bases[i][j])
    return tuple(tuple(leaf) for leaf in new)


def _mix(old: Array, new: Array, decay: float | Array) -> Array:
    return decay * old + (1 - decay) * new


def _merged(leaf: Array) -> tuple[int, ...]:
    return merge(leaf.shape, 4096)


def _turned(shape: tuple[int, ...], longest: int) -> list[int]:
    """The axes of a merged shape that are turned."""
    return [axis for axis, d in enumerate(shape) if d <= longest] if len(shape) > 1 else []


build = in_recipe(direction, learning_rate=0.00821, weight_decay=1.19e-05)

SPEC = Spec(
    name="soap",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, interval=Bounds(0)),
    reference=(
        "Vyas et al. 2024 (arXiv 2409.11321), nikhilvyas/SOAP. Bases by eigendecomposition, eigenvalues "
        "ascending, where theirs take one QR step from the old ones. When eigenvectors change their "
        "order, the second moment stays where it is, and adapts within 1 / (1 - b2) steps; theirs moves "
        "with them. eps is added to the root after it is debiased, theirs before."
    ),
)
