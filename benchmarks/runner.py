"""Running trials: with progress, until they are done or interrupted; and the closing table."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from tqdm import tqdm

from benchmarks.loggers import Loggers
from testbed import compilation_cache, devices, records
from testbed.cli import Interrupted, command_line
from testbed.errors import printable
from testbed.start import handle, hear_again, restore
from testbed.training.alone import iterate
from testbed.training.loop import Progress
from testbed.training.trial import Trial


def run_all(
    trials: Sequence[Trial], out: Path, *, log: Loggers | None = None, **options: Any
) -> list[Path]:
    """Runs the trials that are not finished, with progress on a terminal; the paths of all records.

    It goes on past a trial that another process runs, comes back to it at the end, and waits for it.
    Loggers are sent all records, also those of trials that were finished before; `options` are those of
    `alone.iterate`.

    Raises:
      Interrupted: on the first of SIGINT, SIGTERM and SIGHUP, once the running trial has saved a
        checkpoint.
    """
    compilation_cache.enable_cache()
    log = log or Loggers({}, out)
    # Of several hosts, the others have given up.
    passed = records.Busy if jax.process_count() == 1 else ()
    left, waited = list(enumerate(trials, start=1)), False
    with interrupts() as interrupted:
        while left:
            busy = []
            for number, trial in left:
                label = f"{trial.task.name} {trial.optimizer.name} seed {trial.seed}"
                if len(trials) > 1:
                    label = f"[{number}/{len(trials)}] {label}"
                try:
                    _run(trial, out, printable(label), log, interrupted, options)
                except passed as error:
                    busy.append((number, trial))
                    why = str(error)
            left = busy
            if left and not waited:
                tqdm.write(f"waiting: {why}", file=sys.stderr)
                waited = True
            if left and not pause(interrupted):
                raise Interrupted("the same command resumes it")
    return [trial.record_path(out) for trial in trials]


def _run(
    trial: Trial,
    out: Path,
    label: str,
    log: Loggers,
    interrupted: Callable[[], bool],
    options: dict[str, Any],
) -> None:
    """Runs one trial with its progress; see `run_all` for what is raised."""
    progress = iterate(trial, out, command=command_line(), **options)
    with log.following(trial.record_path(out)) as send, _bar(label, trial.total_steps) as show:
        for at in progress:
            show(at)
            send(at.step)
            if devices.any_host(interrupted()):
                progress.close()
                raise Interrupted(
                    f"{label} at step {at.step} of {at.total_steps}; the same command resumes it"
                )
        send(math.inf)


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[Progress], None]]:
    """A progress bar; yields what brings it up to date."""
    shown = False
    # None: shown on a terminal, silent in a pipe.
    quiet = None if devices.is_first() else True
    with tqdm(total=total, desc=label, unit="step", disable=quiet) as bar:

        def show(at: Progress) -> None:
            nonlocal shown
            if not shown:  # set-up and what a resumed trial has are no speed
                bar.initial = at.step
                bar.unpause()
            shown = True
            bar.n = at.step
            bar.set_postfix(
                kl=_short(at.measurement.get("validation_kl")),
                agree=_short(at.measurement.get("validation_agreement")),
                train=f"{at.train_seconds:.1f}s",
            )

        yield show


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, the first signal only makes the yielded function true; a second one ends at once."""
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            hear_again()
        heard = True

    before = handle(hear)
    try:
        yield lambda: heard
    finally:
        restore(before)


def pause(interrupted: Callable[[], bool]) -> bool:
    """A second of waiting for other processes; False as soon as it is interrupted."""
    for _ in range(10):
        if interrupted():
            return False
        time.sleep(0.1)
    return True


def print_table(paths: Sequence[Path]) -> None:
    """One line per record: how it ended, at what, and when it reached the target."""
    if not devices.is_first():
        return
    head = ("optimizer", "seed", "status", "steps", "seconds", "KL", "agreement", "accuracy")
    rows: list[tuple[str, ...]] = [(*head, "steps to target", "record")]
    target = ""
    for path in paths:
        record = records.read(path)
        last, header = record.measurements[-1], record.header
        metric, value, mode = header["target"].values()
        target = f"{metric} {'<=' if mode == 'min' else '>='} {value:g}"
        reached = records.first_reaching(record.measurements, header["target"])
        rows.append(
            (
                header["optimizer"],
                str(header["seed"]),
                _status(record),
                str(record.end["step"] if record.end else last["step"]),
                f"{last['train_seconds']:.1f}" if "train_seconds" in last else "-",
                _short(last.get("validation_kl")),
                _short(last.get("validation_agreement")),
                _short(last.get("validation_accuracy")),
                str(reached["step"]) if reached else "not reached",
                str(path),
            )
        )
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"KL, agreement and accuracy on validation data; target: {printable(target)}")


def _status(record: records.Record) -> str:
    """How a trial ended, and what a reader should not miss of that."""
    if record.end is None:
        return "interrupted"
    status, (metric, _, mode) = str(record.end["status"]), record.header["target"].values()
    first, last = (record.measurements[i].get(metric) for i in (0, -1))
    sign = 1 if mode == "min" else -1
    if status == "finished" and first is not None and (last is None or sign * last > sign * first):
        status += ", worse than at the start"
    if failed := record.end.get("counts", {}).get("failed_roots"):
        status += f", {failed} roots failed"
    if record.end.get("ledger", {}).get("paused_s"):
        status += ", was stopped for a while"
    return status


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
