"""Tasks from users' files: endless tokens, and an autoencoder, with everything that holds for tasks."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from analysis import frames, report
from benchmarks import run
from testbed import metrics, records
from testbed.errors import RequestError
from testbed.problem.problem import fitting, open_problem
from testbed.problem.protocols import PROTOCOLS
from testbed.tasks import TASKS, find
from testbed.training.alone import iterate
from testbed.training.batch import iterate_batch
from tests.trials import finish, trial_of, without_times

EXAMPLES = Path(__file__).parents[1] / "examples"
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
