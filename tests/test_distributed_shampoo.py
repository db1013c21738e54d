"""Ours equals Google's; where they differ by more than rounding, ours is nearer to float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers import distributed_shampoo, shampoo

STEPS, RIDGE, MERGE = 30, 1e-6, 16
# Shape -> what it becomes when axes of a product up to 16 are merged.
SETS = {
    "mlp": {(12, 20): (12, 20), (20,): (20,), (20, 6): (20, 6)},
    "convolutions": {(3, 3, 2, 8): (9, 16), (2, 2, 6, 12): (4, 6, 12), (1, 1, 1, 8): (8,)},
    "odd": {(5, 7, 9): (5, 7, 9), (140, 3): (140, 3), (1, 3, 4): (12,)},
}


def anisotropic(shapes, seed=0):
    """Gradients whose axes have singular values from 1 to 1/30."""
    rng = np.random.default_rng(seed)

    def mixing(d):
        left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
        return (left * np.logspace(0, -1.5, d)) @ right

    mixings = [[mixing(d) for d in shape] for shape in shapes]
    for _ in range(STEPS):
        gradients = []
        for shape, mixing_of in zip(shapes, mixings, strict=True):
            g = rng.normal(size=shape)
            for axis, matrix in enumerate(mixing_of):
                g = np.moveaxis(np.tensordot(matrix, g, (1, axis)), 0, axis)
            gradients.append(np.float32(g))
        yield gradients


def updates_of(optimizer, shapes):
    params = [jnp.zeros(shape) for shape in shapes]
    stacked = [jnp.stack(leaf) for leaf in zip(*anisotropic(shapes), strict=True)]

    def step(state, grads):
        update, state = optimizer.update(grads, state, params)
        return state, update

    return jax.device_get(jax.jit(lambda g: jax.lax.scan(step, optimizer.init(params), g)[1])(stacked))


def in_float64(shapes, block, graft, decay):
    """The same algorithm written out for one tensor after the other, in numpy."""
    take = 1 - decay if decay < 1 else 1.0
    tensors = list(zip(*anisotropic(list(shapes)), strict=True))
    return [one_in_float64(tensor, merged, block, graft, decay, take)
            for tensor, merged in zip(tensors, shapes.values(), strict=True)]  # fmt: skip


def one_in_float64(gradients, merged, block, graft, decay, take):
    cuts = [[slice(i, min(i + block, d)) for i in range(0, d, block)] for d in merged]
    grid = list(itertools.product(*cuts))
    statistics = [[RIDGE * np.eye(cut.stop - cut.start) for cut in b] for b in grid]
    second, momentum, updates = 0.0, 0.0, []
    for shaped in gradients:
        g = shaped.astype(np.float64).reshape(merged)
        direction = np.empty_like(g)
        for i, b in enumerate(grid):
            d = part = g[b]
            for a in range(part.ndim):
                flat = np.moveaxis(part, a, 0).reshape(part.shape[a], -1)
                statistics[i][a] = decay * statistics[i][a] + take * flat @ flat.T
                values, vectors = np.linalg.eigh(statistics[i][a])
                values = np.maximum(values, 0) + RIDGE * values[-1]
                root = (vectors * values ** (-1 / (2 * part.ndim))) @ vectors.T
                d = np.moveaxis(np.tensordot(root, d, (1, a)), 0, a)
            direction[b] = d
        unit = g / np.linalg.norm(g) if "normalized" in graft else g
        second = decay * second + take * unit**2 if "rms" in graft else second + unit**2
        length = unit if graft == "sgd" else unit / (np.sqrt(second) + 1e-10)
        direction *= np.linalg.norm(length) / np.linalg.norm(direction)
        momentum = 0.9 * momentum + direction
        updates.append((direction + 0.9 * momentum).reshape(shaped.shape))
    return np.stack(updates)


def errors(updates, truth):
    """[tensors, steps]: relative, in the Frobenius norm."""
    return np.array(
        [
            [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(u, t, strict=True)]
            for u, t in zip(updates, truth, strict=True)
        ]
    )


@pytest.mark.parametrize("decay", [0.95, 1.0], ids=["averaged", "summed"])
@pytest.mark.parametrize("graft", ["sgd", "rmsprop_normalized", "adagrad"])
@pytest.mark.parametrize("block", [128, 4])
@pytest.mark.parametrize("name", SETS)
def test_ours_equals_googles(name, block, graft, decay):
    shapes = SETS[name]
    theirs = distributed_shampoo.scale_by_distributed_shampoo(
        graft_type=graft,
        beta1=0.9,
        beta2=decay,
        nesterov=True,
        block_size=block,
        merge_small_dims_block_size=MERGE,
        matrix_epsilon=RIDGE,
        diagonal_epsilon=1e-10,
        preconditioning_compute_steps=1,
        start_preconditioning_step=0,
    )
    ours = optax.chain(
        shampoo.scale_by_shampoo(
            b1=None,
            b2=decay,
            shampoo_b2=decay,
            accumulate="sum" if decay == 1 else "average",
            initial=RIDGE,
            interval=1,
            block=block,
            merge=MERGE,
            keep_last=False,
            ridge=RIDGE,
            graft=graft.replace("rmsprop", "adagrad") if decay == 1 else graft,
            eps=1e-10,
        ),
        optax.trace(0.9, nesterov=True),
    )
    truth = in_float64(
        shapes, block, "adagrad_normalized" if decay == 1 and "rms" in graft else graft, decay
    )
    our_updates, their_updates = (updates_of(o, list(shapes)) for o in (ours, theirs))
    apart = errors(our_updates, their_updates)
    our_error, their_error = errors(our_updates, truth), errors(their_updates, truth)
    bar = 5e-3 if decay == 1 else 1e-3
    theirs_well = their_error <= bar / 2
    print(
        f"\n| {name} | {block} | {graft} | {'summed' if decay == 1 else 'averaged'} "
        f"| {np.mean(theirs_well):.0%} | {np.max(apart[theirs_well]):.1e} | {np.median(apart):.1e} "
        f"| {np.max(our_error):.1e} | {np.median(our_error):.1e} "
        f"| {np.max(their_error):.1e} | {np.median(their_error):.1e} |"
    )  # with -s: the table of docs/optimizers.md
    assert np.mean(theirs_well) > 0.5
    assert np.all(apart[theirs_well] <= bar)
    assert np.all(our_error[~theirs_well] < their_error[~theirs_well])
    assert np.median(our_error) <= 1e-4
    assert np.median(apart) <= 1e-4 or np.median(their_error) > 1e-4
