"""Data, teachers, students, evaluation: what makes a task."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from sklearn.datasets import load_digits

from testbed import teachers
from testbed.data import digits
from testbed.errors import RequestError
from testbed.problem.evaluation import evaluate
from testbed.problem.problem import open_problem
from testbed.tasks import TASKS
from testbed.teachers import TEACHERS
from testbed.training import loop

EMBEDDED = [name for name, task in TASKS.items() if not task.streamed]
SHIPPED = [name for name, teacher in TEACHERS.items() if not teacher.public]


def test_the_split_is_stratified_disjoint_and_depends_on_images_alone():
    bundle = load_digits()
    pixels, labels = np.asarray(bundle.images, np.uint8), np.asarray(bundle.target, np.int32)
    for ours, theirs in zip(digits._read(), (pixels, labels), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    parts = digits.split(pixels, labels)
    assert [len(part) for part in parts] == list(digits.SIZES) == [1020, 377, 400]
    assert len(np.unique(np.concatenate(parts))) == len(labels)
    share = np.bincount(labels) / len(labels)
    for part in parts:
        assert np.all(np.abs(np.bincount(labels[part]) - share * len(part)) <= 2)
    # In another order the same images land in the same parts.
    order = np.random.default_rng(0).permutation(len(labels))
    again = digits.split(pixels[order], labels[order])
    for part, other in zip(parts, again, strict=True):
        assert set(order[other]) == set(part)


def test_changed_images_are_refused(monkeypatch):
    monkeypatch.setattr(digits, "_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="digits have SHA-256"):
        digits.load.__wrapped__()


@pytest.mark.parametrize("name", SHIPPED)
def test_teachers_are_as_good_as_their_cards_say(name):
    weights, test = teachers.load(TEACHERS[name]), digits.load().test
    logits = TEACHERS[name].logits(weights.params, test.inputs, "float32")
    accuracy = np.mean(np.argmax(logits, -1) == test.labels)
    assert accuracy >= 0.98
    assert accuracy == pytest.approx(weights.card["test_accuracy"], abs=1e-6)
    assert weights.card["parameters"] == sum(p.size for p in jax.tree.leaves(weights.params))


@pytest.fixture
def copy(tmp_path):
    for ending in ("npz", "json"):
        shutil.copy(teachers.FOLDER / f"digits-a.{ending}", tmp_path)
    return tmp_path


def test_a_teacher_with_one_flipped_bit_is_refused(copy):
    content = bytearray((copy / "digits-a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "digits-a.npz").write_bytes(content)
    with pytest.raises(RequestError, match="the file is damaged"):
        teachers.load(TEACHERS["digits-a"], copy)


def test_a_teacher_that_does_not_fit_or_is_missing_is_refused(copy):
    teacher = teachers.load(TEACHERS["digits-a"])
    smaller = {**teacher.params, "head": {k: v[..., :9] for k, v in teacher.params["head"].items()}}
    with pytest.raises(RequestError, match="its classifier has 9 classes, the network 10"):
        teachers.save(TEACHERS["digits-a"], smaller, {"image_shape": [8, 8, 1]}, copy)
    (copy / "digits-a.npz").unlink()
    with pytest.raises(RequestError, match="cannot be read"):
        teachers.load(TEACHERS["digits-a"], copy / "elsewhere")


def test_a_pickle_in_a_teachers_place_is_not_loaded(copy):
    np.savez(copy / "digits-a.npz", evil=np.array([object()]))
    card = json.loads((copy / "digits-a.json").read_text())
    import hashlib

    card["sha256"] = hashlib.sha256((copy / "digits-a.npz").read_bytes()).hexdigest()
    (copy / "digits-a.json").write_text(json.dumps(card))
    with pytest.raises((RequestError, ValueError)):
        teachers.load(TEACHERS["digits-a"], copy)


@pytest.mark.parametrize("name", EMBEDDED)
def test_students_start_at_the_uniform_distribution(name):
    task = TASKS[name]
    inputs = open_problem(task).lesson(0, 0).inputs[:4]
    params = task.student.init(random.key(0), inputs)["params"]
    assert isinstance(params, dict)
    logits = task.student.apply({"params": params}, inputs)
    np.testing.assert_array_equal(logits, jnp.zeros_like(logits))


@pytest.mark.parametrize("name", EMBEDDED)
def test_horizons_are_1_4_16_and_the_card_is_complete(name):
    task = TASKS[name]
    short = task.horizons["short"]
    assert dict(task.horizons) == {"short": short, "medium": 4 * short, "long": 16 * short}
    assert task.name == name
    assert task.target.metric == f"validation_{task.decides}"


@pytest.mark.parametrize("total", [1, 7, 50, 1000, 4000, 16_000, 1_992_188])
def test_measurements_are_from_10_to_100_beside_the_first(total):
    task = TASKS["digits"]
    steps = loop.due_steps(task, total)
    assert (steps[0], steps[-1]) == (0, total)
    assert len(set(steps)) == len(steps)
    assert min(total, 10) <= len(steps) - 1 <= 100
    assert loop.due_steps(task, 1000)[:3] == [0, 100, 200]


def test_the_protocol_is_pinned():
    """A change of what a lesson is raises Task.version, and with that every run_id.

    The teacher's logits of a step sum up all that led to them: order, crop, mixup, teacher.
    """
    task = TASKS["digits"]
    lesson = open_problem(task).lesson(0, 5)
    assert task.version == 2
    pins = [float(jnp.mean(lesson.inputs)), float(jnp.mean(jnp.abs(lesson.logits)))]
    np.testing.assert_allclose(pins, PINS, rtol=1e-4)


PINS = [-0.393584, 1.782503]


def test_the_evaluation_of_the_teacher_itself_is_perfect():
    """Evaluated as a student, the teacher agrees with itself everywhere: KL 0, agreement 1."""
    task = dataclasses.replace(TASKS["digits"], batch_size=16, views_per_input=2)
    teacher = teachers.load(TEACHERS["digits-a"])

    def student(params, inputs):
        return TEACHERS["digits-a"].logits(params, inputs, "float32")

    measure = jax.jit(functools.partial(evaluate, task, student))
    scores = measure(teacher.params, open_problem(task).eval_data)
    for part in ("validation", "test"):
        assert scores[f"{part}_kl"] == pytest.approx(0, abs=1e-5)
        assert scores[f"{part}_agreement"] == scores[f"{part}_central_agreement"] == 1
        assert scores[f"{part}_accuracy"] == pytest.approx(teacher.card[f"{part}_accuracy"], abs=1e-6)
    assert scores["train_loss"] == pytest.approx(0, abs=1e-4)


def test_held_out_views_are_the_same_under_every_protocol():
    task = dataclasses.replace(TASKS["digits"], batch_size=16, views_per_input=2)
    one, other = (open_problem(task, name).eval_data for name in ("function_matching", "labels"))
    jax.tree.map(np.testing.assert_array_equal, one.held_out, other.held_out)
    assert len(one.held_out["validation"].views.inputs) == 2 * 377
