"""Users' files: importing them, and the hyperparameters that a function of theirs has."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from testbed import process
from testbed.errors import RequestError, describe
from testbed.identity import FOLLOWED, OURS, PREFIX, is_installed

STEPS = re.compile(r"_*(total_steps|steps|num_steps|n_steps)|_+")  # names of build's first argument


def load_file(option: str, path: str | Path) -> ModuleType:
    """Imports a user's file, again at each call; the file can import the modules in its folder.

    Files of one name in different folders are different modules, and so are the modules next to them.
    The exception is an import inside a function: if two folders have a module of that name, the import
    returns the one that was loaded last.

    Args:
      option: what the user gave the path to, such as "--opt".
      path: of the file.

    Raises:
      RequestError: there is no such file, it is not a Python file, or importing it raises.
    """
    file = Path(path)
    if not _is_there(file):
        raise RequestError(f"{option} {path}: there is no such file")
    resolved = file.resolve()
    package = f"{PREFIX}{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    name = package + "." + re.sub(r"\W", "_", file.stem)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None or file.suffix != ".py":
        raise RequestError(f"{option} {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    with process.preserved(f"{option} {path}"), _helpers_of(module, package, resolved.parent):
        try:
            with warnings.catch_warnings():  # filters that it sets are its own
                spec.loader.exec_module(module)
        except RequestError as error:  # of a SPEC, or of a TASK
            del sys.modules[name]
            raise RequestError(f"{option} {path}: {error}") from error
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            what = describe(error).replace(package, "")  # of a relative import
            raise RequestError(
                f"{option} {path}: importing it raised {what}; --debug shows where"
            ) from error
    return module


def _is_there(file: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return file.is_file()
    return False


@contextmanager
def _helpers_of(module: ModuleType, package: str, folder: Path) -> Iterator[None]:
    """Inside, this folder's modules can be imported, and those of earlier files are hidden.

    Imports may be relative: the folder is a package of this name.
    """
    for loaded in [m for name, m in sys.modules.items() if name.startswith(PREFIX)]:
        for name, helper in vars(loaded).get("__helpers__", {}).items():
            if sys.modules.get(name) is helper:
                del sys.modules[name]
    importlib.invalidate_caches()
    sys.modules[package] = ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    before, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    # Python checks bytecode by size and second: not enough for a file that is being edited.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        module.__dict__["__helpers__"] = {n: m for n, m in new.items() if _is_helper(n, m, folder)}
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for imports inside functions


def _is_helper(name: str, module: ModuleType, folder: Path) -> bool:
    # A package without an __init__.py has no file.
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return (
        file is not None
        and name.partition(".")[0] not in OURS | FOLLOWED
        and Path(file).resolve().is_relative_to(folder)
        and not is_installed(Path(file))
    )


def require_build(what: str, build: object) -> None:
    """Finds out whether a value can be an optimizer's `build`, from its signature.

    Any callable can be called with a number: `optax.adam` would take the number of steps for its rate.

    Args:
      what: whose it is, such as "optimizer mine".
      build: the value.

    Raises:
      RequestError: it cannot be called, its first argument is not the number of steps, or an argument
        after that cannot be given by its name.
    """
    wanted = (
        "build(total_steps, *, …) -> optax.GradientTransformation, whose first argument, without a "
        "default, is called total_steps, steps, num_steps or n_steps"
    )
    try:
        signature = inspect.signature(build)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RequestError(f"{what}: {describe(error)}; it needs {wanted}") from error
    parameters = list(signature.parameters.values())
    if not (parameters and _is_steps(parameters[0])):
        raise RequestError(f"{what}: its build takes {_arguments(signature)}; it needs {wanted}")
    for other in parameters[1:]:
        if other.kind is other.POSITIONAL_ONLY:
            raise RequestError(
                f"{what}: its build takes {other.name} by position only; write build(total_steps, *, "
                f"{other.name}, …)"
            )


def _is_steps(first: inspect.Parameter) -> bool:
    """Whether the first argument of a function is the number of steps."""
    by_position = first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    return by_position and first.default is first.empty and STEPS.fullmatch(first.name) is not None


def _arguments(signature: inspect.Signature) -> str:
    """The names of a function's arguments, as they are written; without defaults, which may be long."""
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def hyperparameters(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Name -> hyperparameter of an optimizer: the arguments after total_steps that have a name."""
    parameters = list(inspect.signature(build).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """Hyperparameter -> default, of an optimizer: those that have one which a record can hold.

    Others, such as functions, are left out: the checksum of the source covers them.
    """
    return {
        name: parameter.default
        for name, parameter in hyperparameters(build).items()
        if parameter.default is not parameter.empty and is_plain(parameter.default)
    }


def is_plain(value: Any) -> bool:
    """Whether `as_json` has a form for a value."""
    try:
        as_json(value)
    except (RequestError, RecursionError):
        return False
    return True


def as_json(value: Any) -> Any:
    """A hyperparameter as a record has it.

    JSON has neither infinity nor NaN (here "inf", "-inf", "nan"), no tuples (lists), no members of an
    Enum (their names); a scalar of NumPy or JAX is its number.

    Raises:
      RequestError: it is none of these, nor a number, a text, None, or a list or mapping of such.
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, int):
        if abs(value) >= 2**1024:  # Python refuses to write numbers of thousands of digits
            raise RequestError("a hyperparameter of more than 1024 bits cannot be recorded")
        return value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(item) for key, item in value.items()}
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return as_json(value.item())
    raise RequestError(
        f"a hyperparameter that is a {type(value).__name__} cannot be recorded; bind it inside of build"
    )
