"""The clock of a process that is stopped: it trains no longer for it."""

import json
import signal
import subprocess
import sys
import time

import pytest

from testbed.training import clock

STOP, TRAINS = 2.0, 1.0

# Without the package, whose imports take seconds.
CHILD = f"""
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("clock", {clock.__file__!r})
clock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clock)

def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

ledger = clock.Ledger()
for how in sys.argv[1:]:
    with ledger.training() if how != "evaluating" else ledger.on("eval_s"):
        print("go", flush=True)
        if how == "waiting":
            with ledger.waiting():
                time.sleep({TRAINS})
        elif how == "alone":  # no other thread runs until this is done
            begun = time.process_time()
            sum(range(10**8))
            print(time.process_time() - begun, flush=True)
        else:
            compute({TRAINS})
print(json.dumps(ledger.rows()))
"""


def stopped(*how):
    """The ledger of a process that trains so, and is stopped once in each."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, *how], stdout=subprocess.PIPE, text=True)
    for _ in how:
        assert child.stdout.readline() == "go\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(STOP)
        child.send_signal(signal.SIGCONT)
    rows = json.loads(child.communicate()[0].splitlines()[-1])
    assert abs(clock.gap(rows)) < 0.01
    return rows


@pytest.mark.parametrize("how", ["computing", "waiting"])
def test_a_stop_is_not_on_the_clock_and_has_a_row_of_its_own(how):
    rows = stopped(how)
    assert rows["paused_s"] == pytest.approx(STOP, abs=0.2)
    # What it waits for may come while it stands still; and a busy machine takes its time.
    assert rows["train_s"] == pytest.approx(rows["wall_s"] - rows["paused_s"], abs=0.3)
    assert rows["train_s"] < rows["wall_s"] - STOP + 0.2
    assert rows["data_wait_s"] <= rows["train_s"]


def test_each_stop_is_counted():
    assert stopped("computing", "computing")["paused_s"] == pytest.approx(2 * STOP, abs=0.4)


def test_a_stop_beside_training_is_in_its_own_row():
    rows = stopped("evaluating")
    assert rows["paused_s"] == 0
    assert rows["eval_s"] >= STOP + TRAINS


def test_a_process_that_computes_without_pause_is_not_stopped():
    """Its other threads do not run meanwhile, and give no sign of life."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "alone"], capture_output=True, text=True, check=True
    )
    _, computed, rows = child.stdout.splitlines()
    assert float(computed) > clock.LONGEST
    assert json.loads(rows)["paused_s"] == 0


def test_rows_from_before_there_was_one_for_pauses_add_up():
    rows = dict.fromkeys(clock.ROWS[:-1], 1.0) | {"wall_s": 6.0}
    assert clock.gap(rows) == 0
    ledger = clock.Ledger()
    ledger.resume(rows)
    assert ledger.rows()["paused_s"] == 0
