"""The loop: what a trial depends on, what interrupts it, what it passes to the optimizer."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from optimizers import registry
from optimizers.spec import Spec
from testbed import records
from testbed.errors import RequestError
from testbed.problem.lessons import epoch_order, teacher_logits
from testbed.problem.problem import fitting, open_problem
from testbed.problem.protocols import PROTOCOLS
from testbed.tasks import TASKS
from testbed.training import clock, loop
from testbed.training.alone import iterate
from tests.trials import STEPS, changed, finish, trial_of, without_times

EMBEDDED = [name for name, task in TASKS.items() if not task.streamed]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize("name", EMBEDDED)
def test_lessons_and_first_weights_depend_on_task_and_seed_alone(name, protocol):
    task = dataclasses.replace(TASKS[name], batch_size=8)
    if protocol not in fitting(task):
        with pytest.raises(RequestError, match=f"--protocol {protocol}: not for {name}"):
            open_problem(task, protocol)
        return
    problem = open_problem(task, protocol)
    one, other, again = (problem.lesson(seed, 3) for seed in (5, 6, 5))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert np.any(np.asarray(one.inputs) != other.inputs)


def test_two_optimizers_at_one_seed_see_bit_identical_lessons(tiny, out):
    """The lessons that the running trials trained on, pixel for pixel."""
    seen: dict[str, list[np.ndarray]] = {}

    def spy(name: str, optimizer) -> Spec:
        """Stores the logits of a zero student's gradient: (softmax - teacher) identifies the lesson."""

        def build(total_steps: int, *, learning_rate: float = 0.0):
            def update(grads, state, params=None, **extra):
                del params
                jax.debug.callback(lambda v: seen[name].append(np.asarray(v)), extra["value"])
                return optimizer.update(grads, state)

            return optax.GradientTransformationExtraArgs(optimizer.init, update)

        seen[name] = []
        return Spec(name=name, build=build)

    for name, optimizer in (("one", optax.sgd(0.0)), ("other", optax.adam(0.0))):
        finish(trial_of(tiny, spy(name, optimizer)), out)
    jax.effects_barrier()
    # Neither moves: equal losses at every step mean equal lessons.
    assert len(seen["one"]) == STEPS
    np.testing.assert_array_equal(np.sort(np.array(seen["one"])), np.sort(np.array(seen["other"])))


def test_an_epoch_sees_every_image_once():
    n, batch = 10, 4
    key = random.key(0)
    order = np.concatenate([epoch_order(key, jnp.int32(i), batch, n) for i in range(10)])
    epochs = order.reshape(4, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_larger_than_the_data_set_are_whole_epochs():
    order = np.asarray(epoch_order(random.key(0), jnp.int32(1), 25, 10))
    # Step 1 covers positions 25 to 49: the second half of epoch 2, then epochs 3 and 4.
    np.testing.assert_array_equal(np.sort(order[5:].reshape(2, 10)), np.tile(np.arange(10), (2, 1)))


def test_the_same_command_twice_gives_the_same_bits(tiny, tmp_path):
    one, two = (finish(trial_of(tiny), tmp_path / name) for name in "ab")
    assert without_times(one) == without_times(two)


@pytest.mark.parametrize("opt", ["adam", "shampoo"])
@pytest.mark.parametrize("interrupted_at", [1, 3])
def test_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch, opt, interrupted_at):
    whole = finish(trial_of(tiny, opt), tmp_path / "whole")
    monkeypatch.setattr(loop, "DISPATCH", 0.0)  # one step per dispatch: other pieces, the same bits
    trial, out = trial_of(tiny, opt), tmp_path / "parts"
    for _ in range(2):
        progress = iterate(trial, out)
        for _ in range(interrupted_at):
            next(progress)
        progress.close()
        assert records.read(trial.record_path(out)).end is None
    resumed = finish(trial, out)
    assert resumed.end["resumed"] == 2
    assert without_times(resumed) == without_times(whole)
    seconds = [m["train_seconds"] for m in resumed.measurements]
    assert seconds == sorted(seconds), "the clock continues"
    assert not list(out.rglob("*.npz")), "a finished trial leaves no checkpoint"


def test_a_measurement_after_the_checkpoint_is_made_again(tiny, tmp_path):
    """Killed between a measurement and the next checkpoint, with half a line written."""
    whole = finish(trial_of(tiny), tmp_path / "whole")
    trial, out = trial_of(tiny), tmp_path / "killed"
    progress = iterate(trial, out)
    next(progress)
    progress.close()
    path = trial.record_path(out)
    with path.open("ab") as file:
        file.write(records.encode(whole.measurements[1]) + b'{"kind": "measurem')
    assert without_times(finish(trial, out)) == without_times(whole)


def test_a_finished_trial_is_not_run_again_but_for_fresh(tiny, out):
    record = finish(trial_of(tiny), out)
    before = record.path.read_bytes()
    assert list(iterate(trial_of(tiny), out)) == []
    assert record.path.read_bytes() == before
    finish(trial_of(tiny), out, fresh=True)
    assert records.read(record.path).header["started_at"] >= record.header["started_at"]
    assert record.path.read_bytes() != before


def test_a_trial_belongs_to_one_process_at_a_time(tiny, out):
    progress = iterate(trial_of(tiny), out)
    next(progress)
    with pytest.raises(RequestError, match="another process"):
        next(iterate(trial_of(tiny), out))
    progress.close()


def test_the_ledger_adds_up(tiny, out):
    task = dataclasses.replace(tiny, batch_size=256)  # long enough for a share to mean something
    ledger = finish(trial_of(task), out).end["ledger"]
    assert abs(clock.gap(ledger)) < 0.01
    assert all(ledger[row] >= 0 for row in ledger)


def test_record_format(tiny, out):
    record = finish(trial_of(tiny), out)
    assert record.errors == []
    assert [m["step"] for m in record.measurements] == list(range(0, 41, 4))
    assert record.measurements[5]["epoch"] == pytest.approx(20 * 32 / 1020)
    assert {
        "schema", "run_id", "task", "task_fingerprint", "teacher_sha256", "protocol", "optimizer",
        "optimizer_sha256", "hyperparameters", "seed", "total_steps", "batch_size", "target", "timed",
        "versions", "device", "git", "command", "started_at", "student", "teacher",
    } <= set(record.header)  # fmt: skip
    scores = {"train_loss", "train_kl"} | {
        f"{part}_{score}" for part in ("validation", "test") for score in ("kl", "agreement", "accuracy")
    }
    assert scores | {"step", "epoch", "train_seconds"} <= set(record.measurements[0])
    assert record.header["student"]["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    # A fresh student is uniform: its accuracy is that of always choosing class 0.
    labels = tiny.source().validation.labels
    assert record.measurements[0]["validation_accuracy"] == pytest.approx(np.mean(labels == 0))
    assert record.path == out / "tiny" / "adam" / f"{record.header['run_id']}.jsonl"


def test_run_id_depends_on_all_that_determines_the_trial(tiny):
    base = trial_of(tiny)
    others = [
        trial_of(tiny, seed=1),
        trial_of(tiny, protocol="labels"),
        trial_of(tiny, "sgd"),
        trial_of(tiny, learning_rate=0.5),
        dataclasses.replace(base, total_steps=STEPS + 1),
        *(
            dataclasses.replace(base, problem=changed(base.problem, **change))
            for change in (
                {"temperature": 7.0},
                {"version": 99},
                {"student": TASKS["digits"].student},
                {"mix": None},
                {"augment": dataclasses.replace(tiny.augment, rotation=6.0)},
            )
        ),
    ]
    paths = {trial.record_path(Path()) for trial in [base, *others]}
    assert len(paths) == len(others) + 1
    assert trial_of(tiny).record_path(Path()) == base.record_path(Path())


def _spec(update, init=lambda params: (), **fields) -> Spec:
    def build(total_steps: int, *, learning_rate: float = 0.1):
        return optax.GradientTransformationExtraArgs(init, update)

    return Spec(name="mine", build=build, **fields)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (lambda p, step: jnp.where(step == 7, jnp.nan, 0 * p), "parameters are not finite"),
        (
            lambda p, step: jnp.where(step == 7, 3e38, 0) * jnp.cos(jnp.arange(p.size)).reshape(p.shape),
            "loss is not finite",
        ),
    ],
)
def test_divergence_is_a_result_with_its_step(tiny, out, poison, reason):
    def update(grads, step, params=None, **_):
        return jax.tree.map(lambda p: poison(p, step), grads), step + 1

    trial = trial_of(tiny, _spec(update, lambda params: jnp.int32(0)))
    end = finish(trial, out).end
    assert (end["status"], end["reason"]) == ("diverged", reason)
    assert end["step"] == (8 if "parameters" in reason else 9)
    assert json.loads(trial.record_path(out).read_text().splitlines()[-1])["kind"] == "end"


def test_optimizers_receive_optaxs_extra_arguments(tiny, out):
    keys = []

    def update(grads, state, params, *, value, grad, value_fn, logits_fn, key):
        again, gradient = jax.value_and_grad(value_fn)(params)
        wrong = jnp.abs(again - value) > 1e-6
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(grad), strict=True):
            wrong |= jnp.any(jnp.abs(ours - theirs) > 1e-5)
        wrong |= jnp.any(jnp.asarray(logits_fn(params).shape) != jnp.asarray((32, 10)))
        jax.debug.callback(lambda k: keys.append(tuple(k.tolist())), random.key_data(key))
        return jax.tree.map(lambda g: jnp.where(wrong, jnp.nan, -0.1 * g), grads), state

    assert finish(trial_of(tiny, _spec(update)), out).end["status"] == "finished"
    jax.effects_barrier()
    assert len(set(keys)) == STEPS, "a fresh key at every step"


def test_eval_params_is_what_is_evaluated(tiny, out):
    """A student evaluated at zero is uniform however well it was trained."""
    spec = dataclasses.replace(
        registry.find("adam"),
        name="at_zero",
        eval_params=lambda opt_state, params: jax.tree.map(jnp.zeros_like, params),
    )
    record = finish(trial_of(tiny, spec), out)
    assert len({m["validation_kl"] for m in record.measurements}) == 1
    plain = finish(trial_of(tiny), out)
    assert record.end["params_sha256"] == plain.end["params_sha256"], "what is learned is not touched"


def test_hyperparameters_that_cannot_be_traced_are_compiled_in(tiny, tmp_path):
    def build(total_steps: int, *, learning_rate: float = 0.1):
        return optax.sgd(learning_rate) if learning_rate > 0 else optax.identity()

    branching = finish(trial_of(tiny, Spec("branching", build)), tmp_path)
    straight = finish(
        trial_of(
            tiny, Spec("straight", lambda total_steps, *, learning_rate=0.1: optax.sgd(learning_rate))
        ),
        tmp_path,
    )
    ends = [r.measurements[-1]["validation_kl"] for r in (branching, straight)]
    np.testing.assert_allclose(*ends, rtol=1e-4)


def test_trials_of_one_shape_share_their_programs(tiny):
    one, two = (
        trial_of(tiny, learning_rate=rate, seed=seed).compile() for rate, seed in ((0.1, 0), (0.2, 1))
    )
    assert one is two
    assert one is not trial_of(tiny, protocol="labels").compile()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda g, s, p=None, **_: ({"wrong": jnp.zeros(3)}, s), "update returned nothing at"),
        (lambda g, s, p=None, **_: (jax.tree.map(lambda x: x[..., :1], g), s), "update returned"),
        (lambda g, s, p=None, **_: (g, (jnp.zeros(2),)), "update returned a state"),
        (lambda g, s, p=None, **_: 1 / 0, "ZeroDivisionError"),
        (lambda g, s, p=None, **_: (g, s) if jax.tree.leaves(g)[0].sum() > 0 else None, "Tracer"),
    ],
)
def test_an_optimizer_that_fails_begins_no_record(tiny, out, update, message):
    with pytest.raises(RequestError, match=message) as caught:
        finish(trial_of(tiny, _spec(update)), out)
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.jsonl"))


def test_ensembles_are_matched_by_their_average(out):
    """The KL that is reported can reach zero: it is that to the average of the teachers."""
    task = dataclasses.replace(TASKS["digits-ensemble"], batch_size=8, views_per_input=1)
    source = open_problem(task).source
    views = source.held_out()["validation"].views
    average = views.logits
    each = jax.jit(lambda params, x: teacher_logits(task, params, x))(source.data.teachers, views.inputs)
    np.testing.assert_allclose(jax.nn.softmax(average), np.mean(jax.nn.softmax(each), axis=0), atol=1e-5)
