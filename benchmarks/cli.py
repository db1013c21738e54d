"""A command line: its parser, its errors in one line, its exit status, and what started it."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from testbed.errors import RequestError, describe

INSTALLED = "funmatch"  # the command of an installed package; its subcommands are the commands


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The user, or the machine's scheduler, asked the command to end."""


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
          RequestError: always.
        """
        raise RequestError(f"error: {message}")


def add_debug_option(p: argparse.ArgumentParser) -> None:
    """The option that `serve` reads."""
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")


def serve(main: Callable[[], None]) -> None:
    """Runs a command and exits: 0 done; 1 failed; 2 invalid request; 130 interrupted.

    An error is one line on stderr; `--debug` anywhere on the command line shows its traceback.
    """
    debug = "--debug" in sys.argv
    try:
        main()
    except (Interrupted, KeyboardInterrupt, Exception) as error:
        status, line = _ending(error)
        if debug:
            traceback.print_exc()
    else:
        sys.exit(0)
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit status, and what is said about it."""
    if isinstance(error, RequestError):
        return 2, str(error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return 130, f"interrupted{f': {error}' if str(error) else ''}"
    return 1, f"failed: {describe(error)}"


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


def command_line() -> str:
    """The command as it was started, for the headers of records."""
    program, *words = sys.argv
    start = program.split(" ") if _is_installed(program) else ["python", program]
    return shlex.join([*start, *words])


def invocation(command: str) -> str:
    """How another command is started, if it is started as this one was: for messages."""
    if _is_installed(sys.argv[0]):
        return f"{INSTALLED} {command}"
    folder = "analysis" if command == "report" else "benchmarks"
    return f"python {folder}/{command.replace('-', '_')}.py"


def _is_installed(program: str) -> bool:
    """Whether it is a subcommand of `funmatch`, whose program is then "funmatch run" and the like."""
    return program.startswith(f"{INSTALLED} ")
