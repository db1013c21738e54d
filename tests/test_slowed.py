"""An optimizer slowed by a known factor does what the optimizer does with fewer steps, and no more."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from benchmarks import jobs, run
from optimizers import registry
from optimizers.wrappers.slowed import active_steps, idling, slowed
from testbed import records
from testbed.errors import RequestError
from testbed.training.optimizer import from_spec
from tests.test_batch import finish_batch
from tests.trials import finish, trial_of
from tests.users import PLAIN, refusal, write

STEPS = 30
OPTIMIZERS = ["adam", "shampoo", "schedule_free", "sgd_line_search"]
PARAMS = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}


def gradients(n: int) -> list:
    def noise(key):
        return jax.tree.map(lambda p: random.normal(key, p.shape), PARAMS)

    return [noise(key) for key in random.split(random.key(0), n)]


def descend(optimizer, along, params=PARAMS):
    """Parameters and state after each update along given gradients."""
    optimizer, found = optax.with_extra_args_support(optimizer), []

    @jax.jit
    def step(grads, state, params):
        def value_fn(p, obj_fn=None):
            return optax.tree.vdot(p, grads)

        extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn, "obj_fn": value_fn}
        updates, state = optimizer.update(grads, state, params, **extra)
        return updates, state

    state = optimizer.init(params)
    for grads in along:
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def equal(one, other) -> bool:
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other)
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_factor_1_changes_nothing_to_the_bit(name):
    spec, along = registry.find(name), gradients(STEPS)
    base, same = (descend(s.build(STEPS), along) for s in (spec, slowed(spec, 1.0)))
    for (params, state), (also, idle) in zip(base, same, strict=True):
        assert equal(params, also)
        assert equal(state, idle.base)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.25, 1.5, 2.0, 7.0])
@pytest.mark.parametrize("total", [1, 2, 7, 30, 41])
def test_exactly_the_active_steps_move_the_parameters_and_they_are_spread_evenly(total, factor):
    active = active_steps(total, factor)
    found = descend(idling(optax.sgd(1.0), active, total), gradients(total))
    before = [PARAMS, *[params for params, _ in found]]
    moved = [not equal(a, b) for a, b in itertools.pairwise(before)]
    assert moved == [(c + 1) * active // total > c * active // total for c in range(total)]
    assert sum(moved) == active == max(1, math.floor(total / factor + 1e-9))


def test_the_horizon_is_divided_by_the_factors_decimal_digits():
    assert active_steps(1_050, 1.05) == 1_000
    assert [active_steps(1_000, f) for f in (1.1, 1.25, 1.5)] == [909, 800, 666]
    assert active_steps(10**9, 1.1) == 909_090_909


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_optimizer_on_the_active_lessons_alone(name):
    spec, factor, along = registry.find(name), 1.25, gradients(STEPS)
    active = active_steps(STEPS, factor)
    acts = [(c + 1) * active // STEPS > c * active // STEPS for c in range(STEPS)]
    slow = descend(slowed(spec, factor).build(STEPS), along)
    base = descend(spec.build(active), [g for g, a in zip(along, acts, strict=True) if a])
    assert equal(slow[-1][0], base[-1][0])
    assert equal(slow[-1][1].base, base[-1][1])
    slow_spec = slowed(spec, factor)
    if spec.eval_params:
        ours, theirs = (s.eval_params(f[-1][1], f[-1][0]) for s, f in ((slow_spec, slow), (spec, base)))
        assert equal(ours, theirs)
    if spec.diagnostics:
        assert equal(slow_spec.diagnostics(slow[-1][1]), spec.diagnostics(base[-1][1]))


def test_it_has_the_optimizers_arguments_and_a_name_and_an_identity_of_its_own(tiny):
    spec = registry.find("adam")
    found = [spec, registry.find("slowed-1.05+adam"), registry.find("slowed-1.1+adam")]
    assert [s.name for s in found] == ["adam", "adam-slowed-1.05", "adam-slowed-1.1"]
    assert all(registry.defaults(s) == registry.defaults(spec) for s in found)
    assert all((s.space, s.bounds, s.vmappable) == (spec.space, spec.bounds, True) for s in found)
    shas = [from_spec(s).sha256 for s in (*found, registry.find("slowed-1.05+sgd"))]
    assert len(set(shas)) == 4
    assert from_spec(registry.find("slowed-1.05+adam")).sha256 == shas[1]
    assert len({records.run_id(trial_of(tiny, s).identity()) for s in found}) == 3
    assert registry.configure(found[1], {"learning_rate": "0.5"})["learning_rate"] == 0.5


def test_it_may_be_a_users_optimizer_in_any_folder(files, monkeypatch, tmp_path):
    file = write(files, PLAIN, "mine.py")
    monkeypatch.chdir(files)
    word = jobs.absolute("slowed-1.1+mine.py")
    monkeypatch.chdir(tmp_path)
    assert word == f"slowed-1.1+{Path(file).absolute()}"
    assert registry.find(word).name == "mine-slowed-1.1"
    assert registry.find("slowed-2+optax.lion").name == "optax.lion-slowed-2"
    assert registry.find("slowed-2+slowed-2+adam").name == "adam-slowed-2-slowed-2"


@pytest.mark.parametrize("factor", ["", "x", "0.5", "nan", "inf", "-1"])
def test_what_is_no_factor_is_refused(command, tiny_task, factor):
    line = refusal(command, run, f"--opt=slowed-{factor}+adam")
    assert f"--opt slowed-{factor}+adam: " in line
    assert "slowed by" in line


def test_an_unknown_wrapper_or_optimizer_is_refused(command, tiny_task):
    assert "--opt swift+adam: unknown" in refusal(command, run, "--opt", "swift+adam")
    assert "--opt adamm: unknown" in refusal(command, run, "--opt", "slowed-1.05+adamm")
    with pytest.raises(RequestError, match="from 1"):
        slowed(registry.find("adam"), 0.9)


def test_alone_and_in_a_batch_it_is_trained_and_recorded(tiny, tmp_path):
    word = registry.find("slowed-2+adam")
    record = finish(trial_of(tiny, word), tmp_path)
    assert (record.end["status"], record.header["optimizer"]) == ("finished", "adam-slowed-2")
    batched = finish_batch([trial_of(tiny, word), trial_of(tiny, "adam")], tmp_path / "batch")
    ends = [r.measurements[-1]["test_kl"] for r in (*batched, record)]
    np.testing.assert_allclose(ends[0], ends[2], rtol=1e-2)
    assert ends[0] > ends[1]
