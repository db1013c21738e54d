"""Batched trials: what they share, and what they do not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import frames, report
from benchmarks import jobs
from optimizers import registry
from optimizers.spec import Spec
from testbed import devices, records
from testbed.training import batch, groups, loop
from testbed.training.trial import InitCheckpoint, Trial
from tests.trials import TIMES, finish, trial_of

SCORES = ("train_kl", "validation_kl", "test_kl")


def _fragile(total_steps: int, *, learning_rate: float = 0.1) -> optax.GradientTransformation:
    """Gradient descent that is no longer finite after step `learning_rate`, if that is above 1."""

    def update(grads, step, params=None):
        lost = (learning_rate > 1) & (step >= learning_rate)
        return jax.tree.map(lambda g: jnp.where(lost, jnp.nan, -0.1 * g), grads), step + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


FRAGILE = Spec("fragile", _fragile)


def finish_batch(trials: list[Trial], out: Path, **options: Any) -> list[records.Record]:
    for _ in batch.iterate_batch(trials, out, **options):
        pass
    return [records.read(trial.record_path(out)) for trial in trials]


def rows(record: records.Record, but: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    kept = [record.header, *record.measurements, record.end]
    return [{k: v for k, v in row.items() if k not in (*TIMES, *but)} for row in kept if row]


def field(tiny) -> list[Trial]:
    """Optimizers of two rates each: one keeps matrices, one searches along lines."""
    return [
        trial_of(tiny, opt, learning_rate=scale * registry.defaults(registry.find(opt))["learning_rate"])
        for opt in ("adam", "shampoo", "sgd_line_search")
        for scale in (1.0, 0.3)
    ]


@pytest.fixture(scope="module")
def together_and_alone(tiny, tmp_path_factory):
    """The records of a field, batched in both ways, and alone."""
    out, trials = tmp_path_factory.mktemp("field"), field(tiny)
    in_turn = finish_batch(trials, out / "in turn")
    vectorized = finish_batch(trials, out / "vectorized", vmapped=True)
    return in_turn, vectorized, [finish(trial, out / "alone") for trial in trials]


@pytest.mark.parametrize("how", [0, 1])
def test_a_batched_trial_is_the_same_trial_alone(together_and_alone, how):
    """The same first weights, lessons and rule: to rounding at first, close after 40 steps."""
    for batched, alone in zip(together_and_alone[how], together_and_alone[2], strict=True):
        assert batched.header["run_id"] == alone.header["run_id"]
        assert batched.end["status"] == alone.end["status"] == "finished"
        for score in SCORES:
            ours, theirs = ([m[score] for m in r.measurements] for r in (batched, alone))
            np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-5)
            np.testing.assert_allclose(ours, theirs, rtol=1e-2)


def test_at_the_end_batched_and_alone_differ_less_than_seeds_do(tiny, tmp_path):
    """After 400 steps: bits differ, but the distribution over students does not."""
    trials = [
        dataclasses.replace(trial_of(tiny, seed=seed), total_steps=400, lesson_seed=0)
        for seed in range(8)
    ]
    found = [finish_batch(trials, tmp_path / "batched"), [finish(t, tmp_path / "alone") for t in trials]]
    batched, alone = (np.log([r.measurements[-1]["test_kl"] for r in records_]) for records_ in found)
    spread = np.std(alone, ddof=1)
    assert abs(np.mean(batched - alone)) < 0.2 * spread
    assert np.std(batched - alone) < 0.5 * spread


def test_batched_records_have_no_seconds_and_name_their_batch(together_and_alone, tmp_path):
    for vectorized, found in enumerate(together_and_alone[:2]):
        for record in found:
            assert record.errors == []
            assert record.header["timed"] is False
            assert all("train_seconds" not in m for m in record.measurements)
            about = record.header["batch"]
            assert about["size"] == len(found)
            assert about["vectorized"] == bool(vectorized)
    assert len({r.header["batch"]["id"] for r in together_and_alone[0]}) == 1
    assert all(r.header["timed"] and "batch" not in r.header for r in together_and_alone[2])


def test_line_searches_are_not_vectorized_unless_asked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(groups.jax, "default_backend", lambda: "gpu")
    shapes = groups.compile_lessons(trial_of(tiny).problem, 2)[1]
    found, _ = groups.compile_groups([trial_of(tiny, "adam"), trial_of(tiny, "sgd_line_search")], shapes)
    assert [group.vmapped for group in found] == [True, False]


def test_a_report_is_made_of_records_without_seconds(together_and_alone, tmp_path):
    folder = together_and_alone[0][0].path.parents[2]
    found = frames.read(folder)
    assert not found.errors
    text = report.write(found, tmp_path, "shampoo")
    assert "shampoo" in text
    assert list(tmp_path.glob("*validation_kl-by-step.png"))
    assert not list(tmp_path.glob("*by-train_seconds*"))


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_diverged_trial_is_frozen_and_touches_no_neighbour(tiny, tmp_path, vmapped):
    rates = (0.1, 7.0, 0.2, 9.0)
    trials = [trial_of(tiny, FRAGILE, learning_rate=rate) for rate in rates]
    mixed = finish_batch(trials, tmp_path / "mixed", vmapped=vmapped)
    assert [r.end["status"] for r in mixed] == ["finished", "diverged", "finished", "diverged"]
    calm = finish_batch(trials[::2], tmp_path / "calm", vmapped=vmapped)
    for one, other in zip(mixed[::2], calm, strict=True):
        assert rows(one, ("batch",)) == rows(other, ("batch",))
    for record, trial in zip(mixed[1::2], trials[1::2], strict=True):
        alone = finish(trial, tmp_path / "alone")
        for name in ("status", "step", "reason"):
            assert record.end[name] == alone.end[name]
        assert len(record.measurements) == len(alone.measurements)


def test_a_batch_in_which_all_diverge_ends_there(tiny, tmp_path):
    (record,) = finish_batch([trial_of(tiny, FRAGILE, learning_rate=9.0)], tmp_path)
    assert (record.end["status"], record.end["step"]) == ("diverged", 10)
    assert [m["step"] for m in record.measurements] == [0, 4, 8]


def test_an_interrupted_batch_ends_like_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    trials = [
        trial_of(tiny, opt, learning_rate=r) for opt in ("adam", FRAGILE) for r in (0.01, 0.1, 9.0)
    ]
    whole = finish_batch(trials, tmp_path / "whole")
    monkeypatch.setattr(loop, "DISPATCH", 0.0)  # a step at a time
    out = tmp_path / "parts"
    for _ in range(2):
        progress = batch.iterate_batch(trials, out)
        for _ in range(7):
            next(progress)
        progress.close()
        assert all(records.read(t.record_path(out)).end is None for t in trials), "ends at once"
    finish_batch(trials[::-1], out)  # the order does not matter
    parts = [records.read(trial.record_path(out)) for trial in trials]
    assert {r.end["resumed"] for r in parts} == {2}
    for one, other in zip(parts, whole, strict=True):
        assert rows(one) == rows(other)
    assert not list(out.rglob("*.checkpoint"))


def test_a_batch_saves_the_parameters_that_it_evaluates(tiny, tmp_path):
    """Averages, of schedule_free; each in its own file, with the record's end after it."""
    trials = [trial_of(tiny, opt, seed=0) for opt in ("adam", "schedule_free", "sgd_line_search")]
    found = finish_batch(trials, tmp_path / "kept", save_params=True)
    for trial, record in zip(trials, found, strict=True):
        shapes = jax.eval_shape(trial.problem.init, jax.random.key(0))
        params = InitCheckpoint.read(record.path.with_suffix(".npz")).params(shapes)
        scores = trial.problem.evaluate(params)
        for score in SCORES:
            np.testing.assert_allclose(scores[score], record.measurements[-1][score], rtol=1e-5)
    plain = finish_batch(trials, tmp_path / "plain")
    assert [rows(r) for r in found] == [rows(r) for r in plain]
    assert not list((tmp_path / "plain").rglob("*.npz"))


def test_a_finished_batch_without_parameters_is_run_again_for_them(tiny, tmp_path):
    trials = [trial_of(tiny, learning_rate=r) for r in (0.01, 0.02, 0.03)]
    before = [rows(r) for r in finish_batch(trials, tmp_path)]
    after = finish_batch(trials, tmp_path, save_params=True)
    files = [r.path.with_suffix(".npz") for r in after]
    assert [rows(r) for r in after] == before
    contents = [file.read_bytes() for file in files]
    files[1].unlink()
    records_before = [r.path.read_bytes() for r in after]
    again = finish_batch(trials, tmp_path, save_params=True)
    assert again[1].header["batch"]["size"] == 1, "the others are done"
    assert [again[i].path.read_bytes() for i in (0, 2)] == [records_before[i] for i in (0, 2)]
    assert [files[i].read_bytes() for i in (0, 2)] == [contents[i] for i in (0, 2)]
    assert files[1].exists()


def test_an_interrupted_batch_saves_the_same_parameters(tiny, tmp_path, monkeypatch):
    trials = [trial_of(tiny, "schedule_free", learning_rate=r) for r in (0.01, 0.1)]
    whole = finish_batch(trials, tmp_path / "whole", save_params=True)
    monkeypatch.setattr(loop, "DISPATCH", 0.0)
    out = tmp_path / "parts"
    progress = batch.iterate_batch(trials, out, save_params=True)
    for _ in range(9):
        next(progress)
    progress.close()
    assert not list(out.rglob("*.npz"))
    for one, other in zip(finish_batch(trials, out, save_params=True), whole, strict=True):
        assert one.end["resumed"] == 1
        kept, expected = (np.load(r.path.with_suffix(".npz")) for r in (one, other))
        assert all(np.array_equal(kept[name], expected[name]) for name in expected)


@pytest.mark.parametrize("asked_at_first", [False, True])
def test_a_batch_that_is_killed_as_it_ends_gets_all_parameters(tiny, tmp_path, asked_at_first):
    """After the first record's end; whether or not parameters were asked for until then."""

    class Killed(BaseException):
        pass

    trials = [trial_of(tiny, learning_rate=r) for r in (0.01, 0.02, 0.03)]
    append = batch.RecordWriters.append

    def killed(self, i, *found):
        append(self, i, *found)
        if found[-1]["kind"] == "end":
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.RecordWriters, "append", killed)
        with pytest.raises(Killed):
            finish_batch(trials, tmp_path, save_params=asked_at_first)
    found = finish_batch(trials, tmp_path, save_params=True)
    assert all(r.path.with_suffix(".npz").exists() for r in found)
    assert [(r.end["status"], r.end["step"]) for r in found] == [("finished", 40)] * 3
    assert sorted(r.end["resumed"] for r in found) == ([0, 1, 1] if asked_at_first else [1, 1, 1])
    whole = finish_batch(trials, tmp_path / "whole")
    assert [rows(r) for r in found] == [rows(r) for r in whole]
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_checkpoint_is_not_used_on_records_that_others_wrote(tiny, tmp_path):
    trials = [trial_of(tiny, learning_rate=r) for r in (0.01, 0.1)]
    whole = finish_batch(trials, tmp_path / "whole")
    out = tmp_path / "parts"
    progress = batch.iterate_batch(trials, out)
    next(progress)
    progress.close()
    path = trials[0].record_path(out)
    header, *rest = path.read_bytes().splitlines(keepends=True)
    other = json.loads(header) | {"batch": {"id": "another"}, "command": "x" * 999}
    path.write_bytes(records.encode(other) + b"".join(rest))
    again = finish_batch(trials, out)
    assert {r.end["resumed"] for r in again} == {0}
    for one, two in zip(again, whole, strict=True):
        assert rows(one) == rows(two)


def test_trials_that_are_finished_or_run_elsewhere_are_skipped(tiny, tmp_path):
    done, busy, left = (trial_of(tiny, learning_rate=r) for r in (0.01, 0.02, 0.03))
    before = finish(done, tmp_path).path.read_bytes()
    with records.lock(busy.record_path(tmp_path)):
        for _ in batch.iterate_batch([done, busy, left], tmp_path):
            pass
        assert not busy.record_path(tmp_path).exists()
    assert done.record_path(tmp_path).read_bytes() == before
    assert records.read(left.record_path(tmp_path)).header["batch"]["size"] == 1
    assert list(batch.iterate_batch([done, left], tmp_path)) == []


def test_trials_that_branch_on_a_hyperparameter_run_alone_after_the_others(tiny, tmp_path):
    def build(total_steps: int, *, learning_rate: float = 0.1):
        return optax.sgd(learning_rate) if learning_rate > 0 else optax.identity()

    branching = [trial_of(tiny, Spec("branching", build), learning_rate=r) for r in (0.1, 0.2)]
    found = finish_batch([*branching, trial_of(tiny, "sgd")], tmp_path)
    assert [r.header["timed"] for r in found] == [True, True, False]
    assert {r.end["status"] for r in found} == {"finished"}


def test_batches_share_all_that_lessons_depend_on(tiny):
    trials = [trial_of(tiny, opt, seed=seed) for opt in ("sgd", "adam") for seed in (0, 1, 0)]
    found = batch.sharing_lessons(trials, 3)
    assert [len(b) for b in found] == [3, 1, 2]
    assert all(len({t.seed for t in b}) == 1 for b in found)
    with pytest.raises(ValueError, match="share their lessons"):
        next(batch.iterate_batch(trials, Path("nowhere")))


def test_students_may_share_the_lessons_of_another_seed(tiny, tmp_path):
    """First weights differ, lessons do not: with the lessons' own seed it is the plain trial."""
    plain = trial_of(tiny)
    trials = [dataclasses.replace(trial_of(tiny, seed=s), lesson_seed=0) for s in (0, 1, 2)]
    assert trials[0].identity() == plain.identity()
    assert len({json.dumps(t.identity()) for t in [*trials, trial_of(tiny, seed=1)]}) == 4
    assert len(batch.sharing_lessons(trials, 16)) == 1
    found = finish_batch(trials, tmp_path / "batched")
    alone = [finish(t, tmp_path / "alone") for t in trials]
    assert found[1].header["lesson_seed"] == 0
    assert "lesson_seed" not in found[0].header
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(
            one.measurements[-1]["test_kl"], other.measurements[-1]["test_kl"], rtol=1e-2
        )
    assert len({r.measurements[-1]["test_kl"] for r in found}) == 3


def test_a_batch_that_does_not_fit_asks_for_half(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "memory_for_batches", lambda: 1e5)
    trials = [trial_of(tiny, learning_rate=r) for r in (0.01, 0.02, 0.03, 0.04, 0.05)]
    with pytest.raises(groups.TooLarge, match=r"batch of 5 needs .* GB of 0.00 GB") as caught:
        finish_batch(trials, tmp_path)
    assert caught.value.fits == 2
    assert not list(tmp_path.rglob("*.jsonl"))


def test_batches_are_halved_until_they_fit(tiny, tmp_path, monkeypatch, capsys):
    trials = [trial_of(tiny, learning_rate=r) for r in (0.01, 0.02, 0.03, 0.04, 0.05)]
    _, lessons = groups.compile_lessons(trial_of(tiny).problem, 4)
    found, _ = groups.compile_groups(trials[:3], lessons)
    monkeypatch.setattr(devices, "memory_for_batches", lambda: sum(groups.needs(found, lessons)))
    for _ in jobs._in_batches(trials, tmp_path):
        pass
    sizes = [records.read(t.record_path(tmp_path)).header["batch"]["size"] for t in trials]
    assert sizes == [2, 2, 2, 2, 1]
    assert capsys.readouterr().err.count("a batch of 5 needs") == 1


def test_a_batch_on_two_devices_equals_one_on_one(tiny, tmp_path):
    """Five trials in six slots; Shampoo, which would divide its own work, sees one device."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests import test_batch\n"
        "from testbed import devices, compilation_cache\ncompilation_cache.enable_cache()\n"
        "devices.use_cores(int(sys.argv[1]))\ndevices.use()\n"
        "assert devices.count() == int(sys.argv[1])\n"
        "test_batch.five_of_each(Path(sys.argv[2]))\n"
    )
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root)}
    for n in (1, 2):
        command = [sys.executable, "-c", code, str(n), str(tmp_path / str(n))]
        subprocess.run(command, check=True, cwd=root, env=env)
    one, two = (records.read_folder(tmp_path / str(n)) for n in (1, 2))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        assert (a.header["device"]["used"], b.header["device"]["used"]) == (1, 2)
        for m, n in zip(a.measurements, b.measurements, strict=True):
            np.testing.assert_allclose(*([x[s] for s in SCORES] for x in (m, n)), rtol=1e-2)


def five_of_each(out: Path) -> None:
    from tests.conftest import make_tiny

    task = make_tiny()
    trials = [
        trial_of(task, opt, learning_rate=r)
        for opt in ("adam", "shampoo")
        for r in (0.001, 0.002, 0.003, 0.004, 0.005)
    ]
    finish_batch(trials, out)
