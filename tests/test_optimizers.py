"""Shared tests: registering an optimizer is enough to run them on it."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from optimizers import recipe, registry
from testbed import records
from testbed.errors import RequestError
from testbed.training.batch import iterate_batch
from testbed.training.checkpoints import Checkpoints
from testbed.training.optimizer import from_spec
from tests.trials import finish, trial_of

STEPS = 30
NAMES = list(registry.registered())


def build(name: str, **hp):
    spec = registry.find(name)
    return optax.with_extra_args_support(spec.build(STEPS, **hp))


@pytest.fixture
def params():
    keys = iter(random.split(random.key(0), 9))
    return {
        "conv": {"kernel": random.normal(next(keys), (3, 3, 4, 6)), "bias": jnp.zeros(6)},
        "dense": {"kernel": random.normal(next(keys), (6, 5)), "bias": jnp.ones(5)},
        "norm": {"scale": jnp.ones((1, 1, 1, 6))},
        "temperature": jnp.float32(1.0),
    }


def build_for(name: str, steps: int):
    spec = registry.find(name)
    return optax.with_extra_args_support(
        spec.build(steps, learning_rate=spec.space["learning_rate"].high)
    )


def descend(optimizer, params, gradients):
    """The updates along given gradients."""
    state, updates = optimizer.init(params), []
    step = jax.jit(lambda g, s, p: optimizer.update(g, s, p, **extra(p, g)))
    for g in gradients:
        u, state = step(g, state, params)
        params = optax.apply_updates(params, u)
        updates.append(u)
    return updates, state


def extra(params, grads):
    def value_fn(p, key=None, logits_fn=None):  # optax's searches pass these on
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    return {
        "value": value_fn(params),
        "grad": grads,
        "value_fn": value_fn,
        "logits_fn": lambda p: jnp.zeros((2, 3)),
        "key": random.key(0),
    }


def gradients_like(params, n, scale=1.0):
    leaves, tree = jax.tree.flatten(params)
    for i in range(n):
        keys = random.split(random.key(i), len(leaves))
        noise = [scale * random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        yield jax.tree.unflatten(tree, noise)


@pytest.mark.parametrize("name", NAMES)
def test_updates_keep_tree_shapes_and_dtypes(name, params):
    (update, *_), state = descend(build(name), params, gradients_like(params, 2))
    assert jax.tree.structure(update) == jax.tree.structure(params)
    jax.tree.map(
        lambda u, p: (u.shape, u.dtype) == (p.shape, p.dtype) or pytest.fail(str(p.shape)),
        update,
        params,
    )
    start = build(name).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s) for s in (state, start)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_can_be_saved_and_restored(name, params, tmp_path):
    _, state = descend(build(name), params, gradients_like(params, 2))
    kept = Checkpoints(tmp_path / "state")
    kept.save(state, {})
    restored = kept.restore(jax.tree.map(jnp.zeros_like, state))
    kept.close()
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[0], state)


@pytest.mark.parametrize("name", NAMES)
def test_one_compilation(name, params):
    optimizer, traces = build(name), []

    @jax.jit
    def step(g, s, p):
        traces.append(1)
        return optimizer.update(g, s, p, **extra(p, g))

    # Some of optax's states start with weakly typed numbers; a trial's loop makes them strong.
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), optimizer.init(params))
    for g in gradients_like(params, 4):
        _, state = step(g, state, params)
    assert len(traces) == 1


@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("name", NAMES)
def test_zero_tiny_and_huge_gradients_give_finite_updates(name, scale, params):
    updates, state = descend(build(name), params, gradients_like(params, 25, scale))
    for leaf in jax.tree.leaves((updates, state)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", NAMES)
def test_a_quadratic_is_minimized(name):
    """f(p) = |p - 1|^2 / 2 on a matrix and a vector, from 0; half of the way is enough.

    With the largest learning rate that is searched: the schedule comes down from it.
    """
    params = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    optimizer = build_for(name, 300)
    state = jax.tree.map(jnp.asarray, optimizer.init(params))

    def value_fn(p, key=None, logits_fn=None):
        return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(p)) / 2

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        more = extra(params, grad) | {"value": value, "value_fn": value_fn}
        updates, state = optimizer.update(grad, state, params, **more)
        return optax.apply_updates(params, updates), state

    start = value_fn(params)
    for _ in range(300):
        params, state = step(params, state)
    evaluated = registry.find(name).eval_params
    assert value_fn(evaluated(state, params) if evaluated else params) < 0.25 * start


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_trial_improves_and_batched_it_is_the_same(name, tiny, out):
    trial = trial_of(tiny, name, steps=300)
    record = finish(trial, out)
    # Trials that differ in any float share one compilation.
    floats = [k for k, v in trial.optimizer.hyperparameters.items() if type(v) is float]
    assert sorted(trial.compile().hyperparameters) == sorted(floats)
    first, last = (record.measurements[i]["validation_kl"] for i in (0, -1))
    assert last < 0.9 * first
    # Batched, it is the same trial; after some steps rounding grows.
    for _ in iterate_batch([trial], out / "batched"):
        pass
    batched = records.read(trial.record_path(out / "batched"))
    assert not batched.header["timed"]
    one, other = ([m["validation_kl"] for m in r.measurements[:4]] for r in (batched, record))
    np.testing.assert_allclose(one, other, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_vmapped_over_a_hyperparameter_equals_separate_runs(name):
    """On a quadratic: with the rate, an optimizer's whole state is batched. Past all intervals."""
    # Square and random, since statistics without full rank have no one eigenbasis.
    params = {"kernel": random.normal(random.key(1), (4, 4)), "bias": jnp.zeros(3)}
    scale = {"kernel": random.uniform(random.key(2), (4, 4)) + 0.1, "bias": jnp.ones(3)}

    def value_fn(p, key=None, logits_fn=None):
        return sum(jax.tree.leaves(jax.tree.map(lambda s, x: jnp.sum(s * (x - 2) ** 2), scale, p)))

    def run(rate):
        optimizer = build(name, learning_rate=rate)

        def step(carry, key):
            params, state = carry
            value, grad = jax.value_and_grad(value_fn)(params)
            more = extra(params, grad) | {"value": value, "value_fn": value_fn, "key": key}
            updates, state = optimizer.update(grad, state, params, **more)
            return (optax.apply_updates(params, updates), state), None

        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), optimizer.init(params))
        return jax.lax.scan(step, (params, state), random.split(random.key(0), 24))[0][0]

    low, high = registry.find(name).space["learning_rate"][:2]
    rates = [low, (low * high) ** 0.5]
    batched = jax.jit(jax.vmap(run))(jnp.asarray(rates))
    for i, rate in enumerate(rates):
        jax.tree.map(
            lambda b, s, i=i: np.testing.assert_allclose(b[i], s, rtol=5e-3, atol=5e-3),
            batched,
            jax.jit(run)(rate),
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_declares_its_search_space_and_its_reference(name):
    spec = registry.find(name)
    defaults = registry.defaults(spec)
    assert spec.reference
    assert spec.name == name
    assert "learning_rate" in spec.space
    for hyperparameter, searched in spec.space.items():
        assert searched.low <= defaults[hyperparameter] <= searched.high
    for hyperparameter, bounds in spec.bounds.items():
        assert bounds.low <= defaults[hyperparameter] < bounds.high
    assert inspect.getdoc(spec.build)


# The recipe


def test_schedule_is_that_of_the_paper():
    """Warm-up from 0, 1 at its end, cosine, a little above 0 at the last update (docs/protocol.md)."""
    total, warm = 200, 20
    i = np.arange(total)
    expected = (
        0.5 * (1 + np.cos(np.pi * np.clip((i - warm) / (total - warm), 0, 1))) * np.minimum(1, i / warm)
    )
    ours = [recipe.schedule(jnp.float32(k), total, warm / total) for k in i]
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert ours[0] == 0
    assert ours[warm] == 1
    assert 0 < ours[-1] < 1e-3
    assert recipe.schedule(jnp.float32(0), total, 0.0) == 1


def test_recipe_is_clipped_decoupled_and_decays_kernels_only():
    """p <- p - s (lr g / max(1, |g|) + wd p on kernels), step by step in numpy."""
    params = {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.full(2, 3.0, np.float32)}
    hp = {"learning_rate": 0.5, "weight_decay": 0.1, "warmup": 0.2, "clip": 1.0}
    optimizer = recipe.recipe(optax.identity(), 10, **hp)
    state, ours = optimizer.init(params), params
    for i in range(10):
        grads = {
            "kernel": np.full((2, 2), 3 * (i % 2), np.float32),
            "bias": np.full(2, 0.01, np.float32),
        }
        norm = float(np.sqrt(sum(np.sum(g**2) for g in grads.values())))
        height = float(recipe.schedule(jnp.float32(i), 10, 0.2))
        params = {
            name: p - height * (0.5 * grads[name] / max(1, norm) + 0.1 * p * (name == "kernel"))
            for name, p in params.items()
        }
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, params)


# The registry


def test_any_optax_transformation_by_name():
    spec = registry.find("optax.lion")
    assert registry.defaults(spec)["b1"] == 0.9
    values = registry.configure(spec, {"learning_rate": "0.5"})
    update, _ = spec.build(10, **values).update(
        {"w": jnp.ones(2)}, spec.build(10, **values).init({"w": jnp.ones(2)}), {"w": jnp.zeros(2)}
    )
    np.testing.assert_allclose(update["w"], -0.5)
    assert registry.find("optax.contrib.prodigy").name == "optax.contrib.prodigy"


def test_any_importable_function_and_any_file(tmp_path: Path):
    assert registry.find("optimizers.adam:build").name == "optimizers.adam.build"
    file = tmp_path / "mine.py"
    file.write_text(
        "import optax\ndef build(total_steps, *, learning_rate=0.1):\n    return optax.sgd(0.1)\n"
    )
    one = registry.find(str(file))
    assert (one.name, registry.defaults(one)) == ("mine", {"learning_rate": 0.1})
    before = from_spec(one).sha256
    file.write_text(file.read_text() + "# changed\n")
    assert from_spec(registry.find(str(file))).sha256 != before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": "1"}, "did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "takes a float for learning_rate"),
        ({"learning_rate": "-1"}, "learning_rate >= 0"),
        ({"learning_rate": "nan"}, "takes a number"),
        ({"b1": "1.0"}, "b1 >= 0 and < 1"),
    ],
)
def test_wrong_hyperparameters_are_refused(given, message):
    with pytest.raises(RequestError, match=message):
        registry.configure(registry.find("adam"), given)


def test_hyperparameters_are_read_as_what_they_are():
    values = registry.configure(registry.find("shampoo"), {"interval": "5", "learning_rate": "1"})
    assert values["interval"] == 5
    assert type(values["interval"]) is int
    assert type(values["learning_rate"]) is float
