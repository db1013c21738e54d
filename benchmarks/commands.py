"""What the commands share: from words to trials, running them, and ending with the right status."""

import argparse
import difflib
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

from optimizers import registry
from optimizers.spec import OptimizerError, Spec
from testbed import compilation, records
from testbed.errors import RequestError
from testbed.tasks.task import Task
from testbed.trial import Optimizer, Trial, run

Value = TypeVar("Value")


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user, or whoever manages the machine, asked for an end."""


def serve(main: Callable[[], None]) -> None:
    """Runs a command and exits: 0 done; 1 failed; 2 cannot be served; 130 interrupted.

    What goes wrong is told in one line; `--debug` anywhere on the command line shows the traceback.
    """
    debug = "--debug" in sys.argv
    try:
        main()
    except (RequestError, OptimizerError) as error:
        status, line = 2, str(error)
    except (Interrupted, KeyboardInterrupt) as error:
        status, line = 130, f"interrupted{f': {error}' if str(error) else ''}"
    except Exception as error:
        line = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        status = 1
    else:
        sys.exit(0)
    if debug:
        traceback.print_exc()
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)


def choose(option: str, name: str, among: Mapping[str, Value]) -> Value:
    """among[name].

    Raises:
      RequestError: there is no such name; the message has the nearest.
    """
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"{option} {name}: no such choice; the nearest is {near!r}, of {', '.join(among)}"
        )
    return among[name]


def positive(text: str) -> int:
    """A whole number from 1."""
    if (value := natural(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 to 2^31 - 1")
    return int(text)


def make_trial(
    task: Task, protocol: str, spec: Spec, total_steps: int, seed: int, hp: Mapping[str, Any]
) -> Trial:
    """A trial; `hp` are values that replace the optimizer's defaults."""
    optimizer = Optimizer(
        name=spec.name,
        build=spec.build,
        hyperparameters=registry.defaults(spec) | dict(hp),
        sha256=registry.source_sha256(spec),
        eval_params=spec.eval_params,
    )
    return Trial(task, protocol, optimizer, total_steps, seed)


def run_all(trials: Sequence[Trial], out: Path, *, fresh: bool = False) -> list[Path]:
    """Runs what is not finished of the trials, with progress on a terminal; their records.

    Raises:
      Interrupted: on the first SIGINT or SIGTERM, once the running trial has saved a checkpoint.
    """
    compilation.enable_cache()
    command = shlex.join(["python", *sys.argv])
    with interrupts() as interrupted:
        for number, trial in enumerate(trials, start=1):
            progress = run(trial, out, command=command, fresh=fresh)
            label = f"{trial.task.name} {trial.optimizer.name} seed {trial.seed}"
            if len(trials) > 1:
                label = f"[{number}/{len(trials)}] {label}"
            # disable=None: shown on a terminal, silent in a pipe.
            with tqdm(total=trial.total_steps, desc=label, unit="step", disable=None) as bar:
                for number_of_dispatches, at in enumerate(progress):
                    if not number_of_dispatches:  # set-up and what a resumed trial has are no speed
                        bar.initial = at.step
                        bar.unpause()
                    bar.n = at.step
                    bar.set_postfix(
                        kl=_short(at.measurement.get("validation_kl")),
                        agree=_short(at.measurement.get("validation_agreement")),
                        train=f"{at.train_seconds:.1f}s",
                    )
                    if interrupted():
                        progress.close()
                        raise Interrupted(
                            f"{label} at step {at.step} of {at.total_steps}; the same command resumes it"
                        )
    return [trial.record_path(out) for trial in trials]


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only makes the yielded function true; a second one ends."""
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_table(paths: Sequence[Path]) -> None:
    """One line per record: how it ended, at what, and when it reached the target."""
    head = ("optimizer", "seed", "status", "steps", "seconds", "KL", "agreement", "accuracy")
    rows = [(*head, "steps to target", "record")]
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
                record.end["status"] if record.end else "interrupted",
                str(record.end["step"] if record.end else last["step"]),
                f"{last['train_seconds']:.1f}",
                _short(last["validation_kl"]),
                _short(last["validation_agreement"]),
                _short(last["validation_accuracy"]),
                str(reached["step"]) if reached else "not reached",
                str(path),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"KL, agreement and accuracy on validation data; target: {target}")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
