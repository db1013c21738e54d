"""Mathematical properties of single optimizers: special cases, equivariances, references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from optimizers import (
    adafactor,
    adam,
    ademamix,
    distributed_shampoo,
    lamb,
    lbfgs,
    lion,
    muon,
    nadamw,
    prodigy,
    psgd,
    sam,
    schedule_free,
    sgd,
    sgd_line_search,
    soap,
    sophia,
)
from optimizers.shampoo import scale_by_shampoo
from tests.test_shampoo import assert_same, gradients, updates_of

SHAPES = {"w": (5, 4), "b": (4,), "t": (2, 2, 3, 4)}
PLAIN = {"weight_decay": 0.0, "clip": 1e9, "warmup": 0.0}


def random_rotation(d):
    return np.linalg.qr(np.asarray(random.normal(random.key(7), (d, d))))[0]


# SGD, momentum, Adam, NAdam nest


def test_momentum_without_memory_is_gradient_descent():
    grads = gradients(SHAPES, 4)
    assert_same(updates_of(sgd.direction(momentum=0.0), grads)[0], grads)


def test_nadam_without_momentum_is_adam_without_momentum():
    grads = gradients(SHAPES, 5)
    assert_same(
        updates_of(nadamw.direction(b1=0.0), grads)[0], updates_of(adam.direction(b1=0.0), grads)[0]
    )


def test_adam_of_a_large_epsilon_is_debiased_momentum():
    grads, eps = gradients(SHAPES, 5), 1e6
    scaled = optax.chain(adam.direction(eps=eps), optax.scale(eps))
    assert_same(updates_of(scaled, grads)[0], updates_of(optax.ema(0.9), grads)[0], rtol=1e-4)


def test_nadam_is_adam_with_the_average_one_step_ahead():
    """Both averages debiased, in numpy."""
    m = v = 0.0
    grads = gradients({"w": (3,)}, 6)
    for t, (update, g) in enumerate(
        zip(updates_of(nadamw.direction(), grads)[0], grads, strict=True), 1
    ):
        g = np.float64(g["w"])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        np.testing.assert_allclose(update["w"], ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), rtol=1e-4)


# Relatives of Adam


def test_ademamix_without_its_slow_average_is_adam():
    grads = gradients(SHAPES, 5)
    rate = {"learning_rate": 0.1, **PLAIN}
    assert_same(
        run(ademamix.build(5, alpha=0.0, **rate), grads), run(adam.build(5, **rate), grads), rtol=1e-4
    )


def run(optimizer, grads):
    """Updates along given gradients, of an optimizer that needs parameters."""
    params, updates = jax.tree.map(jnp.ones_like, grads[0]), []
    state = optimizer.init(params)
    for g in grads:
        u, state = optimizer.update(g, state, params)
        updates.append(u)
    return updates


def test_lamb_steps_are_as_long_as_the_tensor():
    grads = gradients(SHAPES, 3)
    (update, *_) = run(lamb.build(10, learning_rate=0.1, **PLAIN), grads)
    for name, shape in SHAPES.items():
        np.testing.assert_allclose(jnp.linalg.norm(update[name]), 0.1 * np.prod(shape) ** 0.5, rtol=1e-4)


def test_lion_is_a_sign():
    grads = gradients(SHAPES, 2)
    first, second = updates_of(lion.direction(), grads)[0]
    assert_same(first, jax.tree.map(jnp.sign, grads[0]))
    mixed = jax.tree.map(lambda a, b: jnp.sign(0.9 * 0.01 * a + 0.1 * b), *grads)
    assert_same(second, mixed)


def test_adafactor_of_a_rank_one_second_moment_is_exact():
    """Of |a b^T|^2 nothing is lost by factoring: the first direction is the sign, clipped to rms 1."""
    a, b = (random.normal(random.key(i), (40,)) for i in range(2))
    g = {"w": jnp.outer(a, b)}
    optimizer = adafactor.direction(b1=0.0)
    update, _ = optimizer.update(g, optimizer.init(g), g)
    assert_same(update, jax.tree.map(jnp.sign, g), rtol=1e-3)


def test_prodigy_equals_optax():
    grads = gradients(SHAPES, 12)
    ours = optax.with_extra_args_support(prodigy.prodigy(lambda step: 1.0, 0.9, 0.999, 1e-8))
    theirs = optax.contrib.prodigy(1.0)
    params = jax.tree.map(jnp.ones_like, grads[0])
    states, both = [o.init(params) for o in (ours, theirs)], [params, params]
    for g in grads:
        for i, optimizer in enumerate((ours, theirs)):
            u, states[i] = optimizer.update(g, states[i], both[i])
            both[i] = optax.apply_updates(both[i], jax.tree.map(lambda u: 1e3 * u, u))
    assert_same(both[0], both[1], rtol=1e-5)
    np.testing.assert_allclose(states[0].d, states[1].estim_lr, rtol=1e-4)
    assert states[0].d > 1e-6


# SAM


def test_sam_of_radius_zero_is_adam():
    def value_fn(p):
        return jnp.sum(jnp.array([1.0, 4.0, 9.0]) * p**2) / 2

    paths = []
    for optimizer in (sam.direction(rho=0.0), optax.with_extra_args_support(adam.direction())):
        params, state = jnp.ones(3), optimizer.init(jnp.ones(3))
        for _ in range(4):
            u, state = optimizer.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
            params = params - 0.1 * u
        paths.append(params)
    assert_same(*paths)


def test_sam_takes_the_gradient_at_the_worst_point():
    """Of p A p / 2 it is A (p + rho A p / |A p|)."""
    a = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    p = jnp.array([1.0, -1.0, 0.5])
    g = a @ p
    optimizer = sam.at_worst_point(0.1)
    value_fn = lambda p: p @ a @ p / 2  # noqa: E731
    found, _ = optimizer.update(g, optimizer.init(p), p, value_fn=value_fn)
    np.testing.assert_allclose(found, a @ (p + 0.1 * g / jnp.linalg.norm(g)), rtol=1e-5)


# Schedule-free


def descend(optimizer, params, grad, steps):
    state, path = optimizer.init(params), [params]
    for _ in range(steps):
        updates, state = optimizer.update(grad(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def quadratic_gradient(p):
    return jnp.array([1.0, 4.0, 9.0]) * p


def test_schedule_free_with_beta_0_is_plain_descent_evaluated_at_its_average():
    start = jnp.array([1.0, -2.0, 3.0])
    base = optax.identity()
    path, state = descend(
        schedule_free.schedule_free(base, 0.1, 0.0, 0.0, 0.0), start, quadratic_gradient, 7
    )
    plain, _ = descend(optax.sgd(0.1), start, quadratic_gradient, 7)
    assert_same(path, plain)
    assert_same(schedule_free.eval_params(state, path[-1]), jnp.mean(jnp.stack(plain[1:]), axis=0))


def test_schedule_free_with_beta_1_takes_gradients_at_the_average():
    start = jnp.array([1.0, -2.0, 3.0])
    optimizer = schedule_free.schedule_free(optax.identity(), 0.1, 0.0, 1.0, 0.0)
    path, state = descend(optimizer, start, quadratic_gradient, 7)
    z, points = start, [start]
    for t in range(7):
        z = z - 0.1 * quadratic_gradient(points[-1])
        points.append(points[-1] + (z - points[-1]) / (t + 1))
    assert_same(path, points)
    assert_same(state.x, points[-1])


def test_schedule_free_equals_optax():
    start = jnp.array([1.0, -2.0, 3.0])
    ours, state = descend(
        schedule_free.schedule_free(optax.identity(), 0.1, 0.0, 0.9, 0.0), start, quadratic_gradient, 9
    )
    theirs, their_state = descend(
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9), start, quadratic_gradient, 9
    )
    assert_same(ours, theirs, rtol=1e-4)
    evaluated = optax.contrib.schedule_free_eval_params(their_state, theirs[-1])
    assert_same(schedule_free.eval_params(state, ours[-1]), evaluated, rtol=1e-4)


# Muon, SOAP, Shampoo


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_orthogonalizes(shape):
    """Singular vectors stay, singular values come to between 0.65 and 1.25."""
    (g,) = gradients({"w": shape}, 1)
    u, _, v = np.linalg.svd(g["w"], full_matrices=False)
    turned = u.T @ np.asarray(muon.orthogonalize(g["w"])) @ v.T
    values = np.diagonal(turned)
    assert np.all((values > 0.65) & (values < 1.25))
    np.testing.assert_allclose(turned, np.diag(values), atol=1e-4)


def test_shampoo_without_memory_is_what_muon_approximates():
    """L^(-1/4) G R^(-1/4) = U V^T with L = G G^T and R = G^T G, of a well-conditioned G."""
    for noise in gradients({"w": (8, 8)}, 3):
        g = {"w": jnp.float32(random_rotation(8) + 0.1 * noise["w"])}
        shampoo = scale_by_shampoo(None, shampoo_b2=0.0, interval=1, ridge=1e-9, graft="none")
        exact = np.ravel(updates_of(shampoo, [g])[0][0]["w"])
        near = np.ravel(updates_of(muon.scale_by_muon(0.0), [g])[0][0]["w"])
        assert exact @ near > 0.97 * np.linalg.norm(exact) * np.linalg.norm(near)


@pytest.mark.parametrize(
    "optimizer",
    [
        muon.scale_by_muon(0.9),
        soap.scale_by_soap(0.9, 0.95, 0.9, 1e-8, 1, 100),
        soap.scale_by_soap(0.9, 0.95, 0.9, 1e-8, 3, 100),
        scale_by_shampoo(0.9, interval=2, graft="sgd", stagger=False),
    ],
    ids=["muon", "soap", "soap-interval", "shampoo"],
)
def test_rotating_the_inputs_of_a_layer_rotates_the_path(optimizer):
    rotation = random_rotation(6)
    grads = gradients({"w": (6, 6)}, 8)
    rotated = [{"w": jnp.float32(rotation @ g["w"])} for g in grads]
    for plain, turned in zip(
        updates_of(optimizer, grads)[0], updates_of(optimizer, rotated)[0], strict=True
    ):
        expected = rotation @ plain["w"]
        np.testing.assert_allclose(turned["w"], expected, atol=5e-3 * np.max(np.abs(expected)))


def test_adam_does_not_rotate():
    """The test above can fail."""
    rotation = random_rotation(6)
    (g,) = gradients({"w": (6, 6)}, 1)
    plain, turned = (
        updates_of(adam.direction(), [{"w": x}])[0][0]["w"] for x in (g["w"], rotation @ g["w"])
    )
    assert not np.allclose(turned, rotation @ plain, atol=0.1)


def test_soap_with_identity_bases_is_adam():
    grads = gradients(SHAPES, 6)
    assert_same(
        updates_of(soap.direction(b1=0.9, b2=0.99, interval=0), grads)[0],
        updates_of(adam.direction(b1=0.9, b2=0.99), grads)[0],
        rtol=1e-4,
    )


def test_soap_equals_a_dense_reference():
    grads, (b1, b2, sb, interval) = gradients({"w": (5, 5)}, 7), (0.9, 0.95, 0.8, 3)
    updates, _ = updates_of(soap.scale_by_soap(b1, b2, sb, 1e-8, interval, 100), grads)
    m = v = left = right = 0.0
    p = q = np.eye(5)
    for t, (update, g) in enumerate(zip(updates, grads, strict=True)):
        g = np.float64(g["w"])
        if t == 0:
            np.testing.assert_array_equal(update["w"], 0)
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (p.T @ g @ q) ** 2
            turned = (p.T @ m @ q) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
            np.testing.assert_allclose(update["w"], p @ turned @ q.T, atol=2e-3)
        left, right = sb * left + g @ g.T, sb * right + g.T @ g
        if t % interval == 0:
            p, q = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]


def test_muon_is_for_hidden_kernels_only():
    params = {
        "dense1": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "conv": {"kernel": jnp.ones((2, 2, 3, 4))},
        "norm": {"scale": jnp.ones((1, 1, 1, 4))},
        "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    }
    assert muon.labels(params) == {
        "dense1": {"kernel": "muon", "bias": "adam"},
        "conv": {"kernel": "muon"},
        "norm": {"scale": "adam"},
        "head": {"kernel": "adam", "bias": "adam"},
    }


def test_the_private_copy_of_googles_module_is_not_shared():
    from precondition import distributed_shampoo as public

    private = distributed_shampoo.module()
    assert private is not public
    assert public.jax is jax
    assert not hasattr(jax, "tree_map")


def test_an_unknown_graft_of_googles_is_refused():
    with pytest.raises(ValueError, match="graft='adamw': distributed_shampoo takes one of"):
        distributed_shampoo.scale_by_distributed_shampoo(graft_type="adamw", block_size=4)


# PSGD


def test_psgd_whitens():
    """Of gradients A N B with N of independent entries, Q^T Q G R^T R has independent ones."""
    d = 6
    a, b = (
        random_rotation(d) * s @ random_rotation(d)
        for s in (np.logspace(0, 1, d), np.logspace(0, -1, d))
    )
    normal = random.normal(random.key(0), (4000, 2, d, d))
    samples = jnp.float32(a) @ normal[:, 0] @ jnp.float32(b)

    def step(factors, sample):
        g, noise = sample
        return psgd.fit(factors, g, noise, 0.03), None

    factors, _ = jax.lax.scan(step, (jnp.eye(d), jnp.eye(d)), (samples, normal[:, 1]))
    white = jax.vmap(lambda g: psgd.whiten(factors, g))(samples[2000:])
    for gram in (
        jnp.mean(white @ jnp.swapaxes(white, 1, 2), 0),
        jnp.mean(jnp.swapaxes(white, 1, 2) @ white, 0),
    ):
        values = np.linalg.eigvalsh(gram / jnp.trace(gram) * d)
        assert values[0] > 0.6
        assert values[-1] < 1.6
    before = np.linalg.eigvalsh(jnp.mean(samples @ jnp.swapaxes(samples, 1, 2), 0))
    assert before[-1] / before[0] > 50


def test_psgd_whitens_to_size_1_at_any_scale():
    sizes = []
    for scale in (1e-3, 1.0, 1e3):
        factors = (jnp.eye(5), jnp.eye(4))
        for i in range(400):
            g, noise = (random.normal(random.key(2 * i + j), (5, 4)) for j in range(2))
            factors = psgd.fit(factors, scale * g, noise, 0.5 if i < 200 else 0.05)
        sizes.append(float(jnp.sqrt(jnp.mean(psgd.whiten(factors, scale * g) ** 2))))
    np.testing.assert_allclose(sizes, 1, rtol=0.5)


def test_psgd_waits_while_there_is_no_gradient():
    factors = (jnp.eye(3), jnp.eye(2))
    for i in range(20):
        noise = random.normal(random.key(i), (3, 2))
        assert_same(psgd.fit(factors, jnp.zeros((3, 2)), noise, 0.5), factors)


# Sophia


def test_sophias_estimate_is_unbiased():
    """Its mean over keys is the diagonal of J^T H J / n for logits J p, H the softmax' Fisher."""
    n, classes = 3, 4
    x = random.normal(random.key(0), (n, 2))
    params = random.normal(random.key(1), (2, classes))

    def logits_fn(p):
        return x @ p

    estimate = jax.vmap(lambda key: sophia.gauss_newton_bartlett(logits_fn, params, key))
    mean = jnp.mean(estimate(random.split(random.key(2), 20_000)), axis=0)
    p = jax.nn.softmax(logits_fn(params))
    expected = jnp.einsum("ni,nc->ic", x**2, p * (1 - p)) / n
    np.testing.assert_allclose(mean, expected, rtol=0.1)


def test_sophia_of_no_curvature_is_a_sign_and_of_much_a_newton_step():
    (g,) = gradients({"w": (4,)}, 1)

    def step(gamma):
        optimizer = sophia.direction(b1=0.0, b2=0.0, gamma=gamma)
        logits = lambda p: jnp.outer(p["w"], jnp.array([1.0, -1.0]))  # noqa: E731
        return optimizer.update(g, optimizer.init(g), g, logits_fn=logits, key=random.key(0))

    np.testing.assert_allclose(step(0.0)[0]["w"], jnp.sign(g["w"]))
    update, state = step(1e6)
    np.testing.assert_allclose(update["w"], g["w"] / (1e6 * state.curvature["w"]), rtol=1e-5)


# Through value_fn


def value_fn(p, key=None, logits_fn=None):
    return jnp.sum(jnp.array([1.0, 4.0, 9.0]) * p**2) / 2


@pytest.mark.parametrize("module", [lbfgs, sgd_line_search], ids=["lbfgs", "sgd_line_search"])
def test_with_a_line_search_the_value_only_falls(module):
    optimizer = module.build(30, learning_rate=1.0, weight_decay=0.0, warmup=0.0)
    params = jnp.array([1.0, -2.0, 3.0])
    state, values = optimizer.init(params), [value_fn(params)]
    for _ in range(10):
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "grad": grad, "value_fn": value_fn, "key": None, "logits_fn": None}
        updates, state = optimizer.update(grad, state, params, **extra)
        params = optax.apply_updates(params, updates)
        values.append(value_fn(params))
    assert np.all(np.diff(values) < 0)
    assert values[-1] < 1e-2 * values[0]
