"""What signals do to a command from its first import on, and what any terminal shows of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.results import report_size
from testbed import cli, records
from tests.processes import ROOT, children_of, is_alive, launch, wait_until_it_listens
from tests.test_analysis import FAST, SLOW, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LINE = re.compile(r"[\w. -]+: interrupted(: [^\n]*)?\n")


@pytest.mark.parametrize(
    ("words", "seconds", "number"),
    [
        (["benchmarks/run.py", "--opt", "adam"], 0.0, signal.SIGINT),
        (["benchmarks/run.py", "--opt", "adam"], 0.3, signal.SIGTERM),
        (["benchmarks/run.py", "--opt", "adam"], 0.8, signal.SIGINT),
        (["benchmarks/sweep.py", "--opt", "adam"], 0.6, signal.SIGHUP),
        (["analysis/report.py", "runs"], 0.0, signal.SIGTERM),
        (["analysis/report.py", "runs"], 0.4, signal.SIGINT),
        (["-m", "benchmarks", "run", "--opt", "adam"], 0.1, signal.SIGHUP),
        (["-m", "benchmarks"], 0.0, signal.SIGINT),
    ],
)
def test_a_signal_during_the_imports_is_one_line(tmp_path, words, seconds, number):
    process = launch(*words, *(["--out", tmp_path] if len(words) > 2 else []))
    wait_until_it_listens(process)
    time.sleep(seconds)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if process.returncode == 130:
        assert LINE.fullmatch(stderr)
    else:  # it had ended already
        assert process.returncode in (0, 2)
        assert stderr.count("\n") <= 1


def test_nohup_is_respected(tmp_path):
    words = ["benchmarks/run.py", "--opt", "sgd", "--steps", "20", "--out", tmp_path]
    nohup = ["bash", "-c", "trap '' HUP; exec \"$@\"", "nohup", sys.executable, *words]
    process = subprocess.Popen(nohup, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    for _ in range(6):
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0


def test_a_second_signal_ends_at_once_without_a_traceback(tmp_path):
    process = launch("benchmarks/run.py", "--opt", "adam", "--steps", "4000", "--out", tmp_path)
    while not records.paths(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert LINE.fullmatch(stderr)


def wait_for_drawing(process: subprocess.Popen[str]) -> list[int]:
    """The processes that draw figures, once there are some."""
    while len(children := children_of(process.pid)) < 3:  # one of them keeps track of semaphores
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return children


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="figures are drawn in this process then")
@pytest.mark.parametrize(
    ("seconds", "number"), [(0.0, signal.SIGHUP), (2.0, signal.SIGINT), (2.0, signal.SIGKILL)]
)
def test_an_interrupted_report_leaves_the_earlier_one_and_no_process(tmp_path, seconds, number):
    """Also where a terminal sends the signal to all processes, as SIGINT."""
    report_size.write_records(tmp_path / "runs", 80, 20, workloads=4)
    out = tmp_path / "report"
    out.mkdir()
    (out / "index.html").write_text("the earlier one")
    process = launch("analysis/report.py", tmp_path / "runs", "--out", out, start_new_session=True)
    children = wait_for_drawing(process)
    time.sleep(seconds)
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert (out / "index.html").read_text() == "the earlier one"
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert stderr == "report.py: interrupted\n"
        assert list(out.iterdir()) == [out / "index.html"]
    until = time.monotonic() + 30
    while any(map(is_alive, children)):
        assert time.monotonic() < until, "a process is left over"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_no_terminal_is_unable_to_show_a_text(tmp_path, environment):
    for seed in range(3):
        write(tmp_path / "runs", "größer 中 \u202e∞", seed, FAST)
        write(tmp_path / "runs", "adam", seed, SLOW)
    environment = os.environ | environment
    words = ("analysis/report.py", tmp_path / "runs", "--out", tmp_path / "report")
    process = launch(*words, env=environment, errors="strict", encoding="latin-1")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert "∞".encode("ascii", "backslashreplace").decode() in stdout
    refused = launch("benchmarks/run.py", "--opt", "größer中", env=environment, encoding="latin-1")
    stderr = refused.communicate(timeout=120)[1]
    assert refused.returncode == 2
    assert stderr.count("\n") == 1
    listed = launch("benchmarks/run.py", "--list", env=environment, encoding="latin-1")
    assert listed.communicate(timeout=120)[1] == ""
    assert listed.returncode == 0


NOISY = """
import warnings
import optax
def build(total_steps, *, learning_rate=0.1):
    warnings.warn("two\\nlines \\x1b[31m and colours", stacklevel=1)
    return optax.sgd(learning_rate)
"""


def test_a_warning_is_one_line(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    words = ["--opt", tmp_path / "noisy.py", "--steps", "10", "--out", tmp_path / "runs"]
    process = launch("benchmarks/run.py", *words)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = stderr.splitlines()
    assert lines
    assert set(lines) == {"run.py: warning: two lines \\x1b[31m and colours"}


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (SystemExit(0), 1, "failed: something that it runs called sys.exit(0)"),
        (SystemExit(130), 1, "failed: something that it runs called sys.exit(130)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines\x07"), 1, "failed: ValueError: two lines\\x07"),
        (MemoryError(), 1, "failed: MemoryError"),
        (RecursionError("x" * 10_000), 1, "failed: RecursionError: xx"),
    ],
)
def test_each_end_is_one_line_and_has_its_status(capsys, monkeypatch, raised, status, line):
    monkeypatch.setattr(sys, "argv", ["a.py"])

    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as end:
        cli.serve(main)
    assert end.value.code == status
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"a.py: {line}")
    assert stderr[:-1].isprintable()


def test_a_full_disk_behind_stdout_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        process = launch("benchmarks/run.py", "--list", stdout=full)
        assert process.communicate(timeout=60)[1].count("\n") == 1
    assert process.returncode == 1


def test_help_is_status_0():
    process = launch("benchmarks/run.py", "--help")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert "--opt" in stdout
    assert ROOT.is_dir()
