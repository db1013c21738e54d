"""Killed with SIGKILL at random moments and resumed each time, by the command itself."""

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import records
from tests.trials import without_times

RUN = [sys.executable, "benchmarks/run.py", "--opt", "shampoo"]
ROOT = Path(__file__).parents[1]


def test_killed_at_random_moments_the_record_is_that_of_an_uninterrupted_trial(
    tmp_path: Path, request: pytest.FixtureRequest
):
    kills = request.config.getoption("--kills")
    moments = random.Random(0)  # noqa: S311
    # Long enough that the trial is still running at the last kill.
    command = [*RUN, "--steps", str(300 * (kills + 1))]
    subprocess.run([*command, "--out", tmp_path / "whole"], cwd=ROOT, check=True, capture_output=True)
    for number in range(kills):
        process = subprocess.Popen(
            [*command, "--out", tmp_path / "killed"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number % 2 == 0:  # every other one while it trains; the rest at any moment from the start
            wait_for_progress(process, tmp_path / "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0.5, 4))
        process.kill()
        process.wait()
    last = [*command, "--out", tmp_path / "killed"]
    subprocess.run(last, cwd=ROOT, check=True, capture_output=True)
    (whole,), (killed,) = (records.read_folder(tmp_path / name) for name in ("whole", "killed"))
    assert killed.errors == []
    assert killed.end is not None
    assert killed.end["resumed"] > 0, "no kill hit the trial after its first checkpoint"
    assert without_times(killed) == without_times(whole)
    assert not list(tmp_path.rglob("*.checkpoint"))


def wait_for_progress(process: subprocess.Popen[bytes], out: Path) -> None:
    """Until the record is longer than it was, or the trial is over."""

    def length() -> int:
        return sum(path.stat().st_size for path in records.paths(out))

    before = length()
    while length() <= before and process.poll() is None:
        time.sleep(0.02)
