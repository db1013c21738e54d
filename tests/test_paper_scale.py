"""`--task flowers`, as a user meets it: killed, resumed, with workers, on many devices and hosts.

The data set and the checkpoint are in their true formats, the networks are tiny (`stand_ins`).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from testbed import paths, records
from tests import stand_ins
from tests.trials import without_times

ROOT = Path(__file__).parents[1]
STEPS = 20
LONG = ("--opt", "adam", "--steps", 100)  # argparse takes the last --steps
EARLY = {"CHECKPOINT_EVERY": "0.1"}  # seconds: a kill then leaves most of a trial to be resumed
SCORES = ("train_loss", "train_kl", "validation_kl", "test_kl")
COUNTED = [f"{part}_{what}" for part in ("validation", "test") for what in ("agreement", "accuracy")]


@pytest.fixture(scope="module")
def launch(true_formats):
    """Starts run.py on the stand-ins; their programs are compiled once for all tests of this file."""
    folder = true_formats
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(paths.cache("xla"))
    known = {
        "TFDS_DATA_DIR": str(folder / "data"),
        "FUNMATCH_CHECKPOINTS": str(folder / "checkpoints"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "PYTHONPATH": str(ROOT),
    }

    def start(out: Path, *words: object, devices: int = 1, **environment: str):
        # A few slow steps of programs that compile in half the time.
        quick = "--xla_backend_optimization_level=0"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {quick}"}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "tests/stand_ins.py", "run", "--task", "flowers",
             "--steps", str(STEPS), "--out", out, *map(str, words)],
            cwd=ROOT,
            env=os.environ | known | flags | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own
        )  # fmt: skip

    return start


def finish(process) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-2000:]
    assert stderr == ""


def only_record(out: Path) -> records.Record:
    (record,) = records.read_folder(out)
    assert record.end is not None
    assert record.end["status"] == "finished"
    return record


# Adam at the paper's larger learning rate is chaotic on so small a network: rounding grows from 1e-7 to
# 1e-4 within these 20 steps. At that of its medium horizon it does not.
CALM = ("--opt", "adam", "--hp", "learning_rate=0.001")


@pytest.fixture(scope="module")
def calm(launch, tmp_path_factory):
    """The trial that many devices are compared with."""
    out = tmp_path_factory.mktemp("calm")
    finish(launch(out, *CALM))
    return only_record(out)


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The uninterrupted trial, on one device, without workers."""
    out = tmp_path_factory.mktemp("whole")
    finish(launch(out, *LONG))
    return only_record(out)


def test_the_papers_recipe_is_adams_default_and_the_record_has_precision_and_device(whole):
    assert whole.header["hyperparameters"]["learning_rate"] == 0.003
    assert whole.header["hyperparameters"]["weight_decay"] == 3e-4
    assert whole.header["precision"] == {
        "parameters": "float32",
        "matmul": "highest",
        "student": "float32",
        "teachers": ["float32"],
    }
    assert whole.header["device"]["used"] == 1
    assert whole.end["ledger"]["data_wait_s"] > 0
    first, last = whole.measurements[0], whole.measurements[-1]
    assert last["train_loss"] < 0.9 * first["train_loss"]


def test_killed_and_resumed_with_workers_it_ends_bit_identical(launch, whole, tmp_path):
    killed = tmp_path / "killed"
    process = launch(killed, *LONG, FUNMATCH_WORKERS="2", **EARLY)
    deadline = time.monotonic() + 200
    while not any(path.name.isdigit() for path in killed.glob("*/*/*.checkpoint/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # returns when its workers have ended too
    (cut,) = records.read_folder(killed)
    assert cut.end is None
    finish(launch(killed, *LONG, FUNMATCH_WORKERS="2"))
    resumed = only_record(killed)
    assert resumed.end["resumed"] == 1
    assert without_times(resumed) == without_times(whole)


def test_interrupted_with_its_workers_it_saves_and_resumes(launch, tmp_path):
    """A terminal's SIGINT and SLURM's SIGTERM reach the whole group of processes."""
    process = launch(tmp_path, *LONG, FUNMATCH_WORKERS="2")
    while not records.paths(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "the same command resumes it" in stderr
    assert stderr.count("\n") == 1
    assert any(path.name.isdigit() for path in tmp_path.rglob("*.checkpoint/*"))


def assert_same_curve(record, other, rtol=1e-4):
    assert len(record.measurements) == len(other.measurements)
    for ours, theirs in zip(record.measurements, other.measurements, strict=True):
        for score in SCORES:
            np.testing.assert_allclose(ours[score], theirs[score], rtol=rtol, err_msg=score)
        for count in COUNTED:
            assert ours[count] == theirs[count], (count, ours["step"])


@pytest.mark.parametrize("devices", [2, 8])
def test_on_many_devices_it_follows_the_same_curve(launch, calm, tmp_path, devices):
    finish(launch(tmp_path, *CALM, devices=devices))
    record = only_record(tmp_path)
    assert record.header["device"]["used"] == devices
    assert_same_curve(record, calm)


def test_on_two_hosts_of_four_devices_it_is_killed_resumed_and_follows_the_same_curve(
    launch, calm, tmp_path
):
    """Each host with an empty cache of its own."""

    def hosts():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return [
            launch(
                tmp_path / "runs", *CALM, "--hosts", f"localhost:{port}", "--processes", 2,
                "--process", i, devices=4, XDG_CACHE_HOME=str(tmp_path / f"cache{i}"), **EARLY,
            )
            for i in (0, 1)
        ]  # fmt: skip

    first = hosts()
    while not any(path.name.isdigit() for path in tmp_path.glob("runs/*/*/*.checkpoint/*")):
        assert all(host.poll() is None for host in first), [host.communicate() for host in first]
        time.sleep(0.01)
    for host in first:
        host.kill()
        host.communicate(timeout=60)
    for host in hosts():
        finish(host)
    record = only_record(tmp_path / "runs")
    assert record.end["resumed"] == 1
    assert record.header["device"]["used"] == 8
    assert_same_curve(record, calm)


def test_shampoo_divides_its_blocks_and_follows_the_same_curve(launch, tmp_path):
    calm = ("--opt", "shampoo", "--hp", "learning_rate=0.002")
    for devices in (1, 8):
        finish(launch(tmp_path / str(devices), *calm, devices=devices))
    # Roots of nearly singular statistics magnify rounding.
    assert_same_curve(only_record(tmp_path / "1"), only_record(tmp_path / "8"), rtol=1e-3)


def test_a_student_starts_from_a_checkpoint(launch, whole, tmp_path):
    """From the teacher's own weights there is nothing left to learn."""
    stand_ins.write_teacher(tmp_path)
    path = tmp_path / "R152x2_T_flowers128.npz"
    finish(launch(tmp_path / "runs", *LONG, "--init", path))
    record = only_record(tmp_path / "runs")
    assert record.header["init"]["fresh_head"] is False
    assert record.header["run_id"] != whole.header["run_id"]
    first = record.measurements[0]
    assert first["test_kl"] == pytest.approx(0, abs=1e-6)
    assert first["test_agreement"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "3"], "--devices 3: this machine has 1; choose 1 to 1"),
        (["--init", "nowhere.npz"], "--init nowhere.npz: cannot be read"),
        (["--lessons-from", "photographs"], "choose one of flowers, pets"),
        (["--hosts", "auto"], "give HOST:PORT"),
        (["--processes", "2"], "they need --hosts"),
        (["--fresh-head"], "it needs --init"),
    ],
)
def test_bad_input_is_one_line_and_status_2(launch, tmp_path, words, message):
    process = launch(tmp_path / "runs", "--opt", "adam", *words)
    _, stderr = process.communicate(timeout=100)
    assert message in stderr
    assert stderr.count("\n") == 1
    assert process.returncode == 2
    assert not records.paths(tmp_path)
