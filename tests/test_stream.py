"""Data sets in TFDS's format: what is read, in which order, and how students are evaluated on it."""

import dataclasses
import json
import shutil
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimizers import registry
from testbed import records, teachers
from testbed.data import crops, loader, tfds, views
from testbed.data.disk_cache import stored
from testbed.errors import Notice, RequestError
from testbed.models.mlp import MLP
from testbed.problem import distances, evaluation
from testbed.problem.lessons import make_lesson, teacher_logits
from testbed.problem.problem import open_problem
from testbed.problem.protocols import PROTOCOLS
from testbed.tasks import LESSONS, TASKS, lessons_from
from testbed.training.batch import iterate_batch
from tests import stand_ins
from tests.trials import finish, trial_of

PAPER = [name for name, task in TASKS.items() if task.streamed]


@pytest.fixture
def places(true_formats, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(true_formats / "data"))
    monkeypatch.setenv("FUNMATCH_CHECKPOINTS", str(true_formats / "checkpoints"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teachers.load.cache_clear()
    return true_formats


@pytest.fixture
def task(places):
    return stand_ins.tiny_flowers()


def some_crops(images, batch_size=8, rows=None, seed=5, second=False):
    rows = np.arange(batch_size) if rows is None else rows
    return loader.TrainingCrops(images, seed, batch_size, rows, 32, second=second)


def take(n, source, batch_size=8, **options):
    return [b for b, _ in zip(loader.batches(source, batch_size, **options), range(n), strict=False)]


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_what_is_read_is_what_was_written(task):
    opened = task.source()
    for part, split in (("training", "train"), ("validation", "validation"), ("test", "test")):
        images = getattr(opened, part)
        assert len(images) == stand_ins.SPLITS[split]
        labels = sorted(images[i].label for i in range(len(images)))
        begin = 100 * list(stand_ins.SPLITS).index(split)
        assert labels == sorted((begin + i) % 102 for i in range(len(images)))
        assert images[0].image.shape == (*images.shape(0), 3)


def test_batches_are_the_same_from_any_start_with_any_number_of_workers(task):
    images = task.source().training
    whole = take(6, some_crops(images, second=True))
    assert_same(take(4, some_crops(images, second=True), start=2), whole[2:])
    assert_same(take(3, some_crops(images, second=True), start=3, workers=2), whole[3:])
    assert any(
        np.any(w["inputs"] != o["inputs"])
        for w, o in zip(whole, take(6, some_crops(images, seed=6)), strict=True)
    )


def test_an_epoch_sees_every_image_once_and_its_crops_never_repeat(task):
    images = task.source().training
    n = len(images)
    seen = take(9, some_crops(images))  # three epochs of 24
    index = np.concatenate([batch["index"] for batch in seen]).reshape(3, n)
    np.testing.assert_array_equal(np.sort(index), np.tile(np.arange(n), (3, 1)))
    assert len({tuple(epoch) for epoch in index}) == 3
    pixels = np.concatenate([batch["inputs"] for batch in seen])
    assert len({image.tobytes() for image in pixels}) == 3 * n


def test_hosts_read_their_rows_and_together_the_batch(task):
    images = task.source().training
    (whole,) = take(1, some_crops(images))
    parts = [
        take(1, some_crops(images, rows=np.arange(4 * host, 4 * host + 4)), batch_size=4)[0]
        for host in (0, 1)
    ]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in whole}
    assert_same([joined], [whole])


def test_decoded_images_are_the_encoded_ones(task):
    opened = task.source()
    decoded = tfds.in_memory(opened.training, opened.sha256)
    assert isinstance(decoded, tfds.Decoded)
    for i in range(len(decoded)):
        np.testing.assert_array_equal(decoded[i].image, opened.training[i].image)
        assert decoded[i].label == opened.training[i].label
    assert_same(take(2, some_crops(decoded), workers=2), take(2, some_crops(opened.training)))


def test_images_that_do_not_fit_are_not_cached(task, monkeypatch):
    monkeypatch.setattr(tfds, "_available_memory", lambda: 1_000_000)
    opened = task.source()
    assert tfds.in_memory(opened.training, opened.sha256) is opened.training


def test_stored_arrays_are_computed_once_and_again_where_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def fill(array):
        calls.append(1)
        array[:] = np.arange(6).reshape(2, 3)

    def ask(key):
        return stored("x", {"key": key}, (2, 3), np.float32, fill)

    path = ask(1)
    assert ask(1) == path
    assert len(calls) == 1
    assert ask(2) != path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.warns(Notice, match=f"{path.name}: it is damaged"):
        np.testing.assert_array_equal(np.load(ask(1)), np.arange(6).reshape(2, 3))
    assert len(calls) == 3
    for number, card in enumerate(("", "[]", "{}", "[" * 5000, '{"sha256": 1}'), start=4):
        path.with_suffix(".json").write_text(card)
        with pytest.warns(Notice, match="it is computed again"):
            assert ask(1) == path
        assert ask(1) == path
        assert len(calls) == number
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".json", ".npy", ".npy"]


def test_a_cache_that_cannot_be_written_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RequestError, match=r"cannot be written .* set XDG_CACHE_HOME to another"):
        stored("x", {}, (2, 3), np.float32, lambda array: None)


# Missing and invalid data


def test_a_missing_data_set_is_reported_with_the_command_that_builds_it(task, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(RequestError) as caught:
        task.source()
    for part in ("oxford_flowers102", str(tmp_path), "tfds build oxford_flowers102", "array_record"):
        assert part in str(caught.value)


def test_a_data_set_in_another_format_is_refused(task, monkeypatch, true_formats, tmp_path):
    shutil.copytree(true_formats / "data", tmp_path / "data")
    (path,) = (tmp_path / "data").rglob("dataset_info.json")
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(RequestError, match="tfrecord, not array_record"):
        task.source()


def test_a_damaged_description_of_a_data_set_is_reported(task, monkeypatch, true_formats, tmp_path):
    shutil.copytree(true_formats / "data", tmp_path / "data")
    (path,) = (tmp_path / "data").rglob("dataset_info.json")
    path.write_text(path.read_text()[:-40])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(
        RequestError, match=r"dataset_info.json cannot be read .* build it with"
    ) as caught:
        task.source()
    assert "\n" not in str(caught.value)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: shard.unlink(),
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.write_bytes(shard.read_bytes()[:40_000]),
        lambda shard: shard.write_bytes(bytes(131_072)),
        lambda shard: shutil.copy(next(shard.parent.glob("*test.array_record*")), shard),
        _flip,
        lambda shard: (shard.parent / "features.json").unlink(),
        lambda shard: (shard.parent / "features.json").write_text("{}"),
        lambda shard: (shard.parent / "dataset_info.json").unlink(),
        lambda shard: (shard.parent / "dataset_info.json").write_text("[]"),
        lambda shard: shard.parent.rename(shard.parent.with_name("incomplete.A9Z_9.9.9")),
    ],
)
def test_a_damaged_data_set_is_named_with_what_to_do(task, monkeypatch, true_formats, tmp_path, damage):
    shutil.copytree(true_formats / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").rglob("*-train.array_record*")
    damage(shard)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(RequestError) as caught:
        tfds.in_memory(task.source().training, "")
    for part in ("data set oxford_flowers102", "build it with `tfds build oxford_flowers102"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_found_damaged_late_is_named(
    task, monkeypatch, true_formats, tmp_path, workers
):
    shutil.copytree(true_formats / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").rglob("*-train.array_record*")
    content = bytearray(shard.read_bytes())
    content[20_000] ^= 16
    shard.write_bytes(content)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    images = task.source().training
    with pytest.raises(RequestError, match=r"oxford_flowers102/2.1.1 train: image \d+ is damaged"):
        take(4, some_crops(images), workers=workers)


@pytest.mark.parametrize("name", ["9.9.9.incompleteA1B2", "incomplete.X3_9.9.9"])
def test_a_whole_version_is_preferred_to_an_interrupted_build(
    task, monkeypatch, true_formats, tmp_path, name
):
    shutil.copytree(true_formats / "data", tmp_path / "data")
    (path,) = (tmp_path / "data").rglob("dataset_info.json")
    (path.parent.parent / name).mkdir()
    shutil.copy(path, path.parent.parent / name)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert "2.1.1" in task.source().training.name


def test_an_invalid_number_of_workers_is_reported(monkeypatch):
    monkeypatch.setenv("FUNMATCH_WORKERS", "x")
    with pytest.raises(RequestError, match="FUNMATCH_WORKERS=x: must be a whole number"):
        loader.workers()


def test_a_missing_checkpoint_is_reported_with_its_address(task, monkeypatch, tmp_path):
    monkeypatch.setenv("FUNMATCH_CHECKPOINTS", str(tmp_path))
    with pytest.raises(RequestError) as caught:
        trial_of(task, "adam", "labels").identity()
    assert f"no R152x2_T_flowers128.npz in {tmp_path}" in str(caught.value)
    assert "https://storage.googleapis.com/bit_models/distill/R152x2_T_flowers128" in str(caught.value)


# Problems


def central(task, images):
    stream_ = task.stream()
    views_ = [
        crops.central_crop(images[i].image, stream_.shorter_side, stream_.size)
        for i in range(len(images))
    ]
    return np.stack(views_), np.array([images[i].label for i in range(len(images))])


def test_each_protocol_gets_what_it_needs_from_the_stream(task):
    opened, params = task.source(), (teachers.load(stand_ins.TEACHER).params,)
    pixels, _ = central(task, opened.training)
    for protocol in PROTOCOLS:
        source = open_problem(task, protocol).source
        batches = source.batches(0, 4)
        (data, served), (_, later) = next(batches), next(batches)
        assert (served, later) == (5, 6)
        assert (data.second is None) == (protocol != "independent_noise")
        assert (data.central_logits is None) == (protocol != "fixed_teacher")
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), data)
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), source.data)
        (batch,) = take(
            1,
            loader.TrainingCrops(opened.training, 0, 8, np.arange(8), task.stream().size, second=True),
            start=4,
        )
        np.testing.assert_array_equal(data.inputs, batch["inputs"])
        if data.second is not None:
            np.testing.assert_array_equal(data.second, batch["second"])
        if data.central_logits is not None:
            seen = views.value_range(jnp.asarray(pixels[batch["index"]]))
            logits = jnp.moveaxis(jax.jit(lambda p, x: teacher_logits(task, p, x))(params, seen), 0, 1)
            np.testing.assert_allclose(data.central_logits, logits, rtol=1e-4, atol=1e-4)


def test_a_batched_trial_of_a_stream_is_the_trial_alone(task, tmp_path):
    """Interrupted too, so that the stream continues in the middle; with any student architecture."""
    task = dataclasses.replace(task, student=MLP(widths=(16,), classes=102))
    trial, other = (
        trial_of(task, "sgd", steps=4, learning_rate=rate)
        for rate in (1.0, 3.0)  # so large that one wrong batch shows
    )
    progress = iterate_batch([other, trial], tmp_path / "batched")
    next(progress)
    next(progress)
    progress.close()
    for _ in iterate_batch([other, trial], tmp_path / "batched"):
        pass
    alone = finish(trial, tmp_path / "alone")
    batched = records.read(trial.record_path(tmp_path / "batched"))
    assert batched.end["resumed"] == 1
    for one, two in zip(batched.measurements, alone.measurements, strict=True):
        for score in ("train_loss", "validation_kl", "test_kl"):
            np.testing.assert_allclose(one[score], two[score], rtol=1e-3)


def test_evaluation_counts_every_example_once(task):
    """7 and 13 images in batches of 8: the scores are the plain means over 7 and 13."""
    problem = open_problem(task)
    teacher = teachers.load(stand_ins.TEACHER).params
    other = stand_ins.noisy_params(stand_ins.TINY, task.stream().inputs.shape, seed=1)
    # Near enough to the teacher to agree with it: an image counted twice makes more than 1.
    student = jax.tree.map(lambda t, o: np.asarray(0.7 * t + 0.3 * o), teacher, other)

    def apply(params, images):
        return stand_ins.TINY.apply({"params": params}, images)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), student)
    scores = problem.compile_evaluate(apply, shapes)(student, True)
    parts = ("validation", "test")
    pixels, labels = zip(*(central(task, getattr(task.source(), part)) for part in parts), strict=True)
    key = jax.random.key(evaluation.SEED)
    shown = jax.jit(lambda *given: make_lesson(task, "function_matching", *given).inputs)
    batches = problem.source.batches(evaluation.SEED, 0)
    lessons = [shown(next(batches)[0], key, i) for i in range(2)]
    # One program for all images, student and teacher.
    images = np.concatenate([*(views.value_range(jnp.asarray(p)) for p in pixels), *lessons])
    compiled, ends = jax.jit(apply), np.cumsum([7, 13, 8])
    *ours, our_first, our_second = np.split(np.asarray(compiled(student, images)), ends)
    *theirs, their_first, their_second = np.split(np.asarray(compiled(teacher, images)), ends)
    for part, our, their, of_part in zip(parts, ours, theirs, labels, strict=True):
        expected = {
            "kl": distances.kl(their, our),
            "agreement": distances.agreement(their, our),
            "accuracy": distances.accuracy(jnp.asarray(of_part), our),
        }
        for name, values in expected.items():
            assert len(values) == len(of_part)
            assert scores[f"{part}_{name}"] == pytest.approx(float(jnp.mean(values)), rel=1e-4)
        assert scores[f"{part}_central_agreement"] == scores[f"{part}_agreement"]
    kl = [distances.kl(their_first, our_first).mean(), distances.kl(their_second, our_second).mean()]
    assert scores["train_kl"] == pytest.approx(float(np.mean(kl)), rel=1e-4)


# The paper's tasks, without their data


@pytest.mark.parametrize("name", PAPER)
def test_students_and_teachers_of_the_papers_tasks_fit_their_images(name):
    task = TASKS[name]
    images = jax.ShapeDtypeStruct((2, *task.stream().inputs.shape), jnp.float32)
    for network in (task.student, *(teacher.network for teacher in task.teachers)):
        logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
        assert logits.shape == (2, task.stream().classes)
    assert task.batch_size in (512, 4096)


SIZES = {"flowers": 1020, "pets": 3312, "food": 68_175, "sun": 76_128, "imagenet": 1_255_544}
EPOCHS = {
    "flowers": (10_000, 100_000, 1_000_000),
    "pets": (1000, 3000, 30_000),
    "food": (100, 1000, 3000),
    "sun": (100, 1000, 3000),
    "imagenet": (1200, 30, 90, 300, 600, 4800, 9600),
}


@pytest.mark.parametrize("name", PAPER)
def test_horizons_are_the_papers_epochs_and_recipes_are_adams(name):
    task = TASKS[name]
    family = name.split("-")[0]
    steps = [max(1, round(e * SIZES[family] / task.batch_size)) for e in EPOCHS[family]]
    assert list(task.horizons.values()) == steps
    spec = registry.find("adam")
    for horizon, total in task.horizons.items():
        recipe = task.published[horizon].hyperparameters["adam"]
        assert recipe["warmup"] * total == pytest.approx(5000 if family == "imagenet" else 1500)
        assert set(recipe) <= set(registry.defaults(spec))
        assert task.at(horizon).temperature == task.published[horizon].temperature


def test_lessons_from_other_data_keep_teacher_and_evaluation(places, monkeypatch):
    """The validation images stand in for the other data set."""
    task = stand_ins.tiny_flowers()
    other = dataclasses.replace(task.stream(), training="validation")
    monkeypatch.setattr("testbed.tasks.LESSONS", MappingProxyType({"elsewhere": other}))
    moved = lessons_from(task, "elsewhere")
    assert moved.name == "flowers-from-elsewhere"
    assert len(moved.source().training) == stand_ins.SPLITS["validation"]
    assert len(moved.source().validation) == stand_ins.SPLITS["validation"]
    assert moved.source().sha256 != task.source().sha256
    with pytest.raises(RequestError, match="--protocol labels"):
        open_problem(moved, "labels")


def test_lessons_of_another_form_are_refused():
    with pytest.raises(RequestError, match="choose one of photographs"):
        lessons_from(TASKS["digits"], "flowers")
    with pytest.raises(RequestError, match="choose one of flowers, pets"):
        lessons_from(TASKS["pets"], "photographs")
    assert set(LESSONS) == {"photographs", "flowers", "pets", "food", "sun", "imagenet"}


def test_photographs_have_the_form_of_digits_but_are_not_digits():
    own, other = TASKS["digits"].arrays(), TASKS["digits-other"].arrays()
    assert other.training.inputs.shape == own.training.inputs.shape
    assert (other.training.inputs.min(), other.training.inputs.max()) == (-1, 1)
    assert other.validation is own.validation
    assert len({image.tobytes() for image in other.training.inputs}) == len(own.training.inputs)
