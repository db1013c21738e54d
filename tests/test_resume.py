"""Killed and interrupted at random moments from launch on, then resumed: the same bits."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from testbed import records
from tests.processes import launch, wait_until_it_listens
from tests.trials import without_times

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
COMMANDS = {
    "alone": ["benchmarks/run.py", "--opt", "adam", "--opt", "sgd", "--steps", "400"],
    "batched": [
        *("benchmarks/sweep.py", "--opt", "adam", "--opt", "sgd", "--steps", "150"),
        *("--trials", "3", "--seeds", "1"),
    ],
}
SIGNALS_IN_A_ROW = 4  # until the command may run to its end


class Whole:
    """What an undisturbed command has made, and how long it took."""

    def __init__(self, words: list[str], out: Path) -> None:
        self.words = words
        begun = time.monotonic()
        finish(words, out)
        self.seconds, self.found = time.monotonic() - begun, contents(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Of each command, once for all tests."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: Whole(words, folder / name) for name, words in COMMANDS.items()}


def finish(words: list[str], out: Path) -> None:
    """Runs a command to its end."""
    process = launch(*words, "--out", out)
    _, stderr = process.communicate(timeout=600)
    assert (process.returncode, stderr) == (0, "")


def contents(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All records, but for times, the commit, and which trials were left when a batch was formed."""
    found = {}
    for record in records.read_folder(out):
        assert record.errors == [], "no line is torn"
        rows = without_times(record)
        for name in ("git", "batch"):
            rows[0].pop(name, None)
        found[str(record.path.relative_to(out))] = rows
    return found


def signals(kills: int) -> Iterator[tuple[signal.Signals, str]]:
    """That many SIGKILLs, and a fifth as many of each of the others; of what command."""
    fifth = max(1, kills // 5)
    others = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] * fifth
    mixed = [signal.SIGKILL] * kills + others
    random.Random(1).shuffle(mixed)  # noqa: S311
    names = [*COMMANDS]
    for number, of in enumerate(mixed):
        yield of, names[number // SIGNALS_IN_A_ROW % len(names)]


def disturb(words: list[str], out: Path, number: signal.Signals, seconds: float) -> bool:
    """Launches a command and sends it a signal so much later; whether that met it."""
    process = launch(*words, "--out", out)
    if number != signal.SIGKILL:
        wait_until_it_listens(process)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    assert stderr.count("\n") <= 1, stderr
    assert "Traceback" not in stdout + stderr
    if number != signal.SIGKILL and process.returncode:
        assert process.returncode == 130
        assert ": interrupted" in stderr
    return bool(process.returncode)


def require_equal(words: list[str], out: Path, expected: Mapping[str, Any]) -> None:
    """Runs the command to its end, and compares what it has made."""
    finish(words, out)
    assert contents(out) == expected
    assert not [path for path in out.rglob("*") if path.suffix in (".checkpoint", ".lock")]


def test_disturbed_at_random_moments_a_command_makes_what_it_makes_undisturbed(
    tmp_path: Path, request: pytest.FixtureRequest, whole: dict[str, Whole]
):
    moments = random.Random(0)  # noqa: S311
    left, folders = list(signals(request.config.getoption("--kills"))), 0
    while left:
        name, out = left[-1][1], tmp_path / str(folders)
        folders += 1
        for _ in range(SIGNALS_IN_A_ROW):
            if not left or left[-1][1] != name:
                break
            of = whole[name]
            begin = time.monotonic()
            if not disturb(of.words, out, left[-1][0], moments.uniform(0, of.seconds)):
                # It ended before: the machine is faster than it was.
                of.seconds = min(0.9 * of.seconds, time.monotonic() - begin)
                break
            left.pop()
        require_equal(whole[name].words, out, whole[name].found)
    assert folders


def test_what_was_trained_before_a_kill_is_not_trained_again(tmp_path: Path):
    """The other test would pass if nothing were ever resumed."""
    words = ["benchmarks/run.py", "--opt", "adam", "--steps", "1200"]
    process = launch(*words, "--out", tmp_path)
    while not list(tmp_path.rglob("*.checkpoint/*")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    finish(words, tmp_path)
    (record,) = records.read_folder(tmp_path)
    assert record.end is not None
    assert record.end["resumed"] == 1
