"""External loggers follow the records: TensorBoard, and Weights & Biases.

The record is the truth, and a logger is sent the rows that a record has gained, while its trial waits:
off the clock. A logger that fails ends no trial. A process that opens a run writes it from the first row
on, and replaces its old content: so no step is logged twice, however often a trial was killed and
resumed.
"""

import argparse
import functools
import importlib
import json
import math
import netrc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from testbed import devices, metrics
from testbed.errors import RequestError

Row = Mapping[str, Any]  # of a record


class Run(Protocol):
    """A trial, as a logger keeps it."""

    def measured(self, row: Row) -> None:
        """Takes a measurement."""

    def ended(self, row: Row) -> None:
        """Takes the end."""

    def close(self) -> None:
        """Nothing will follow, for now."""


class Logger(NamedTuple):
    """Where runs are kept."""

    package: str  # that it needs
    begin: Callable[[Path, Row], Run]  # of a folder for all runs, and the header of a record


class TensorBoard:
    """Event files in `<folder>/tensorboard/<task>/<optimizer>/<run_id>`.

    Written by this thread alone: what the usual writer leaves to another would be done on the clock.
    """

    def __init__(self, folder: Path, header: Row) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter

        here = folder / "tensorboard" / header["task"] / header["optimizer"] / header["run_id"]
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        self._writer = EventsWriter(str(here / "events"))
        names = ("optimizer", "protocol", "seed", "total_steps", "batch_size")
        hp = {name: header[name] for name in names} | header["hyperparameters"]
        known = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hp.items()}
        *begun, self._finished = summary.hparams(known, [header["target"]["metric"]])
        for part in [*begun, summary.text("header", _as_text(header))]:
            self._write(part, 0)

    def measured(self, row: Row) -> None:
        """See Run."""
        from tensorboardX import summary

        for name, value in _numbers(row).items():
            self._write(summary.scalar(name, value, display_name=metrics.find(name).label), row["step"])
        self._writer.flush()

    def ended(self, row: Row) -> None:
        """See Run."""
        from tensorboardX import summary

        self._write(summary.text("end", _as_text(row)), row["step"])
        if row["status"] != "failed":
            self._write(self._finished, row["step"])

    def close(self) -> None:
        """See Run."""
        self._writer.close()

    def _write(self, content: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=content))


class Wandb:
    """Runs in `<folder>/wandb`, of the project funmatch, under their records' names.

    Online, the server keeps what it has of a run: steps that it knows are not sent again.
    """

    def __init__(self, folder: Path, header: Row) -> None:
        import wandb

        for old in (folder / "wandb").glob(f"offline-run-*-{header['run_id']}"):
            shutil.rmtree(old)
        self._run = wandb.init(
            project="funmatch",
            dir=str(folder),
            id=header["run_id"],
            resume="allow",
            group=f"{header['task']}, {header['total_steps']} steps",
            job_type=header["protocol"],
            name=f"{header['optimizer']} seed {header['seed']}",
            config=dict(header),
            mode=_mode(folder),
            # None of what the record does not have: it costs time, or nobody has asked for it.
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True
            ),
        )
        self._status = 1  # of a process that was killed, say

    def measured(self, row: Row) -> None:
        """See Run."""
        if row["step"] >= self._run.step:
            self._run.log(_numbers(row), step=row["step"], commit=True)

    def ended(self, row: Row) -> None:
        """See Run."""
        self._run.summary.update({"end": dict(row)})
        self._status = int(row["status"] == "failed")

    def close(self) -> None:
        """See Run."""
        self._run.finish(exit_code=self._status)


LOGGERS: Mapping[str, Logger] = {
    "tensorboard": Logger("tensorboardX", TensorBoard),
    "wandb": Logger("wandb", Wandb),
}


class Loggers:
    """The loggers of a command, but for those that have failed."""

    def __init__(self, loggers: Mapping[str, Logger], folder: Path) -> None:
        self._loggers, self._folder = dict(loggers), folder

    @contextmanager
    def following(self, record: Path) -> Iterator[Callable[[float], None]]:
        """Follows a record; of several hosts, the first does.

        Yields:
          What sends the rows that the record has gained, up to a step. With infinity, the end too.
        """
        loggers = self._loggers if devices.is_first() else {}
        followers = {name: Follower(logger, self._folder, record) for name, logger in loggers.items()}

        def each(act: Callable[[Follower], None]) -> None:
            for name in [name for name in followers if name in self._loggers]:
                try:
                    act(followers[name])
                except Exception as error:
                    del self._loggers[name]
                    why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                    _print(f"--log {name}: given up ({why}); trials go on; the same command sends them")
                    with suppress(Exception):
                        followers[name].close()

        try:
            yield lambda step: each(lambda follower: follower.send(step))
        finally:
            each(Follower.send_rest)
            each(Follower.close)

    def send(self, records: Sequence[Path]) -> None:
        """Sends whole records."""
        for record in records:
            with self.following(record) as send:
                send(math.inf)


class Follower:
    """Sends a logger what a record gains."""

    def __init__(self, logger: Logger, folder: Path, record: Path) -> None:
        self._logger, self._folder, self._record = logger, folder, record
        self._run: Run | None = None
        self._sent = 0  # bytes

    def send(self, step: float) -> None:
        """Sends the rows up to a step.

        What is beyond the step that a trial stands at was written before it was killed and resumed: it
        will be measured again.
        """
        with self._record.open("rb") as file:
            file.seek(self._sent)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                row = json.loads(line)
                if row["kind"] == "header":
                    self._run = self._logger.begin(self._folder, row)
                elif self._run is None:
                    raise ValueError(f"{self._record} begins with no header")
                elif row["kind"] == "measurement" and row["step"] <= step:
                    self._run.measured(row)
                elif row["kind"] == "end" and step == math.inf:
                    self._run.ended(row)
                else:
                    return
                self._sent += len(line)

    def send_rest(self) -> None:
        """Sends all that is left, if the run has begun: a trial that fails says so in its last row."""
        if self._run:
            self.send(math.inf)

    def close(self) -> None:
        """Closes the run, if it has begun."""
        if self._run:
            self._run.close()


def add_option(p: argparse.ArgumentParser, when: str) -> None:
    """The option `--log`; `choose` reads it.

    Args:
      p: the command's.
      when: the command sends records.
    """
    p.add_argument(
        "--log",
        action="append",
        default=[],
        choices=list(LOGGERS),
        help=f"tensorboard, in <out>/tensorboard, or wandb: sends the records there, off the clock, "
        f"{when}; may be given twice",
    )


def choose(names: Sequence[str], folder: Path) -> Loggers:
    """The loggers that `--log` names, each of which keeps its runs in a folder of its own in `folder`.

    Raises:
      RequestError: a package that one needs is not installed.
    """
    for name in names:
        package = LOGGERS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RequestError(
                f"--log {name}: it needs the package {package}; pip install {package}"
            ) from error
    return Loggers({name: LOGGERS[name] for name in names}, folder)


def _mode(folder: Path) -> Literal["offline"] | None:
    """Offline by default and without a key; None: as WANDB_MODE or wandb's settings say."""
    import wandb

    settings = wandb.setup().settings
    if "WANDB_MODE" in os.environ or settings.mode != "online" or _has_key(settings):
        return None
    _print_offline(folder)
    return "offline"


@functools.cache  # once
def _print_offline(folder: Path) -> None:
    _print(f"--log wandb: offline, without an API key; wandb sync {folder}/wandb/offline-run-* sends it")


def _has_key(settings: Any) -> bool:
    """Whether wandb could log in without asking."""
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return not {urlsplit(settings.base_url).netloc, "api.wandb.ai"}.isdisjoint(hosts)


def _numbers(row: Row) -> dict[str, float]:
    """Of a measurement, what is a number; the step is the axis."""
    return {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}


def _as_text(row: Row) -> str:
    """As Markdown, which shows it as it is."""
    return "```json\n" + json.dumps(row, indent=2) + "\n```"


def _print(line: str) -> None:
    """Prints a line on stderr, past a progress bar."""
    tqdm.write(line, file=sys.stderr)
