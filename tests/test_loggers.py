"""Loggers: they log what the record has, add nothing to the clock, and end no trial."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from benchmarks import loggers, run, sweep
from benchmarks.loggers import LOGGERS, Logger, Loggers
from benchmarks.runner import run_all
from testbed import devices, records
from testbed.cli import Interrupted
from testbed.tasks import TASKS
from testbed.training import alone, clock, loop
from tests.trials import trial_of

ROOT = Path(__file__).parents[1]


class Silent:
    """A logger that stores nothing; tests make it do something at one of its calls."""

    def __init__(self, folder, header):
        self.called("begin")

    def measured(self, row):
        self.called("measured", row["step"])

    def ended(self, row):
        self.called("ended")

    def close(self):
        self.called("close")

    def called(self, name, step=None):
        pass


class InterruptsAt12(Silent):
    def called(self, name, step=None):
        if step == 12:
            signal.raise_signal(signal.SIGINT)


class Sleeps(Silent):
    def called(self, name, step=None):
        time.sleep(0.05)


def run_and_interrupt(trial, out: Path) -> Path:
    """Runs until an interrupt at step 12; then adds rows, as if the trial was killed later."""
    log = Loggers(
        {"tensorboard": LOGGERS["tensorboard"], "interrupts": Logger("json", InterruptsAt12)}, out
    )
    with pytest.raises(Interrupted):
        run_all([trial], out, log=log)
    path = trial.record_path(out)
    row = records.read(path).measurements[-1]
    with path.open("ab") as file:
        file.write(records.encode(row | {"step": 16, "train_kl": 99.0}) + b'{"kind": "measurem')
    return path


def events(folder: Path) -> Iterator[Event]:
    """The events in one run's folder."""
    (path,) = folder.glob("*tfevents*")
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack_from("<Q", content)
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def numbers(record: records.Record) -> list[tuple[int, str, float]]:
    """The measurements of a record, as a logger should have them, in float32 as TensorBoard has them."""
    return [
        (row["step"], name, float(np.float32(value)))
        for row in record.measurements
        for name, value in row.items()
        if name not in ("kind", "step") and value is not None
    ]


def test_event_files_have_the_records_measurements_also_of_a_killed_trial(tiny, out, monkeypatch):
    monkeypatch.setattr(loop, "DISPATCH", 0.0)  # one step per dispatch
    trial = trial_of(tiny)
    path = run_and_interrupt(trial, out)
    folder = out / "tensorboard" / "tiny" / "adam" / path.stem
    assert [step for step, tag, _ in scalars(folder) if tag == "train_kl"] == [0, 4, 8, 12]
    (file,) = folder.iterdir()
    file.rename(folder / "events.out.tfevents.1700000000.elsewhere")  # on another day, another host
    run_all([trial], out, log=loggers.choose(["tensorboard"], out))
    record = records.read(path)
    assert record.end["resumed"] == 1
    assert scalars(folder) == numbers(record)
    texts = {
        value.tag: value.tensor.string_val[0].decode()
        for event in events(folder)
        for value in event.summary.value
        if value.tag.endswith("text_summary")
    }
    for name, row in (("header", record.header), ("end", record.end)):
        assert json.loads(texts[f"{name}/text_summary"].strip("`json\n")) == row
    assert records.paths(out) == [path], "what loggers write is no record"


def test_the_clock_does_not_run_while_a_logger_does(tiny, tmp_path):
    ledgers = []
    for name, begin in (("silent", Silent), ("sleeps", Sleeps)):
        log = Loggers({name: Logger("json", begin)}, tmp_path)
        (path,) = run_all([trial_of(tiny)], tmp_path / name, log=log)
        record = records.read(path)
        assert record.measurements[-1]["train_seconds"] == record.end["ledger"]["train_s"]
        ledgers.append(record.end["ledger"])
    silent, sleeps = ledgers
    slept = 0.05 * 11  # while the trial waited: a header and ten measurements, the last comes after it
    assert sleeps["train_s"] < silent["train_s"] + slept / 2
    assert sleeps["record_s"] > slept
    assert abs(clock.gap(sleeps)) < 0.02, "every second of it is in the ledger"


@pytest.mark.parametrize("where", ["begin", "measured", "ended", "close"])
def test_a_logger_that_raises_is_given_up_and_ends_no_trial(tiny, out, capsys, where):
    calls = []

    class Raises(Silent):
        def called(self, name, step=None):
            calls.append(name)
            if name == where:
                raise OSError(28, "No space left\non device")

    log = Loggers({"mine": Logger("json", Raises)}, out)
    paths = run_all([trial_of(tiny, seed=seed) for seed in (0, 1)], out, log=log)
    stderr = capsys.readouterr().err
    assert stderr.startswith("--log mine: given up (OSError: [Errno 28] No space left on device)")
    assert stderr.count("\n") == 1
    assert calls.count("begin") == 1, "the second trial does without it"
    for path in paths:
        record = records.read(path)
        assert record.end["status"] == "finished"
        assert record.errors == []
        assert [row["step"] for row in record.measurements] == list(range(0, 41, 4))


def test_a_failed_trial_is_logged_as_failed(tiny, out, monkeypatch):
    calls = []

    class Listens(Silent):
        def measured(self, row):
            if row["step"] == 8:
                monkeypatch.setattr(alone, "measurement_row", None)  # the next measurement will raise

        def ended(self, row):
            calls.append(row["status"])

    with pytest.raises(TypeError):
        run_all([trial_of(tiny)], out, log=Loggers({"listens": Logger("json", Listens)}, out))
    assert calls == ["failed"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wandb", "--log wandb: it needs the package wandb; pip install wandb"),
        (
            "tensorboard",
            "--log tensorboard: it needs the package tensorboardX; pip install tensorboardX",
        ),
        ("mlflow", "invalid choice: 'mlflow' (choose from 'tensorboard', 'wandb')"),
    ],
)
def test_a_missing_logger_is_one_line_and_status_2(command, tmp_path, monkeypatch, name, line):
    for package in ("wandb", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    status, stdout, stderr = command(run, "--opt", "adam", "--log", name)
    assert (status, stdout) == (2, "")
    assert line.replace("'", "") in stderr.replace("'", "")  # Python 3.12 has no quotes there
    assert stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_finished_trials_are_logged_too_by_the_first_host_alone(tiny, out, monkeypatch):
    (path,) = run_all([trial_of(tiny)], out)
    before = path.read_bytes()
    monkeypatch.setattr(devices, "is_first", lambda: False)
    loggers.choose(["tensorboard"], out).send([path])
    assert not (out / "tensorboard").exists()
    monkeypatch.undo()
    for _ in range(2):  # the second time changes nothing
        run_all([trial_of(tiny)], out, log=loggers.choose(["tensorboard"], out))
        found = scalars(out / "tensorboard" / "tiny" / "adam" / path.stem)
        assert found == numbers(records.read(path))
    assert path.read_bytes() == before


def test_a_sweep_logs_all_its_trials(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("testbed.tasks.TASKS", {**TASKS, "tiny": tiny})
    words = ("--task", "tiny", "--opt", "adam", "--ruleset", "self", "--studies", "2", "--no-batch")
    status, _, stderr = command(sweep, *words, "--steps", "8", "--log", "tensorboard")
    assert (status, stderr) == (0, "")
    found = records.read_folder(tmp_path / "runs")
    assert len(found) == 2
    for record in found:
        folder = tmp_path / "runs" / "tensorboard" / "tiny" / "adam" / record.header["run_id"]
        assert scalars(folder) == numbers(record)


def wandb_rows(path: Path) -> Iterator[Any]:
    """The messages of a .wandb file: after seven bytes, a log as LevelDB writes it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = path.read_bytes(), 7, b""
    while at < len(content):
        if (left := 2**15 - at % 2**15) < 7:  # of a block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            yield Record.FromString(message)
            message = b""


def test_wandb_offline_has_the_records_measurements_once(tiny, out, tmp_path):
    """No account, no network: nothing listens at the addresses of its server and proxies."""
    (path,) = run_all([trial_of(tiny)], out)
    record = records.read(path)
    before = tmp_path / "before.jsonl"  # the trial was killed, and is being run again
    other = [row | {"train_kl": 99.0} for row in record.measurements[:5]]
    before.write_bytes(b"".join(map(records.encode, [record.header, *other])))
    nowhere = "http://127.0.0.1:9"
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "WANDB_BASE_URL": nowhere}
    code = """
import pathlib, sys
from benchmarks import loggers
out, *paths = map(pathlib.Path, sys.argv[1:])
for path in paths:
    loggers.choose(["wandb"], out).send([path])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, out, before, path],
        cwd=ROOT,
        env=env | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    sync = f"wandb sync {out}/wandb/offline-run-* sends it"
    assert done.stderr == f"--log wandb: offline, without an API key; {sync}\n", "once"
    (log,) = (out / "wandb").glob("offline-run-*/*.wandb")
    rows = list(wandb_rows(log))
    logged = [
        (row.history.step.num, name, float(np.float32(json.loads(item.value_json))))
        for row in rows
        for item in row.history.item
        if not (name := "/".join(item.nested_key) or item.key).startswith("_")
    ]
    assert sorted(logged) == sorted(numbers(record))
    assert {
        item.key: json.loads(item.value_json) for row in rows for item in row.run.config.update
    }.items() >= record.header.items()
    assert [row.exit.exit_code for row in rows if row.HasField("exit")] == [0]
    assert records.paths(out) == [path], "what loggers write is no record"


@pytest.mark.parametrize(
    ("mode", "key", "netrc", "expected"),
    [
        (None, None, "", "offline"),
        (None, None, "machine elsewhere login me password x", "offline"),
        (None, None, "machine wandb.example login user password x", None),
        (None, "x", "", None),
        ("offline", None, "", None),
        ("online", None, "", None),
    ],
)
def test_wandb_is_offline_only_without_a_setting_and_without_a_login(
    tmp_path, monkeypatch, mode, key, netrc, expected
):
    settings = SimpleNamespace(
        api_key=key, identity_token_file=None, base_url="https://wandb.example", mode=mode or "online"
    )
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(setup=lambda: SimpleNamespace(settings=settings))
    )
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert loggers._mode(tmp_path) == expected
