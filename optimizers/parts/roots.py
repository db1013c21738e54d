"""Inverse p-th roots of batches of symmetric positive semidefinite matrices.

(A + r I)^(-1/p), with the ridge r relative to A's largest eigenvalue, or absolute. By two methods,
each with its residual, from which the caller decides whether to take the root:

- `eigh`: eigendecomposition in float64. On CPU this costs about what float32 costs, and puts
  the error of a root at the floor that float32 statistics allow. Eigenvalues below 0, which rounding
  gives to statistics of deficient rank, count as 0.
- `newton`: coupled Newton iteration in float32, which is products of matrices only. An eigenvalue that
  rounding puts below 0 must be lifted above it by the ridge.

So that rounding never decides a root, a ridge above 0 is at least a share of the largest eigenvalue,
which depends on the method (LEAST_RIDGE); a ridge of 0 is none.

`auto` takes eigh on CPU and newton on accelerators, whose strength is products, and which have float64
slowly or not at all.

Anil et al. 2020 (arXiv 2002.09018); Guo and Higham 2006 for the iteration.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from optimizers.parts.axes import product

Method = Literal["auto", "eigh", "newton"]
METHODS: tuple[Method, ...] = ("auto", "eigh", "newton")
MAX_ITERATIONS = 60
# Relative to the largest eigenvalue. With 1e-7, newton's roots of deficient rank are off by 10 %, and
# with 1e-8 there are none.
LEAST_RIDGE = {"eigh": 1e-13, "newton": 1e-6}


def inverse_roots(
    matrices: Array,
    powers: Array,
    wanted: Array,
    ridge: float | Array,
    *,
    relative: bool = True,
    method: Method = "auto",
) -> tuple[Array, Array]:
    """X = (A + r I)^(-1/p) of each A, and how far X^p (A + r I) is from I.

    A is the matrix with its eigenvalues below 0, which are rounding, put to 0.

    Args:
      matrices: [k, d, d], symmetric.
      powers: [k], the integers p >= 1.
      wanted: [k], whether the root is needed; on CPU, the others are I and cost nothing.
      ridge: r, or r / (largest eigenvalue of A); at least LEAST_RIDGE of that.
      relative: which of the two.
      method: how.

    Returns:
      roots [k, d, d] and residuals [k]; where a root is not finite in float32, neither is its residual.
      The root of zero, without a ridge, is I.
    """
    eigh, newton = (_batched(f, relative) for f in (_by_eigh, _by_newton))
    arguments = (matrices, powers, wanted, jnp.broadcast_to(jnp.float32(ridge), powers.shape))
    if method == "auto":
        return lax.platform_dependent(*arguments, cpu=eigh, default=newton)
    return {"eigh": eigh, "newton": newton}[method](*arguments)


def _batched(root, relative):  # type: ignore[no-untyped-def]  # takes and returns what `root` does
    """A root function over the leading axis; under `jax.vmap`, over a longer leading axis.

    One matrix after the other on CPU: several independent batched `eigh` in one program can
    deadlock there, and a batched product of small matrices is slower than a loop of products.
    The rule for vmap is needed for float64, which jax's own loses when it traces again, and
    keeps the branch a branch.
    """

    def one_by_one(matrices, powers, wanted, ridges):  # type: ignore[no-untyped-def]
        def one(arguments):  # type: ignore[no-untyped-def]
            matrix, power, is_wanted, ridge = arguments
            nothing = jnp.eye(matrix.shape[0], dtype=jnp.float32), jnp.float32(0)
            return lax.cond(is_wanted, lambda: root(matrix, power, ridge, relative), lambda: nothing)

        return lax.map(one, (matrices, powers, wanted, ridges))

    def at_once(matrices, powers, wanted, ridges):  # type: ignore[no-untyped-def]
        del wanted
        return jax.vmap(lambda *a: root(*a, relative))(matrices, powers, ridges)

    @jax.custom_batching.custom_vmap
    def batched(*arguments):  # type: ignore[no-untyped-def]
        return lax.platform_dependent(*arguments, cpu=one_by_one, default=at_once)

    @batched.def_vmap
    def _(size, is_batched, *arguments):  # type: ignore[no-untyped-def]
        whole = [
            a if b else jnp.broadcast_to(a, (size, *a.shape))
            for a, b in zip(arguments, is_batched, strict=True)
        ]
        flat = batched(*[a.reshape(-1, *a.shape[2:]) for a in whole])
        return tuple(f.reshape(size, -1, *f.shape[1:]) for f in flat), (True, True)

    return batched


def eigenvectors(matrices: Array, wanted: Array) -> Array:
    """Eigenvectors, in columns, of symmetric matrices [k, d, d], eigenvalues ascending.

    By the same way as roots: in float64, and one after the other on CPU; elsewhere those that are not
    wanted cost as much.
    """

    def of_one(matrix: Array, power: Array, ridge: Array, relative: bool) -> tuple[Array, Array]:
        del power, ridge, relative
        with jax.enable_x64(True):
            _, vectors = jnp.linalg.eigh(lax.convert_element_type(matrix, jnp.float64))
            return lax.convert_element_type(vectors, jnp.float32), jnp.float32(0)

    zeros = jnp.zeros(len(matrices))
    return _batched(of_one, relative=True)(matrices, zeros, wanted, zeros)[0]


def condition_numbers(matrices: Array, ridge: float | Array) -> Array:
    """Largest over smallest eigenvalue of each A + r I, of symmetric matrices [k, d, d]; of zero, 1.

    By the same way as roots, in float64. The ridge r is `ridge` times the largest eigenvalue of A.
    """

    def of_one(matrix: Array, power: Array, ridge: Array, relative: bool) -> tuple[Array, Array]:
        del power, relative
        with jax.enable_x64(True):
            a, r = (lax.convert_element_type(x, jnp.float64) for x in (matrix, ridge))
            values = jnp.maximum(jnp.linalg.eigvalsh(a), 0)
            top = values[-1]
            ratio = jnp.where(top > 0, (1 + r) * top / (values[0] + r * top), 1.0)
            return matrix, lax.convert_element_type(ratio, jnp.float32)

    count = len(matrices)
    ridges = jnp.broadcast_to(jnp.asarray(ridge, jnp.float32), (count,))
    everything = jnp.full(count, True)
    return _batched(of_one, relative=True)(matrices, jnp.zeros(count), everything, ridges)[1]


def _by_eigh(matrix: Array, power: Array, ridge: Array, relative: bool) -> tuple[Array, Array]:
    """Of one matrix [d, d]. The residual is of X^p (A + r I) on one vector.

    A is the matrix as it was given, and only what is clipped is from its decomposition: a
    decomposition that is not the matrix' has a large residual too.
    """
    with jax.enable_x64(True):
        a, r = (lax.convert_element_type(x, jnp.float64) for x in (matrix, ridge))
        values, vectors = jnp.linalg.eigh(a)
        top = values[-1]
        r = _at_least(r * top if relative else r, LEAST_RIDGE["eigh"] * top)
        some = top + r > 0
        clipped = jnp.maximum(-values, 0)
        values = jnp.where(some, jnp.maximum(values, 0) + r, 1.0)
        exponent = -1 / lax.convert_element_type(power, jnp.float64)
        root = (vectors * values**exponent) @ vectors.T
        probe = jnp.cos(jnp.arange(a.shape[0], dtype=jnp.float64))
        ridged = a @ probe + vectors @ (clipped * (vectors.T @ probe)) + r * probe
        image = jnp.where(some, ridged, probe)
        image = lax.fori_loop(jnp.int32(0), power, lambda _, y: root @ y, image)
        residual = jnp.linalg.norm(image - probe) / jnp.linalg.norm(probe)
        root, residual = (lax.convert_element_type(x, jnp.float32) for x in (root, residual))
        return root, jnp.where(jnp.all(jnp.isfinite(root)), residual, jnp.float32(jnp.inf))


def _by_newton(matrix: Array, power: Array, ridge: Array, relative: bool) -> tuple[Array, Array]:
    """Of one matrix [d, d]; the residual is the root mean square of the eigenvalues of M - I.

    X <- X T, M <- T^p M with T = ((p + 1) I - M) / p, from M = z (A + r I), X = z^(1/p) I. An eigenvalue
    m of M becomes m ((p + 1 - m) / p)^p: from (0, p + 1) it comes to (0, 1] at once, and from there it
    only grows, to 1. z = (p + 1) / (2 l) with A + r I's largest eigenvalue l puts the largest m
    in the middle of the interval. The error may therefore rise at the first iteration, and later on it
    rises by rounding only: that is when to stop, not at a rise by a factor.
    """
    size, p = matrix.shape[0], power.astype(jnp.float32)
    identity = jnp.eye(size, dtype=jnp.float32)
    scale = jnp.max(jnp.abs(matrix)) + (0.0 if relative else ridge)
    nothing = scale == 0
    scale = jnp.where(nothing, 1.0, scale)
    a = jnp.where(nothing, identity, matrix / scale)
    top = _largest_eigenvalue(a)
    r = ridge * top if relative else ridge / scale
    r = jnp.where(nothing, 0.0, _at_least(r, LEAST_RIDGE["newton"] * top))
    z = (p + 1) / (2 * (top + r))

    def goes_on(state: Any) -> Array:
        i, _, _, error, before = state
        return (i < MAX_ITERATIONS) & (error > 1e-6) & ((error < before) | (error > 0.1))

    def iterate(state: Any) -> Any:
        i, m, x, before, _ = state
        t = ((p + 1) * identity - m) / p
        m = lax.fori_loop(jnp.int32(0), power, lambda _, m: product(t, m), m)
        return i + 1, m, product(x, t), _distance(m, identity), before

    m = z * (a + r * identity)
    start = (jnp.int32(0), m, z ** (1 / p) * identity, _distance(m, identity), jnp.float32(jnp.inf))
    _, _, root, residual, _ = lax.while_loop(goes_on, iterate, start)
    return root * scale ** (-1 / p), residual


def _at_least(ridge: Array, least: Array) -> Array:
    return jnp.where(ridge > 0, jnp.maximum(ridge, least), 0.0)


def _distance(a: Array, b: Array) -> Array:
    return jnp.linalg.norm(a - b) / a.shape[0] ** 0.5


def _largest_eigenvalue(a: Array) -> Array:
    """Rayleigh quotient of a column of A^128: squared, the others' share is (l2 / l1)^256."""
    q = a
    for _ in range(7):
        q = product(q, q)
        q = q / jnp.maximum(jnp.max(jnp.abs(q)), 1e-30)
    v = q[:, jnp.argmax(jnp.diagonal(q))]
    return jnp.vdot(v, product(a, v)) / jnp.maximum(jnp.vdot(v, v), 1e-30)
