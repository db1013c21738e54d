"""Engines: with any engine and any process that dies, records are the same and nothing is run twice."""

import argparse
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import engines
from benchmarks.jobs import Job, Request
from benchmarks.trials import add_task_options
from testbed import records
from testbed.cli import Interrupted
from testbed.errors import RequestError
from tests.trials import without_times

# Ray and submitit leave sockets, files and processes open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
ROOT = Path(__file__).parents[1]
STEPS, RATES = 10, (0.01, 0.02, 0.03)

# Logs every step that is computed. If a file `deadly` is next to it, the first process at step 7
# removes that file and dies; before, at step 3, it waits until a checkpoint is due.
SPY = """
import os, signal, time
from pathlib import Path
import jax, jax.numpy as jnp, optax

HERE = Path(__file__).parent

def build(total_steps, *, learning_rate=0.0):
    def note(learning_rate, step):
        with (HERE / "log").open("a") as file:
            file.write(f"{learning_rate:.3g} {step}\\n")
        if step == 3 and (HERE / "deadly").exists():
            time.sleep(1.5)
        if step == 7 and (HERE / "deadly").exists():
            (HERE / "deadly").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def update(grads, step, params=None, **extra):
        jax.debug.callback(note, learning_rate, step)
        return jax.tree.map(lambda g: -0.01 * (1 + learning_rate) * g, grads), step + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
"""


@pytest.fixture
def spy(tmp_path) -> Path:
    (tmp_path / "spy.py").write_text(SPY)
    return tmp_path / "spy.py"


def _make_jobs(opt, out, rates=RATES, *, batched=False) -> list[Job]:
    options = argparse.ArgumentParser()
    add_task_options(options)
    task = vars(options.parse_args(["--protocol", "labels", "--devices", "1"]))
    return [
        Job(task, (Request(str(opt), STEPS, 0, {"learning_rate": rate}),), str(out), "", batched)
        for rate in rates
    ]


def contents(out: Path) -> dict[str, list]:
    found = records.read_folder(out)
    assert all(record.errors == [] for record in found)
    return {record.path.name: without_times(record) for record in found}


@pytest.mark.parametrize(
    ("name", "address", "batched"), [("ray", None, True), ("slurm", "local", False)]
)
def test_two_workers_of_which_one_is_killed_make_the_records_of_one_and_of_this_process(
    spy, tmp_path, monkeypatch, name, address, batched
):
    make_jobs = functools.partial(_make_jobs, batched=batched)
    # How long submitit waits for the result of a job that is over, as on a slow network disk.
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)
    engines.choose("local").run(make_jobs(spy, tmp_path / "here"))
    here = contents(tmp_path / "here")
    assert len(here) == len(RATES)
    (tmp_path / "log").unlink()
    (tmp_path / "deadly").touch()
    engine = engines.choose(name, 2, address)
    engine.run(make_jobs(spy, tmp_path / "two"))
    assert not (tmp_path / "deadly").exists(), "one was killed"
    assert contents(tmp_path / "two") == here
    resumed = [record.end["resumed"] for record in records.read_folder(tmp_path / "two")]
    assert sorted(resumed) == [0] * (len(RATES) - 1) + [1], "it continued from its checkpoint"
    steps = Counter((tmp_path / "log").read_text().split("\n")[:-1])
    assert len(steps) == len(RATES) * STEPS
    assert len({line.split()[0] for line, count in steps.items() if count > 1}) == 1
    assert max(steps.values()) == 2
    engine.run(make_jobs(spy, tmp_path / "two"))
    assert Counter((tmp_path / "log").read_text().split("\n")[:-1]) == steps, "nothing is run again"
    if name == "ray":
        engines.choose(name, 1, address).run(make_jobs(spy, tmp_path / "one"))
        assert contents(tmp_path / "one") == here


def test_two_sweeps_in_one_folder_run_nothing_twice_and_share_the_work(spy, tmp_path):
    (tmp_path / "jobs").write_bytes(pickle.dumps(_make_jobs(spy, tmp_path / "runs")))
    code = (
        "import pickle; from benchmarks import engines;"
        f"engines.choose('local').run(pickle.load(open({str(tmp_path / 'jobs')!r}, 'rb')))"
    )
    (tmp_path / "deadly").touch()  # the first dies of it, and a third takes its place
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    both.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT))
    assert sorted(process.wait() for process in both) == [-9, 0, 0]
    assert len(contents(tmp_path / "runs")) == len(RATES)
    steps = Counter((tmp_path / "log").read_text().split("\n")[:-1])
    assert len(steps) == len(RATES) * STEPS
    assert len({line.split()[0] for line, count in steps.items() if count > 1}) == 1
    assert not list(tmp_path.rglob("*.lock"))


class Fake(NamedTuple):
    """A worker whose job runs until it is stopped, unless `end` defines how it ends."""

    end: Exception | None
    stopped: list

    def ended(self) -> bool:
        if self.end:
            raise self.end
        return bool(self.stopped)

    def stop(self) -> None:
        self.stopped.append(True)


@pytest.mark.parametrize(
    ("end", "starts"),
    [(RequestError("no"), 2), (RuntimeError("no"), 2), (engines.Died("no"), 1 + engines.DEATHS)],
)
def test_a_job_that_fails_or_kills_its_workers_ends_the_sweep_and_stops_the_others(
    tmp_path, end, starts
):
    started = []

    def start(job):
        started.append(Fake(None if not started else end, []))
        return started[-1]

    with pytest.raises((RequestError, RuntimeError), match="no"):
        engines.Elsewhere(start, 2).run(_make_jobs("sgd", tmp_path, RATES[:2]))
    assert len(started) == starts
    assert started[0].stopped


def test_an_interrupt_stops_all_workers(tmp_path):
    workers = []

    def start(job):
        workers.append(Fake(None, []))
        if len(workers) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return workers[-1]

    with pytest.raises(Interrupted):
        engines.Elsewhere(start, 2).run(_make_jobs("sgd", tmp_path))
    assert [worker.stopped for worker in workers] == [[True], [True]]


def test_workers_that_make_other_records_are_detected(tmp_path):
    done = Fake(None, [True])
    with pytest.raises(RuntimeError, match="no finished record"):
        engines.Elsewhere(lambda job: done, 2).run(_make_jobs("sgd", tmp_path))


def test_an_error_in_a_worker_comes_back_in_one_line(spy, tmp_path):
    (job,) = _make_jobs("nowhere.py", tmp_path, RATES[:1])
    assert isinstance(engines.attempt(job), RequestError)
    spy.write_text("def build(total_steps, *, learning_rate=0.0):\n    raise KeyError('two\\nlines')")
    (job,) = _make_jobs(spy, tmp_path, RATES[:1])
    error = str(engines.attempt(job))
    assert "two" in error
    assert "\n" not in error


def test_progress_counts_what_any_process_has_done(tmp_path):
    planned = [engines._plan(job) for job in _make_jobs("sgd", tmp_path)]
    (one,), (other,), (_,) = (plan.paths for plan in planned)
    one.parent.mkdir(parents=True)
    header = {"kind": "header", "schema": records.SCHEMA}
    records.append(one, header, {"kind": "end", "status": "diverged", "step": 3}, at=0)
    records.append(other, header, {"kind": "measurement", "step": 4}, at=0)
    assert engines.done(planned) == (1, STEPS + 4)


@pytest.mark.parametrize(
    ("words", "missing", "message"),
    [
        (("ray",), "ray", r"not installed; pip install ray"),
        (("slurm",), "submitit", r"not installed; pip install submitit"),
        (("slurm",), None, "no sbatch here"),
        (("slurm", 2, "host"), None, "SLURM needs none"),
        (("local", 2), None, "one process"),
        (("dask",), None, "Choices: local, ray, slurm"),
        (("ray", 2, "nowhere"), None, "no Ray cluster answers"),
        (("ray", 2, "127.0.0.1:{closed}"), None, "no Ray cluster answers"),
        (("ray", 2, "ray://127.0.0.1:{closed}"), None, "no Ray cluster answers"),
    ],
)
def test_unavailable_engines_are_one_line(monkeypatch, tmp_path, words, missing, message):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        words = [
            str(w).format(closed=closed.getsockname()[1]) if i == 2 else w for i, w in enumerate(words)
        ]
        if missing:
            monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(RequestError, match=message) as caught:
            engines.choose(*words)
    assert "\n" not in str(caught.value)
