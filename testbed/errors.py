"""The one error that a command turns into one line and exit status 2; and what a text or a name may be.

Whatever a user gives may end up in a message, on a terminal and in the name of a file.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")


LONGEST_MESSAGE = 1000  # characters
LONGEST_NAME = 64


class RequestError(ValueError):
    """An invalid request; the message names the value and how to fix it, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Notice(UserWarning):
    """Something that a user should know, and that is no error; a command shows it in one line."""


def notify(message: str) -> None:
    """Issues a Notice, in one line, each time it is called."""
    warnings.warn(printable(message), Notice, stacklevel=2)


def printable(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """The text in one line; control characters are escaped, and the middle of a long text is cut."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    head = longest * 2 // 3
    return line if len(line) <= longest else f"{line[:head]} … {line[head + 3 - longest :]}"


def describe(error: BaseException) -> str:
    """The kind of an error and its message, in one line."""
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "), 300)


def check_name(what: str, name: object) -> str:
    """A name that records, folders and figures can have.

    Args:
      what: whose name it is, such as "--opt my_optimizer.py: its name".
      name: the name, of any type.

    Raises:
      RequestError: it is not a text of letters, digits and . _ + -, beginning with a letter or a digit,
        of at most 64 characters; or it ends in a word with which the testbed names its own files.
    """
    allowed = isinstance(name, str) and all(c.isalnum() or c in "._+-" for c in name)
    if not (allowed and 0 < len(str(name)) <= LONGEST_NAME and str(name)[0].isalnum()):
        raise RequestError(
            f"{what} {printable(repr(name), 100)}: a name has letters, digits and . _ + -, begins with "
            f"a letter or a digit, and has at most {LONGEST_NAME} characters"
        )
    if str(name).lower().endswith((".checkpoint", ".lock", ".jsonl")):
        raise RequestError(
            f"{what} {name!r}: the testbed's own files are called so; choose another name"
        )
    return str(name)


def choose(option: str, name: str, among: Mapping[str, Value], otherwise: str = "") -> Value:
    """among[name].

    Args:
      option: the option that `name` was given to, such as "--task".
      name: the requested name.
      among: the choices.
      otherwise: what may be given instead of a name.

    Raises:
      RequestError: unknown name; the message has the nearest name and all choices.
    """
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"{option} {name}: unknown; did you mean {near!r}? Choices: {', '.join(among)}{otherwise}"
        )
    return among[name]


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Inside this context, every error becomes a RequestError that begins with `what`."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise RequestError(f"{what}: {describe(error)}; --debug shows where") from error
