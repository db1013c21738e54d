"""What a user's code may change for the whole process, and is changed back.

Trials of one process share JAX's configuration and the working directory. A file that changes them for
its own optimizer would change the lessons and first weights of its rivals.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from testbed.errors import RequestError, notify

REQUIRED: Mapping[str, Any] = {  # JAX's flags, of which random numbers and data types are made
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
}


@contextmanager
def preserved(who: str) -> Iterator[None]:
    """Inside, code of a user's runs; what it changes for the whole process is changed back afterwards.

    This is JAX's configuration and the working directory, with a notice, and NumPy's handling of
    floating-point errors.

    Args:
      who: whose code it is, for the notice, such as "--opt my_optimizer.py".
    """
    flags, folder, errors = _flags(), _folder(), np.geterr()
    try:
        yield
    finally:
        np.seterr(**errors)
        changed = [name for name, value in _flags().items() if name in flags and flags[name] != value]
        for name in changed:
            sys.modules["jax"].config.update(name, flags[name])
        if folder and _folder() != folder:
            os.chdir(folder)
            changed.append("the working directory")
        if changed:
            notify(
                f"{who}: it changed {', '.join(changed)} for the whole process; this was changed back"
            )


def require_flags() -> None:
    """Refuses a process in which the same seed would not give the same trial.

    Raises:
      RequestError: one of JAX's flags has another value than REQUIRED says.
    """
    for name, value in REQUIRED.items():
        if (found := _flags().get(name, value)) != value:
            raise RequestError(
                f"{name.upper()} is {found}: trials need {value}; unset it in the environment, or call "
                f"jax.config.update({name!r}, {value!r})"
            )


def _flags() -> dict[str, Any]:
    """JAX's configuration; nothing before JAX is imported."""
    return dict(sys.modules["jax"].config.values) if "jax" in sys.modules else {}


def _folder() -> str:
    with suppress(OSError):  # it was deleted
        return os.getcwd()
    return ""
