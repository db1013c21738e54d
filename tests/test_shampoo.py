"""Shampoo, piece by piece: blocks, roots, grafts, the renewal of roots, and what they give together."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers import registry, shampoo
from optimizers.parts import blocks, grafting, roots
from optimizers.shampoo import scale_by_shampoo

SHAPES = {"matrix": (6, 4), "vector": (5,), "convolution": (2, 2, 3, 4), "scalar": ()}


def gradients(shapes, n, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [{k: jnp.float32(scale * rng.normal(size=s)) for k, s in shapes.items()} for _ in range(n)]


def updates_of(optimizer, grads):
    state, updates = optimizer.init(jax.tree.map(jnp.zeros_like, grads[0])), []
    step = jax.jit(optimizer.update)
    for g in grads:
        u, state = step(g, state)
        updates.append(u)
    return updates, state


def assert_same(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


# Blocks


@pytest.mark.parametrize(
    ("shape", "limit", "keep_last", "merged"),
    [
        ((3, 3, 16, 32), 4096, True, (144, 32)),
        ((3, 3, 512, 512), 4096, True, (9, 512, 512)),
        ((1, 1, 64, 256), 4096, True, (64, 256)),
        ((8, 6), 4096, True, (8, 6)),
        ((8, 6), 4096, False, (48,)),
        ((1, 1, 1, 64), 4096, True, (64,)),
        ((2, 2048, 3, 4), 4096, False, (4096, 12)),
        ((1, 1), 4096, True, ()),
        ((), 4096, True, ()),
    ],
)
def test_neighbouring_small_axes_are_merged(shape, limit, keep_last, merged):
    assert blocks.merge(shape, limit, keep_last) == merged


@pytest.mark.parametrize("shapes", [[(7, 5), (10,), (), (2, 2, 3, 4)], [(9, 9), (9, 4), (4, 9)], [(1,)]])
@pytest.mark.parametrize("block", [1, 2, 4, 100])
def test_scatter_is_the_inverse_of_gather(shapes, block):
    leaves = [jnp.arange(math.prod(s), dtype=jnp.float32).reshape(s) + i for i, s in enumerate(shapes)]
    layout = blocks.cut(shapes, block, limit=12, longest=1000)
    stacks = blocks.gather(leaves, layout)
    assert [x.shape for x in stacks] == [(s.size, *s.shape) for s in layout.stacks]
    assert all(d <= block for s in layout.stacks for d in s.shape)
    nothing = [leaf if leaf.size == 1 else jnp.full_like(leaf, -1) for leaf in leaves]
    assert_same(blocks.scatter(stacks, nothing, layout), leaves)


def test_blocks_are_submatrices_whichever_layer_they_are_from():
    a, b = jnp.arange(24.0).reshape(6, 4), -jnp.arange(8.0).reshape(4, 2)
    layout = blocks.cut([a.shape, b.shape], 2, limit=1, longest=1000)
    (stack,) = blocks.gather([a, b], layout)
    grid = [a[i : i + 2, j : j + 2] for i in (0, 2, 4) for j in (0, 2)]
    np.testing.assert_array_equal(stack, [*grid, b[:2], b[2:]])


def test_long_axes_are_not_cut():
    layout = blocks.cut([(50, 6)], 4, limit=1, longest=40)
    assert {s.shape: s.size for s in layout.stacks} == {(50, 4): 1, (50, 2): 1}


# Roots


def root_in_float64(matrix, power, ridge):
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    values = np.maximum(values, 0) + ridge * values[..., -1:]
    return (vectors * values[..., None, :] ** (-1 / power)) @ np.swapaxes(vectors, -1, -2)


def with_condition(condition, n=3, d=24):
    rng = np.random.default_rng(0)
    bases = np.linalg.qr(rng.normal(size=(n, d, d)))[0]
    return (bases * np.logspace(0, -np.log10(condition), d)) @ np.swapaxes(bases, 1, 2)


def inverse_roots(matrices, power, ridge=1e-6, method="auto", **options):
    n = len(matrices)
    wanted = options.pop("wanted", jnp.full(n, True))
    powers = jnp.broadcast_to(jnp.asarray(power), (n,))
    return roots.inverse_roots(jnp.float32(matrices), powers, wanted, ridge, method=method, **options)


# Relative error of the root, by power: float32 statistics alone cost 1e-3 at condition numbers of 1e8.
BARS = {"eigh": {2: 2e-3, 4: 1e-3, 6: 1e-3}, "newton": {2: 3e-2, 4: 1e-2, 6: 1e-2}}


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("power", [2, 4, 6])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e8, 1e12])
def test_roots_equal_float64(condition, power, method):
    matrices = with_condition(condition)
    found, residuals = inverse_roots(matrices, power, method=method)
    expected = root_in_float64(matrices, power, 1e-6)
    errors = np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert np.all(errors < (BARS[method][power] if condition > 1e4 else 2e-4))
    assert np.all(residuals < 1e-2)


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("power", [2, 4])
def test_roots_scale_with_the_statistics(power, scale, method):
    matrices = with_condition(1e3)
    found, _ = inverse_roots(matrices * scale, power, method=method)
    expected = root_in_float64(matrices, power, 1e-6) * scale ** (-1 / power)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.max(np.abs(expected)))


@pytest.mark.parametrize("method", ["eigh", "newton"])
def test_roots_of_zero_are_the_identity_and_of_rank_one_finite(method):
    v = np.arange(1, 6.0)
    found, residuals = inverse_roots(np.stack([np.zeros((5, 5)), np.outer(v, v)]), 4, method=method)
    np.testing.assert_allclose(found[0], np.eye(5), atol=1e-6)
    np.testing.assert_allclose(found[1], root_in_float64(np.outer(v, v), 4, 1e-6), rtol=2e-2, atol=1e-2)
    assert np.all(residuals < 1e-2)


@pytest.mark.parametrize("method", ["eigh", "newton"])
def test_the_ridge_can_be_absolute(method):
    matrices = with_condition(1e2)
    found, _ = inverse_roots(matrices, 4, ridge=0.5, relative=False, method=method)
    expected = root_in_float64(matrices + 0.5 * np.eye(24), 4, 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_powers_can_differ_within_a_batch_and_what_is_not_wanted_is_the_identity():
    matrices = with_condition(1e2)
    found, residuals = inverse_roots(matrices, [2, 4, 4], wanted=jnp.array([True, True, False]))
    np.testing.assert_allclose(found[0], root_in_float64(matrices[0], 2, 1e-6), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], root_in_float64(matrices[1], 4, 1e-6), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[2], np.eye(24))
    assert residuals[2] == 0


@pytest.mark.parametrize("method", ["eigh", "newton"])
def test_vmapped_roots_are_those_of_one_longer_batch(method):
    """In particular, eigh stays in float64."""
    matrices = jnp.float32(np.stack([with_condition(1e8), 2 * with_condition(1e6)]))
    batched = jax.jit(jax.vmap(lambda m: inverse_roots(m, 4, method=method)[0]))(matrices)
    for one, expected in zip(batched, matrices, strict=True):
        alone = inverse_roots(expected, 4, method=method)[0]
        np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-4 * float(jnp.max(alone)))


def of_rank(rank, n=2, d=24):
    """Statistics [n, d, d] as gradients of a rank leave them: rounded to float32, which makes some of
    their zero eigenvalues negative."""
    rng = np.random.default_rng(rank)
    bases = np.linalg.qr(rng.normal(size=(n, d, d)))[0] * np.logspace(0, -1.5, d)
    factors = np.float32(bases[..., :rank] @ rng.normal(size=(n, rank, rank)))
    return factors @ np.swapaxes(factors, 1, 2)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("ridge", [1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-3])
@pytest.mark.parametrize("rank", [1, 3, 12, 23, 24])
def test_a_root_has_the_residual_of_the_matrix_whose_root_it_is(rank, ridge, power):
    """That of the statistics themselves would be 1e-8 / ridge, and refuse a root that is exact."""
    matrices = of_rank(rank)
    assert rank == 24 or np.linalg.eigvalsh(np.float64(matrices)).min() < 0
    found, residuals = inverse_roots(matrices, power, ridge, method="eigh")
    expected = root_in_float64(matrices, power, ridge)
    errors = np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert np.all(errors < 1e-6)
    assert np.all(residuals < 2e-3)


@pytest.mark.parametrize("rank", [1, 12, 24])
@pytest.mark.parametrize(("method", "relative"), [("eigh", False), ("newton", False), ("newton", True)])
def test_a_ridge_is_at_least_what_the_methods_precision_allows(rank, method, relative):
    """A smaller one gives the same root, bit for bit, and no rounding for a root."""
    matrices = of_rank(rank)
    scale = 1.0 if relative else np.linalg.eigvalsh(np.float64(matrices)).max()
    least = roots.LEAST_RIDGE[method] * scale
    found, residuals = inverse_roots(matrices, 4, 1e-3 * least, relative=relative, method=method)
    assert np.all(residuals < 1e-2)
    if relative:
        expected = root_in_float64(matrices, 4, least)
        bar = 2e-2 * np.max(np.abs(expected), axis=(1, 2), keepdims=True)
        assert np.all(np.abs(found - expected) < bar)
    else:
        even_less, _ = inverse_roots(matrices, 4, 1e-6 * least, relative=False, method=method)
        np.testing.assert_array_equal(found, even_less)


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_have_no_root(value, method):
    matrices = np.array(of_rank(24))
    matrices[0, 3, 5] = matrices[0, 5, 3] = value
    _, residuals = inverse_roots(matrices, 4, method=method)
    assert not residuals[0] <= shampoo.TOLERANCE
    assert residuals[1] <= shampoo.TOLERANCE


def test_a_root_that_float32_cannot_hold_is_none():
    """1e-42, to the power of -1."""
    _, residuals = inverse_roots(1e-30 * of_rank(3), 1, 1e-12, method="eigh")
    assert np.all(residuals > shampoo.TOLERANCE)


def test_the_decomposition_of_another_matrix_is_refused(monkeypatch):
    """As of a LAPACK that returned what was in its memory."""
    eigh = jnp.linalg.eigh
    monkeypatch.setattr(roots.jnp.linalg, "eigh", lambda a: eigh(a[::-1, ::-1]))
    _, residuals = inverse_roots(of_rank(12), 4, 1e-8, method="eigh")
    assert np.all(residuals > shampoo.TOLERANCE)


# Grafts


@pytest.mark.parametrize("graft", grafting.GRAFTS)
def test_directions_have_the_length_of_the_graft(graft):
    """Written out in numpy, after five steps."""
    grads = gradients(SHAPES, 5)
    updates, _ = updates_of(scale_by_shampoo(0.9, 0.8, graft=graft, interval=1), grads)
    for name in SHAPES:
        m = v = 0.0
        for g in grads:
            g = np.float64(g[name])
            unit = g / np.linalg.norm(g) if "normalized" in graft else g
            m = 0.9 * m + 0.1 * g
            v = v + unit**2 if "adagrad" in graft else 0.8 * v + 0.2 * unit**2
        m = m / (1 - 0.9**5)
        m = m / np.linalg.norm(m) if "normalized" in graft else m
        v = v / (1 - 0.8**5) if graft == "adam" else v
        length = m if graft in ("sgd", "normalized") else m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(np.linalg.norm(updates[-1][name]), np.linalg.norm(length), rtol=1e-4)


def test_an_unknown_graft_is_refused():
    with pytest.raises(ValueError, match="graft='adamw': Shampoo takes one of none, sgd"):
        scale_by_shampoo(graft="adamw")


# All together


def test_shampoo_equals_a_dense_reference():
    """Twenty steps of the formula in float64 numpy, on a matrix, a vector and a kernel."""
    b1, b2, sb, interval, ridge, eps = 0.9, 0.99, 0.8, 4, 1e-4, 1e-8
    optimizer = scale_by_shampoo(b1, b2, sb, interval=interval, stagger=False, ridge=ridge, eps=eps)
    grads = gradients(SHAPES, 20)
    updates, _ = updates_of(optimizer, grads)
    for name, shape in SHAPES.items():
        matrix = (-1, shape[-1]) if len(shape) > 2 else shape
        m = v = 0.0
        statistics, found = {}, {}
        for i, g in enumerate(grads):
            g = np.asarray(g[name], np.float64).reshape(matrix)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            direction = m
            for axis in range(g.ndim):
                flat = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
                statistics[axis] = sb * statistics.get(axis, 0.0) + (1 - sb) * flat @ flat.T
                if i % interval == 0:
                    found[axis] = root_in_float64(statistics[axis], 2 * g.ndim, ridge)
                direction = np.moveaxis(np.tensordot(found[axis], direction, (1, axis)), 0, axis)
            adam = (m / (1 - b1 ** (i + 1))) / (np.sqrt(v / (1 - b2 ** (i + 1))) + eps)
            expected = direction / np.linalg.norm(direction) * np.linalg.norm(adam)
            error = np.linalg.norm(np.asarray(updates[i][name]).reshape(matrix) - expected)
            assert error < 1e-3 * np.linalg.norm(expected), (name, i)


def test_a_block_as_large_as_the_matrix_is_no_block():
    grads = gradients({"w": (6, 4), "b": (6,)}, 8)
    options = {"interval": 2, "graft": "adam"}
    assert_same(
        updates_of(scale_by_shampoo(block=6, **options), grads)[0],
        updates_of(scale_by_shampoo(block=1000, **options), grads)[0],
    )


def test_blocks_are_preconditioned_as_if_they_were_tensors():
    grads = gradients({"w": (5, 6)}, 8)
    parts = [(slice(i, i + 4), slice(j, j + 4)) for i, j in itertools.product((0, 4), (0, 4))]
    cut = [{str(k): g["w"][part] for k, part in enumerate(parts)} for g in grads]
    options = {"interval": 3, "graft": "none"}
    updates, _ = updates_of(scale_by_shampoo(block=4, **options), grads)
    of_parts, _ = updates_of(scale_by_shampoo(merge=1, keep_last=False, **options), cut)
    for whole, separate in zip(updates, of_parts, strict=True):
        for k, part in enumerate(parts):
            # A remainder of one row is a matrix with an axis of length 1, which merging drops.
            if 1 not in separate[str(k)].shape:
                np.testing.assert_allclose(whole["w"][part], separate[str(k)], rtol=1e-4, atol=1e-5)


def test_staggered_roots_of_constant_statistics_are_the_plain_ones():
    """With one and the same gradient, and statistics without memory."""
    grads = gradients(SHAPES, 1) * 12
    options = {"interval": 4, "graft": "adam", "block": 3, "shampoo_b2": 0.0}
    staggered, plain = (
        updates_of(scale_by_shampoo(stagger=stagger, **options), grads)[0] for stagger in (True, False)
    )
    assert_same(staggered[4:], plain[4:], rtol=1e-3, atol=1e-4)


def test_staggered_with_an_interval_of_one_is_plain():
    grads = gradients(SHAPES, 6)
    assert_same(
        updates_of(scale_by_shampoo(interval=1, stagger=True), grads)[0],
        updates_of(scale_by_shampoo(interval=1, stagger=False), grads)[0],
    )


def test_staggered_every_root_is_renewed_once_in_an_interval_and_each_step_does_its_share():
    """Eight blocks [4, 4] have sixteen roots; with an interval of 5 a step renews 3 or 4."""
    optimizer = scale_by_shampoo(block=4, interval=5, shampoo_b2=0.5)
    grads = gradients({"w": (8, 8), "u": (8, 8)}, 11)
    state, renewals = optimizer.init(grads[0]), []
    for g in grads:
        before = np.concatenate(state.blocks[0].roots)
        _, state = optimizer.update(g, state)
        renewals.append(np.any(np.concatenate(state.blocks[0].roots) != before, axis=(1, 2)))
    renewals = np.array(renewals)
    assert set(renewals.sum(1)) == {3, 4}
    np.testing.assert_array_equal(renewals[:5].sum(0), 1)
    np.testing.assert_array_equal(renewals[5:10], renewals[:5])
    np.testing.assert_array_equal(renewals[10], renewals[0])


def test_until_all_roots_have_been_computed_and_before_start_directions_are_the_grafts():
    grads = gradients(SHAPES, 9)
    adam, _ = updates_of(optax.scale_by_adam(0.9, 0.95), grads)
    for options, first in (({"interval": 4}, 3), ({"interval": 4, "stagger": False, "start": 6}, 6)):
        updates, _ = updates_of(scale_by_shampoo(0.9, 0.95, **options), grads)
        assert_same(updates[:first], adam[:first])
        assert not np.allclose(updates[first]["matrix"], adam[first]["matrix"], rtol=1e-2)


@pytest.mark.parametrize(("ridge", "bar"), [(1e-6, 1e-3), (1e-8, 3e-3), (1e-10, 2e-2), (1e-12, 1e-1)])
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("graft", ["none", "adam"])
def test_updates_of_gradients_of_deficient_rank_equal_float64(graft, rank, ridge, bar):
    """As with Meta's published settings: small ridges, roots at every step, Adam's length.

    The bars are what the rounding of the gradients to float32 costs: the roots lengthen its part
    outside of the gradients' space by ridge^(-1/4) on each side.
    """
    rng = np.random.default_rng(rank)
    left, right = rng.normal(size=(20, rank)), rng.normal(size=(rank, 12))
    middles = np.eye(rank) + 0.3 * rng.normal(size=(8, rank, rank)) / rank**0.5
    grads = [np.float32(left @ middle @ right) for middle in middles]
    optimizer = scale_by_shampoo(0.9, 0.99, 0.95, interval=1, start=0, ridge=ridge, graft=graft)
    updates, state = updates_of(optimizer, [{"w": jnp.asarray(g)} for g in grads])
    assert state.failures == 0
    m = v = row = column = 0.0
    for t, (g, update) in enumerate(zip(map(np.float64, grads), updates, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        row, column = 0.95 * row + 0.05 * g @ g.T, 0.95 * column + 0.05 * g.T @ g
        top = m / (1 - 0.9**t)
        expected = root_in_float64(row, 4, ridge) @ top @ root_in_float64(column, 4, ridge)
        if graft == "adam":
            length = np.linalg.norm(top / (np.sqrt(v / (1 - 0.99**t)) + 1e-8))
            expected *= length / np.linalg.norm(expected)
        assert np.linalg.norm(update["w"] - expected) < bar * np.linalg.norm(expected)


def test_a_root_that_fails_keeps_the_old_one_and_is_counted():
    """Statistics that overflow have no root."""
    optimizer = scale_by_shampoo(interval=1)
    (good,) = gradients({"w": (4, 3), "v": (4,)}, 1)
    _, before = optimizer.update(good, optimizer.init(good))
    assert before.failures == 0
    _, after = optimizer.update({"w": jnp.full((4, 3), 1e25), "v": good["v"]}, before)
    assert after.failures == 2
    for old, new in zip(before.blocks, after.blocks, strict=True):
        same = [np.array_equal(a, b) for a, b in zip(old.roots, new.roots, strict=True)]
        assert same == ([True, True] if len(same) == 2 else [False])


def test_a_singular_statistic_without_a_ridge_has_no_root_and_is_counted():
    """One gradient of rank one: L and R have rank one, and R of a vector as long as 1 has full rank."""
    optimizer = scale_by_shampoo(interval=1, ridge=0.0)
    grads = {"w": jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(1.0, 4.0)), "v": jnp.ones(1)}
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    assert shampoo.diagnostics((state,))["failed_roots"] == 2
    _, state = jax.jit(optimizer.update)(grads, state)
    assert shampoo.diagnostics((state,))["failed_roots"] == 4


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_the_condition_number_is_the_largest_of_all_statistics(ridge):
    """Matrices of two sizes and a diagonal, all of known spectra; blocks that are still zero are I."""
    optimizer = scale_by_shampoo(ridge=ridge, longest=40)
    state = optimizer.init({"w": jnp.zeros((24, 6)), "v": jnp.zeros(6), "long": jnp.zeros(50)})
    assert shampoo.diagnostics((state,))["condition_number"] == 1

    def with_statistics(large, small, diagonal):
        made = {24: with_condition(large, 1, 24), 6: with_condition(small, 1, 6)}
        line = np.logspace(0, -np.log10(diagonal), 50)[None]
        blocks = tuple(
            b._replace(statistics=tuple(jnp.float32(made.get(s.shape[1], line)) for s in b.statistics))
            for b in state.blocks
        )
        return (state._replace(blocks=blocks),)

    for conditions in [(1e4, 10, 100), (10, 1e4, 100), (10, 100, 1e4)]:
        found = jax.jit(shampoo.diagnostics)(with_statistics(*conditions))["condition_number"]
        np.testing.assert_allclose(found, (1 + ridge) / (1e-4 + ridge), rtol=1e-3)
    singular = shampoo.diagnostics(with_statistics(1e30, 1, 1))["condition_number"]
    np.testing.assert_allclose(singular, (1 + ridge) / ridge, rtol=0.2)


def test_vmapped_condition_numbers_are_those_of_each():
    matrices = jnp.float32(np.stack([with_condition(1e6), with_condition(1e2)]))
    found = jax.jit(jax.vmap(lambda m: roots.condition_numbers(m, 1e-8)))(matrices)
    np.testing.assert_allclose(found, [[1e6] * 3, [1e2] * 3], rtol=0.2)


def test_diagnostics_are_those_of_a_trials_state():
    spec = registry.find("shampoo")
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    optimizer = spec.build(10)
    _, state = optimizer.update(params, optimizer.init(params), params)
    found = spec.diagnostics(state)
    assert {name: value.shape for name, value in found.items()} == {
        "failed_roots": (), "condition_number": (),
    }  # fmt: skip
    assert found["failed_roots"] == 0
    assert found["condition_number"] > 1e5


def test_shampoo_of_diagonal_matrices_is_adagrad():
    """L = R = sum D^2, so that L^(-1/4) D R^(-1/4) = D / sqrt(sum D^2)."""
    grads = [{"w": jnp.diag(g["d"])} for g in gradients({"d": (5,)}, 6)]
    options = {"accumulate": "sum", "interval": 1, "ridge": 1e-9, "graft": "none"}
    updates, _ = updates_of(scale_by_shampoo(None, **options), grads)
    adagrad, _ = updates_of(optax.scale_by_rss(0.0, eps=0.0), grads)
    assert_same(updates, adagrad, rtol=1e-4)


def test_a_long_vector_has_adagrads_diagonal():
    grads = gradients({"v": (50,)}, 6)
    options = {"accumulate": "sum", "interval": 1, "ridge": 1e-12, "graft": "none", "longest": 40}
    updates, state = updates_of(scale_by_shampoo(None, block=8, **options), grads)
    adagrad, _ = updates_of(optax.scale_by_rss(0.0, eps=0.0), grads)
    assert_same(updates, adagrad, rtol=1e-4)
    assert state.blocks[0].statistics[0].shape == (1, 50)


def test_the_short_side_of_a_long_matrix_is_preconditioned_in_full():
    _, state = updates_of(scale_by_shampoo(longest=40, block=8), gradients({"w": (50, 6)}, 1))
    assert [s.shape for s in state.blocks[0].statistics] == [(1, 50), (1, 6, 6)]


def test_without_memory_the_direction_is_orthogonal():
    """(G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T."""
    grads = gradients({"w": (6, 6)}, 3)
    optimizer = scale_by_shampoo(None, shampoo_b2=0.0, interval=1, ridge=1e-9, graft="none")
    for update, g in zip(updates_of(optimizer, grads)[0], grads, strict=True):
        u, _, v = np.linalg.svd(np.float64(g["w"]))
        np.testing.assert_allclose(update["w"], u @ v, atol=2e-3)
