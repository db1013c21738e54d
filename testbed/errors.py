"""The one error that a command turns into one line and exit status 2."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")


class RequestError(ValueError):
    """An invalid request; the message names the value and how to fix it, in one line."""


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
    except Exception as error:
        message = " ".join(str(error).split())
        raise RequestError(
            f"{what}: {type(error).__name__}: {message[:300]}; --debug shows where"
        ) from error
