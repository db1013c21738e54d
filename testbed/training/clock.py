"""What is on the clock, what is off it, and the check that both add up.

Every second of a trial belongs to one row of its ledger. Only `train_s` is on the clock: data,
lessons, training steps and `eval_params`, until the whole state is computed.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ROWS = ("setup_s", "compile_s", "train_s", "eval_s", "checkpoint_s", "record_s")


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
    def waiting(self) -> Iterator[None]:
        """Adds the time spent inside to `data_wait_s`, which is a part of `train_s`."""
        with self.on("data_wait_s"):
            yield

    @property
    def train_s(self) -> float:
        """Seconds on the clock so far."""
        return self._rows["train_s"]

    def rows(self) -> dict[str, float]:
        """All rows, with `wall_s` as of now."""
        return self._rows | {"wall_s": time.perf_counter() - self._started}


def gap(rows: Mapping[str, float]) -> float:
    """The share of the wall time that no row accounts for."""
    return 1 - sum(rows[row] for row in ROWS) / rows["wall_s"]
