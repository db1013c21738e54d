"""A command line: its words, its exit status, its errors and warnings in one line.

Standard library only. `start.py` has how its process starts, and what signals do to it.
"""

import argparse
import io
import os
import shlex
import sys
import tempfile
import threading
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from testbed.errors import RequestError, describe, printable

INSTALLED = "funmatch"  # the command of an installed package; its subcommands are the commands
LONGEST_PATH, LONGEST_PART = 4_000, 255  # characters; bytes between slashes: file systems have no longer
MOST = 10_000  # of what a command makes a list of before it begins: seeds, trials, studies, workers


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user, or the machine's scheduler, asked the command to end."""


class Unmet(Exception):  # noqa: N818 (not an error)
    """All went well, but not as the command line required: exit status 1."""


class Shown(Exception):  # noqa: N818 (not an error)
    """The parser has shown what was asked for, such as the help."""


# Ending


def serve(main: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0 done; 1 failed; 2 invalid request; 130 interrupted.

    An error is one line on stderr; `--debug` anywhere on the command line shows its traceback.
    """
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
        status, line = 0, ""
    except BaseException as error:
        status, line = _ending(error)
        if line and "--debug" in sys.argv:
            traceback.print_exc()
    if line:
        _say(line)
    _flush()
    sys.exit(status)


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit status, and what is said about it."""
    if isinstance(error, Shown):
        return 0, ""
    if isinstance(error, RequestError):
        return 2, str(error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return 130, f"interrupted{f': {error}' if str(error) else ''}"
    if isinstance(error, Unmet):
        return 1, str(error)
    if isinstance(error, SystemExit):  # no command of ours ends so
        return 1, f"failed: something that it runs called sys.exit({error.code!r})"
    return 1, f"failed: {describe(error)}"


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # there is no terminal any more
        print(f"{program()}: {printable(line)}", file=sys.stderr, flush=True)


def _flush() -> None:
    """Writes what is buffered for stdout; where that fails, Python would say so again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program() -> str:
    """The command's name in messages."""
    return printable(Path(sys.argv[0]).name)


def show_plainly() -> None:
    """From here on, warnings are one line each, and no terminal or locale is unable to show a text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: _warn(str(message))
    threading.excepthook = lambda failed: _warn(
        f"in a thread: {failed.exc_type.__name__}: {failed.exc_value}"
    )


def _warn(message: str) -> None:
    """Prints one line on stderr, above a progress bar where one is shown."""
    line = f"{program()}: warning: {printable(message)}"
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with suppress(OSError, ValueError):
        if bars is None:
            print(line, file=sys.stderr)
        else:
            bars.write(line, file=sys.stderr)


# Words and their values


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, and whose options are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.register("type", None, word)
        self.register("type", Path, path)

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
          RequestError: always.
        """
        raise RequestError(f"error: {message}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Called by argparse once it has shown the help.

        Raises:
          Shown: always.
        """
        raise Shown


def add_debug_option(p: argparse.ArgumentParser) -> None:
    """The option that `serve` reads."""
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")


def word(text: str) -> str:
    """A text that can be shown and be a path: Unicode without control characters, not empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; leave the option out, or give it a value")
    if bad := [c for c in text if unicodedata.category(c) in ("Cc", "Cs")]:
        raise argparse.ArgumentTypeError(
            f"{printable(text, 100)}: it contains {bad[0]!r}; write it without control characters, in "
            "UTF-8"
        )
    if len(text) > LONGEST_PATH or any(len(part.encode()) > LONGEST_PART for part in text.split("/")):
        raise argparse.ArgumentTypeError(f"{printable(text, 100)}: it is too long")
    return text


def path(text: str) -> Path:
    """A path, whether or not there is something."""
    return Path(word(text))


def natural(text: str) -> int:
    """A whole number from 0."""
    # Its length first: Python reads no number of thousands of digits.
    plain = text.isascii() and text.isdecimal() and len(text) <= 20
    if not plain or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 to 2^31 - 1")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if (value := natural(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def count(text: str) -> int:
    """How many of something: a whole number from 1 to MOST."""
    if (value := positive(text)) > MOST:
        raise argparse.ArgumentTypeError(f"{text}: must be at most {MOST:,}")
    return value


def require_writable(option: str, folder: Path) -> None:
    """Tries to write where a folder is, or will be made, before there is something to write.

    Raises:
      RequestError: it cannot be written.
    """
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b" ")
    except OSError as error:
        raise unwritable(option, folder, error) from error


def unwritable(option: str, folder: Path, error: OSError) -> RequestError:
    """What to raise where writing into the folder that an option names has failed."""
    why = error.strerror or describe(error)
    return RequestError(
        f"{option} {folder}: cannot be written ({why}); make room, or choose another folder"
    )


# The command itself


def command_line() -> str:
    """The command as it was started, for the headers of records."""
    program, *words = sys.argv
    begun = program.split(" ") if _is_installed(program) else ["python", program]
    return shlex.join([*begun, *words])


def invocation(command: str) -> str:
    """How another command is started, if it is started as this one was: for messages."""
    if _is_installed(sys.argv[0]):
        return f"{INSTALLED} {command}"
    folder = "analysis" if command == "report" else "benchmarks"
    return f"python {folder}/{command.replace('-', '_')}.py"


def _is_installed(program: str) -> bool:
    """Whether it is a subcommand of `funmatch`, whose program is then "funmatch run" and the like."""
    return program.startswith(f"{INSTALLED} ")
