"""Diagnostics: what they measure is true, and they change no bit of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import runner
from optimizers import registry
from optimizers.spec import Spec
from testbed import records
from testbed.errors import RequestError
from testbed.problem import protocols
from testbed.training import diagnostics
from testbed.training.batch import iterate_batch
from testbed.training.diagnostics import DIAGNOSTICS, OWN, Moment, sharpness
from testbed.training.step import Info, State
from tests.trials import finish, trial_of, without_times

ALL = (*DIAGNOSTICS, OWN)


def moment_of(loss, params) -> Moment:
    state = State(jnp.int32(0), params, (), jnp.float32(0), jnp.bool(True))
    grad = jax.grad(loss)(params)
    return Moment(state, Info(grad, grad), loss)


@pytest.mark.parametrize("opt", ["adam", "shampoo"])
def test_a_diagnosed_trial_is_the_same_trial_to_the_last_bit(tiny, tmp_path, opt):
    plain = finish(trial_of(tiny, opt), tmp_path / "plain")
    diagnosed = finish(trial_of(tiny, opt), tmp_path / "diagnosed", diagnose=ALL)
    added = set(diagnosed.measurements[0]) - set(plain.measurements[0])
    assert {"grad_norm", "update_norm", "sharpness", "sharpness_error"} <= added
    assert any(name.startswith("optimizer_") for name in added) == (opt == "shampoo")
    diagnosed = diagnosed._replace(
        measurements=[{k: v for k, v in m.items() if k not in added} for m in diagnosed.measurements]
    )
    assert without_times(diagnosed) == without_times(plain)


def test_norms_are_those_of_the_next_step(tiny, tmp_path):
    """Of SGD without momentum, schedule and decay: update = -rate * gradient."""
    spec = Spec("plain", lambda total_steps, *, learning_rate=0.1: optax.sgd(learning_rate))
    record = finish(trial_of(tiny, spec), tmp_path, diagnose=["grad_norm", "update_norm"])
    grad, update = (
        np.array([m[name] for m in record.measurements]) for name in ("grad_norm", "update_norm")
    )
    np.testing.assert_allclose(update, 0.1 * grad, rtol=1e-5)
    trial = trial_of(tiny, spec)
    problem = trial.problem
    params, lesson = problem.init(trial.keys().weights), problem.lesson(0, 0)
    expected = jnp.linalg.norm(ravel_pytree(jax.grad(problem.loss)(params, lesson))[0])
    assert grad[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("spectrum", [np.linspace(-5, 3, 60), np.r_[np.linspace(0, 1, 59), 7.0]])
def test_sharpness_of_a_quadratic_is_its_largest_eigenvalue(spectrum):
    """The largest, also where one of larger size is negative."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))
    hessian = jnp.asarray(basis * spectrum @ basis.T, jnp.float32)
    params = {"a": jnp.ones((4, 5)), "b": {"c": jnp.ones(40)}}

    def loss(params):
        flat = ravel_pytree(params)[0]
        return flat @ hessian @ flat / 2

    values = jax.jit(lambda p: sharpness(moment_of(loss, p)))(params)
    assert float(values["sharpness"]) == pytest.approx(spectrum[-1], rel=1e-3)
    assert float(values["sharpness_error"]) < 0.05


def test_sharpness_of_a_student_is_that_of_its_hessian(tiny):
    problem = trial_of(tiny).problem
    lesson = problem.lesson(0, 0)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
        problem.init(jax.random.key(0)),
    )
    flat, unravel = ravel_pytree(params)

    def loss(params):
        logits = problem.logits(params, lesson.inputs)
        return protocols.loss(tiny.distance, lesson, logits)

    hessian = jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat)
    top = float(np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1])
    found = jax.jit(lambda p: sharpness(moment_of(loss, p)))(params)
    assert float(found["sharpness"]) == pytest.approx(top, rel=1e-3)


def test_an_optimizers_own_counts_are_those_of_its_state(tiny, tmp_path):
    """As SPEC.diagnostics reads them, under optimizer_<name>."""

    def build(total_steps: int, *, learning_rate: float = 0.1):
        count = optax.GradientTransformation(
            lambda params: jnp.int32(0), lambda g, n, params=None: (g, n + 1)
        )
        return optax.chain(count, optax.sgd(learning_rate))

    spec = Spec("counting", build, diagnostics=lambda state: {"updates": state[0]})
    record = finish(trial_of(tiny, spec), tmp_path, diagnose=[OWN])
    assert [m["optimizer_updates"] for m in record.measurements] == [
        m["step"] for m in record.measurements
    ]


def test_an_unknown_diagnostic_is_refused():
    with pytest.raises(RequestError, match="--diagnose norm: unknown; did you mean 'grad_norm'"):
        diagnostics.choose(["norm"])
    assert diagnostics.choose(["grad_norm", "grad_norm"]) == ("grad_norm",)


def counting(total_steps, *, learning_rate=0.1):
    """SGD whose state is the number of its updates."""

    def update(grads, state, params=None):
        del params
        return jax.tree.map(lambda g: -learning_rate * g, grads), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def own(opt_state):
    return {"updates": opt_state, "share": opt_state / 40}


@pytest.mark.parametrize("batched", [False, True])
def test_every_record_ends_with_what_the_optimizer_counts(tiny, tmp_path, batched):
    spec = Spec("counting", counting, diagnostics=own)
    trials = [trial_of(tiny, spec, steps=steps) for steps in (30,)] + [trial_of(tiny, "adam", steps=30)]
    if batched:
        for _ in iterate_batch(trials, tmp_path):
            pass
    else:
        for trial in trials:
            finish(trial, tmp_path)
    ours, adams = (records.read(trial.record_path(tmp_path)).end for trial in trials)
    assert ours["counts"] == {"updates": 30}, "a share is not counted"
    assert "counts" not in adams


def test_an_optimizer_that_cannot_say_what_it_counts_is_refused_before_its_record(tiny, tmp_path):
    spec = Spec("counting", counting, diagnostics=lambda opt_state: {"updates": opt_state["n"]})
    with pytest.raises(RequestError, match="optimizer counting, diagnostics"):
        finish(trial_of(tiny, spec), tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_roots_that_fail_are_in_the_record(tiny, tmp_path):
    """Without a ridge, statistics of deficient rank have none."""
    build = registry.find("shampoo").build

    def without_a_ridge(total_steps):
        return build(total_steps, ridge=0.0, interval=1)

    spec = Spec("without_a_ridge", without_a_ridge, diagnostics=registry.find("shampoo").diagnostics)
    record = finish(trial_of(tiny, spec, steps=10), tmp_path)
    assert record.end["counts"]["failed_roots"] > 0
    runner.print_table([record.path])


def test_the_table_says_what_a_finished_trial_hides(tiny, tmp_path, capsys):
    """A rate of 1e6, clipped: no number is infinite, and the student is useless."""
    record = finish(trial_of(tiny, "sgd", steps=10, learning_rate=1e6), tmp_path)
    assert record.end["status"] == "finished"
    runner.print_table([record.path])
    assert "finished, worse than at the start" in capsys.readouterr().out
    end = record.end | {"counts": {"failed_roots": 3}, "ledger": {"paused_s": 2.0}}
    whole = record._replace(measurements=record.measurements[:1], end=end)
    assert runner._status(whole) == "finished, 3 roots failed, was stopped for a while"
