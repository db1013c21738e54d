"""Users' files: importing them, and the hyperparameters that a function of theirs has."""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from testbed import process
from testbed.errors import RequestError, describe
from testbed.identity import FOLLOWED, OURS, PREFIX, is_installed


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


def defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """Hyperparameter -> default, of an optimizer: the arguments after total_steps that have one.

    Defaults that a record and a command line cannot hold, such as functions, are left out.
    """
    parameters = list(inspect.signature(build).parameters.values())[1:]
    plain = (type(None), bool, int, float, str)
    return {p.name: p.default for p in parameters if isinstance(p.default, plain)}
