"""Tasks from users' files: endless tokens, and an autoencoder, with everything that holds for tasks."""

import dataclasses
import functools
import linecache
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from analysis import frames, report
from benchmarks import run
from testbed import ExactTeacher, Generated, Score, Target, metrics, records, teachers
from testbed.errors import RequestError
from testbed.models.mlp import MLP
from testbed.problem.problem import fitting, open_problem
from testbed.problem.protocols import PROTOCOLS
from testbed.tasks import TASKS, find
from testbed.training.alone import iterate
from testbed.training.batch import iterate_batch
from tests.trials import finish, trial_of, without_times

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FILES = {"tokens": EXAMPLES / "tokens.py", "strokes": EXAMPLES / "autoencoder.py"}
FITTING = {
    "tokens": ["function_matching", "labels"],
    "strokes": ["function_matching", "consistent_teaching"],
}
BOTH = [(name, protocol) for name, protocols in FITTING.items() for protocol in protocols]


@pytest.fixture(scope="module")
def tasks():
    return {name: find(str(path)) for name, path in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_protocols_that_make_no_sense_are_refused_in_one_line(tasks, name):
    assert fitting(tasks[name]) == FITTING[name]
    for protocol in PROTOCOLS:
        if protocol not in FITTING[name]:
            with pytest.raises(RequestError, match=f"--protocol {protocol}: not for {name}: ") as caught:
                open_problem(tasks[name], protocol)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "protocol"), BOTH)
def test_alone_batched_and_resumed_are_one_trial(tasks, tmp_path, name, protocol):
    trials = [trial_of(tasks[name], "adam", protocol, learning_rate=rate) for rate in (0.01, 0.02)]
    whole = finish(trials[0], tmp_path / "whole")
    assert whole.end["status"] == "finished"
    assert whole.measurements[-1]["validation_kl"] < whole.measurements[0]["validation_kl"]
    progress = iterate(trials[0], tmp_path / "parts")
    next(progress)
    next(progress)
    progress.close()
    resumed = finish(trials[0], tmp_path / "parts")
    assert resumed.end["resumed"] == 1
    assert without_times(resumed) == without_times(whole)
    for _ in iterate_batch(trials, tmp_path / "batched"):
        pass
    batched = records.read(trials[0].record_path(tmp_path / "batched"))
    for score in ("train_kl", "validation_kl", "test_agreement"):
        ours, theirs = ([m[score] for m in r.measurements] for r in (batched, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-6)


def test_tokens_are_drawn_anew_at_every_step_and_known_exactly(tasks):
    problem = open_problem(tasks["tokens"])
    one, other, again = (problem.lesson(0, step) for step in (0, 1, 0))
    assert one.inputs.dtype == np.int32
    assert one.logits.shape == (1, 64, 8, 16)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert np.mean(np.asarray(one.inputs) == other.inputs) < 0.3
    held_out = problem.source.held_out()
    assert not np.array_equal(held_out["validation"].central.inputs, held_out["test"].central.inputs)


def test_the_loss_of_tokens_is_a_mean_over_positions(tasks):
    """A student that starts uniform: the loss is the mean over positions of KL(teacher || uniform)."""
    problem = open_problem(tasks["tokens"])
    lesson = problem.lesson(0, 0)
    log_p = jax.nn.log_softmax(lesson.logits[0])
    expected = np.mean(np.sum(np.exp(log_p) * (log_p + np.log(16)), axis=-1))
    params = problem.init(jax.random.key(0))
    np.testing.assert_allclose(problem.loss(params, lesson), expected, rtol=1e-5)


def test_a_metric_of_a_task_is_one_function_and_one_row(tasks, tmp_path):
    """Measured on both held-out parts, declared in the record, labelled in the report."""
    record = finish(trial_of(tasks["tokens"]), tmp_path / "runs")
    assert record.header["metrics"] == {
        "last_kl": {"label": "KL at the last position", "unit": "nats", "better": "min", "drawn": "log",
                    "complement": ""}
    }  # fmt: skip
    assert {"validation_last_kl", "test_last_kl"} <= set(record.measurements[0])
    assert "epoch" not in record.measurements[0], "endless data have none"
    metric = metrics.find("validation_last_kl", record.header["metrics"])
    assert metric.axis == "held-out KL at the last position (nats)"


@pytest.mark.parametrize("name", FILES)
def test_from_the_command_to_the_report(command, tmp_path, name):
    """Also of a task without accuracy, in a folder of its own."""
    path = shutil.copy(FILES[name], tmp_path / "my_task.py")
    words = ("--opt", "sgd", "--opt", "adam", "--steps", 20, "--seeds", 2, "--diagnose", "grad_norm")
    status, out, err = command(run, "--task", path, *words)
    assert (status, err) == (0, "")
    assert "finished" in out
    status, out, err = command(report, "runs", "--out", "report")
    assert (status, err) == (0, "")
    assert (tmp_path / "report" / "index.html").exists()
    frame, errors = frames.load(tmp_path / "runs")
    assert not errors
    assert set(frame["optimizer"]) == {"sgd", "adam"}
    assert frame["grad_norm"].notna().all()


def test_a_changed_file_is_another_task(tmp_path):
    path = tmp_path / "my_task.py"
    text = FILES["tokens"].read_text()
    ids = set()
    for version in (text, text, text.replace("2 * np.random", "3 * np.random")):
        path.write_text(version)
        ids.add(open_problem(find(str(path))).fingerprint)
    assert len(ids) == 2


def cell(text: str, **names: object) -> dict[str, object]:
    """What a notebook's cell defines, where `inspect` finds its source."""
    name = f"<cell {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), space := {"__name__": "__main__", **names})  # noqa: S102
    return space


def test_an_edited_function_of_a_notebook_is_another_task(tiny):
    """Whatever of the task it is: mixing, drawing, scoring, a network's activation, its teacher."""
    ids = []
    for factor in (1, 2, 1):
        text = f"def edited(*given):\n    return {factor} * given[-1]\n"
        edited = cell(text)["edited"]
        network = nn.Sequential([nn.Dense(4), edited])
        changes = (
            {"mix": edited},
            {"source": Generated(edited)},
            {"source": Generated(len, held_out=factor)},
            {"scores": {"mine": Score("views", edited)}},
            {"student": network},
            {"teachers": (ExactTeacher("exact", edited),)},
            {"augment": functools.partial(edited, factor)},
        )
        tasks = [dataclasses.replace(tiny, **change) for change in changes]
        ids.append([task.fingerprint(()) for task in tasks])
    assert ids[0] == ids[2]
    for one, other in zip(ids[0], ids[1], strict=True):
        assert one != other
    assert len({*ids[0], *ids[1]}) == 2 * len(ids[0])


def test_a_task_that_does_not_fit_together_is_refused_in_one_line(tasks, tiny, tmp_path):
    """Named as the task's, not as the optimizer's; before anything is written."""
    narrow = dataclasses.replace(tiny, student=MLP(widths=(4,), classes=3))
    unmeasured = dataclasses.replace(tiny, target=Target("validation_acuracy", 0.9, "max"))
    unlabelled = dataclasses.replace(tasks["strokes"], target=Target("validation_accuracy", 0.9, "max"))
    for task, message in (
        (narrow, r"task tiny: the student's logits have the shape \(32, 3\), the teachers' \(32, 10\)"),
        (
            unmeasured,
            "task tiny: its target validation_acuracy is not measured; choose one of train_loss",
        ),
        (unlabelled, "task strokes: its target validation_accuracy is not measured"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            finish(trial_of(task), tmp_path)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.jsonl"))
    with pytest.raises(RequestError, match="it needs a horizon, and teachers of different names"):
        dataclasses.replace(tiny, horizons={})
    with pytest.raises(RequestError, match="teacher mine: it has no weights; give it path="):
        teachers.load(dataclasses.replace(tiny.teachers[0], name="mine"))


def test_killed_and_resumed_a_task_from_a_file_ends_with_the_same_bits(tmp_path):
    words = ["benchmarks/run.py", "--task", FILES["strokes"], "--opt", "adam", "--steps", "6000"]
    command = [sys.executable, *map(str, words), "--out"]
    subprocess.run([*command, tmp_path / "whole"], cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, tmp_path / "killed"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def saved() -> bool:  # while it is written, its folder has another name
        return any(path.name.isdigit() for path in tmp_path.rglob("*.checkpoint/*"))

    while not saved() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    subprocess.run([*command, tmp_path / "killed"], cwd=ROOT, check=True, capture_output=True)
    (whole,), (killed,) = (records.read_folder(tmp_path / name) for name in ("whole", "killed"))
    assert killed.end["resumed"] == 1
    assert without_times(killed) == without_times(whole)


def test_workers_of_a_sweep_find_a_task_from_a_relative_path(tmp_path):
    shutil.copy(FILES["strokes"], tmp_path / "my_task.py")
    words = ("--task", "my_task.py", "--opt", "sgd", "--trials", 2, "--seeds", 1, "--steps", 10)
    where = ("--engine", "slurm", "--address", "local", "--workers", 1)
    command = [sys.executable, ROOT / "benchmarks" / "sweep.py", *words, *where]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sgd: best of 2" in done.stdout
    assert len(records.paths(tmp_path / "runs")) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("1 / 0", "importing it raised ZeroDivisionError"),
        ("TASK = 3", "it defines no TASK"),
        ("from testbed import TASKS\nTASK = TASKS['digits']", "the name digits is taken"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "my_task.py"
    if text:
        path.write_text(text)
    with pytest.raises(RequestError, match=re.escape(f"--task {path}: ") + f".*{message}") as caught:
        find(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(RequestError, match="--task digit: unknown; did you mean 'digits'"):
        find("digit")
    assert "digits" in TASKS
