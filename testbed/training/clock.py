"""What is on the clock, what is off it, and the check that both add up.

Every second of a trial belongs to one row of its ledger. Only `train_s` is on the clock: data,
lessons, training steps and `eval_params`, until the whole state is computed.

A process that is stopped while it trains (Ctrl-Z, `kill -STOP`, `scontrol suspend`, a frozen container)
does not train: what it stands still is in `paused_s`. While the whole machine is suspended, the clock
stands still by itself, on Linux and macOS.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ROWS = ("setup_s", "compile_s", "train_s", "eval_s", "checkpoint_s", "record_s", "paused_s")

TICK = 0.05  # seconds from one sign of life to the next; a pause is known to within one
LONGEST = 1.0  # seconds without a sign of life that may be the machine's load


class Pulse:
    """Notices that the process was stopped: a thread gives a sign of life at every tick.

    A thread that is late because the machine is busy is no pause: then the process itself has computed
    in the meantime. One that was stopped has computed for at most the ticks before and after.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._paused = 0.0
        self._last = time.perf_counter(), time.process_time()

    def paused(self) -> float:
        """Seconds for which the process was stopped since the first call, as far as it was watched."""
        if self._thread is None or not self._thread.is_alive():  # a forked process has no threads
            self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
            self._thread.start()
        return self._sign()

    def _beat(self) -> None:
        while True:
            time.sleep(TICK)
            self._sign()

    def _sign(self) -> float:
        with self._lock:
            now, computed = time.perf_counter(), time.process_time()
            gap, computing = now - self._last[0], computed - self._last[1]
            if gap > LONGEST and computing < 2 * TICK * (os.cpu_count() or 1):
                self._paused += gap - TICK
            self._last = now, computed
            return self._paused


_PULSE = Pulse()  # of this process


class Ledger:
    """Seconds by row, and the wall time that they should add up to."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._rows = dict.fromkeys((*ROWS, "data_wait_s"), 0.0)

    def resume(self, rows: Mapping[str, float]) -> None:
        """Continues from the rows of a checkpoint.

        Work that was lost after that checkpoint is in no row, nor in the wall time.
        """
        for row in self._rows:
            self._rows[row] += rows.get(row, 0.0)
        self._started -= rows.get("wall_s", 0.0)

    @contextmanager
    def on(self, row: str) -> Iterator[None]:
        """Adds the time spent inside to `row`; not to be nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._rows[row] += time.perf_counter() - started

    @contextmanager
    def training(self) -> Iterator[None]:
        """Adds the time spent inside to `train_s`, but while the process is stopped to `paused_s`."""
        before = _PULSE.paused()
        try:
            with self._unless_paused("train_s"):
                yield
        finally:
            self._rows["paused_s"] += _PULSE.paused() - before

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Adds the time spent inside to `data_wait_s`, which is a part of `train_s`."""
        with self._unless_paused("data_wait_s"):
            yield

    @contextmanager
    def _unless_paused(self, row: str) -> Iterator[None]:
        started, before = time.perf_counter(), _PULSE.paused()
        try:
            yield
        finally:
            paused = _PULSE.paused() - before
            self._rows[row] += time.perf_counter() - started - paused

    @property
    def train_s(self) -> float:
        """Seconds on the clock so far."""
        return self._rows["train_s"]

    def rows(self) -> dict[str, float]:
        """All rows, with `wall_s` as of now."""
        return self._rows | {"wall_s": time.perf_counter() - self._started}


def gap(rows: Mapping[str, float]) -> float:
    """The share of the wall time that no row accounts for."""
    return 1 - sum(rows.get(row, 0.0) for row in ROWS) / rows["wall_s"]
