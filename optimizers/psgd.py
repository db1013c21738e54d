"""PSGD with Kronecker factors: a preconditioner fitted by descent, without inverses or roots.

For a matrix G [m, n] the preconditioner is (Q^T Q) G (R^T R) with upper triangular Q [m, m], R [n, n],
fitted so that it whitens: A = Q G R^T and B = Q^(-T) V R^(-1), V of independent normal entries, are to
have the same Gram matrices. The step of Q is along triu(A A^T - B B^T) Q, relative to |A A^T + B B^T|.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from optimizers.parts.axes import along, gram, product
from optimizers.parts.blocks import merge
from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds

# Per axis [d, d], upper triangular; of long axes and of vectors the diagonal, [d].
Factors = tuple[Array, ...]


class PSGDState(NamedTuple):
    """State of `scale_by_psgd`."""

    step: Array  # [] int32: updates so far
    average: Any  # of gradients, like the parameters
    factors: tuple[Factors, ...]  # per leaf


def direction(
    *, b1: float = 0.9, rate: float = 0.1, interval: int = 2, longest: int = 1024
) -> optax.GradientTransformationExtraArgs:
    """The averaged gradient, whitened by Kronecker factors that are fitted by descent."""
    return scale_by_psgd(b1, rate, interval, longest)


def scale_by_psgd(
    b1: float, rate: float, interval: int, longest: int
) -> optax.GradientTransformationExtraArgs:
    """The whitened average of gradients, its root mean square at most 1.1 per tensor.

    Args:
      b1: decay of the average, debiased; also what is whitened.
      rate: of the factors' descent.
      interval: steps from one of its steps to the next.
      longest: longer axes have diagonal factors.
    """

    def init(params: Any) -> PSGDState:
        factors = tuple(_identity(leaf, longest) for leaf in jax.tree.leaves(params))
        return PSGDState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params), factors)

    def update(
        grads: Any, state: PSGDState, params: Any = None, *, key: Array, **extra: Any
    ) -> tuple[Any, PSGDState]:
        del params, extra
        step = state.step + 1
        average = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.average, grads)
        leaves, tree = jax.tree.flatten(average)
        tensors = [(leaf / (1 - b1**step)).reshape(_merged(leaf)) for leaf in leaves]

        def descend(factors: tuple[Factors, ...]) -> tuple[Factors, ...]:
            keys = jax.random.split(key, len(tensors))
            return tuple(
                fit(q, g, jax.random.normal(k, g.shape), rate)
                for q, g, k in zip(factors, tensors, keys, strict=True)
            )

        factors = lax.cond(state.step % interval == 0, descend, lambda q: q, state.factors)
        white = [_limit(whiten(q, g), 1.1) for q, g in zip(factors, tensors, strict=True)]
        updates = [w.reshape(leaf.shape) for w, leaf in zip(white, leaves, strict=True)]
        return jax.tree.unflatten(tree, updates), PSGDState(step, average, factors)

    return optax.GradientTransformationExtraArgs(init, update)


def fit(factors: Sequence[Array], g: Array, noise: Array, rate: float | Array) -> Factors:
    """One step of the factors towards whitening g; `noise` is V, of g's shape. Scale-free in g."""
    tiny = 1e-30
    a, b = g, noise
    for axis, q in enumerate(factors):
        a, b = along(q, a, axis), _solve_along(q, b, axis)
    new = []
    for axis, q in enumerate(factors):
        of_a, of_b = (gram(x, axis, diagonal=q.ndim == 1) for x in (a, b))
        step = of_a - of_b
        if q.ndim == 1:
            new.append(q - rate * step / (jnp.max(of_a + of_b) + tiny) * q)
        else:
            size = _norm_bound(of_a + of_b) + tiny
            new.append(q - rate / size * product(jnp.triu(step), q))
    # A zero gives nothing to fit, and the noise alone would let the factors grow without bound.
    some = jnp.any(g != 0)
    return tuple(jnp.where(some, n, q) for n, q in zip(_balanced(new), factors, strict=True))


def whiten(factors: Sequence[Array], g: Array) -> Array:
    """Q^T Q along each axis."""
    for axis, q in enumerate(factors):
        g = along(product(q.T, q) if q.ndim == 2 else q * q, g, axis)
    return g


def _merged(leaf: Array) -> tuple[int, ...]:
    return merge(leaf.shape, 4096) or (1,)


def _identity(leaf: Array, longest: int) -> Factors:
    """Identities; the diagonal for long axes, and for vectors, which have one axis."""
    shape = _merged(leaf)
    return tuple(jnp.ones(d) if d > longest or len(shape) == 1 else jnp.eye(d) for d in shape)


def _solve_along(q: Array, tensor: Array, axis: int) -> Array:
    """Q^(-T) times a tensor along an axis."""
    if q.ndim == 1:
        return along(1 / q, tensor, axis)
    first = jnp.moveaxis(tensor, axis, 0)
    flat = jax.scipy.linalg.solve_triangular(q, first.reshape(first.shape[0], -1), trans="T")
    return jnp.moveaxis(flat.reshape(first.shape), 0, axis)


def _norm_bound(a: Array) -> Array:
    """A lower bound of a symmetric matrix' spectral norm, above half of it in practice."""
    scale = jnp.max(jnp.abs(a)) + 1e-30
    a = a / scale
    column = a[:, jnp.argmax(jnp.sum(a**2, axis=0))]
    return scale * jnp.linalg.norm(product(a, column)) / (jnp.linalg.norm(column) + 1e-30)


def _balanced(factors: Sequence[Array]) -> Factors:
    """The same product, with factors of equal size: only their product is determined."""
    sizes = [jnp.max(jnp.abs(q)) for q in factors]
    mean = jnp.exp(sum(jnp.log(size) for size in sizes) / max(1, len(sizes)))
    return tuple(q * (mean / size) for q, size in zip(factors, sizes, strict=True))


def _limit(tensor: Array, most: float) -> Array:
    """Shortened to a root mean square of at most `most`."""
    size = jnp.sqrt(jnp.mean(tensor**2))
    return tensor * jnp.minimum(1.0, most / jnp.maximum(size, 1e-30))


build = in_recipe(direction, learning_rate=0.00438, weight_decay=0.000119)

SPEC = Spec(
    name="psgd",
    build=build,
    # A third of Adam's range: a whitened direction is longer.
    space={"learning_rate": Range(3e-4, 3e-2), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, rate=Bounds(0.0, 1.0)),
    reference=(
        "Li 2018 (arXiv 1512.04202) and 2024 (arXiv 2402.04553), PSGD Kron, whitening the averaged "
        "gradient as in Walters' kron_torch. Factors are fitted once in `interval` steps; there "
        "at random steps, ever more rarely. They are balanced each time, there in 1 of 100. The bound "
        "of the norm that their step is relative to takes one product with the matrix less than there, "
        "so that it is lower and the step longer. No damping: theirs add a small number to what they "
        "divide by, here a gradient of zeros leaves the factors as they are. A tensor's direction is "
        "shortened as a whole; in some of their versions each entry is squashed."
    ),
)
