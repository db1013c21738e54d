"""Checksums of source code and of values, which identify the optimizers and tasks of users.

A record names its optimizer and its task by a SHA-256 of the source that determines them, so that a
trial is rerun when the code has changed, but not when only its folder has.
"""

import ast
import dataclasses
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import os
import sys
import sysconfig
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from testbed.errors import RequestError

PREFIX = "funmatch_file_"  # of the module names of users' files
OURS = {
    "testbed",
    "benchmarks",
    "analysis",
}  # the testbed itself has a version and a commit in the record
FOLLOWED = {"optimizers"}  # part of a checksum even where they are installed
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, range, slice)
CONTAINERS = (*PLAIN, tuple, list, set, frozenset, Mapping)
READ_ENVIRONMENT = {"environ", "getenv"}
# Not open, by which logs are written.
READ_FILES = {"read", "readlines", "read_text", "read_bytes", "load", "loadtxt", "fromfile", "read_csv"}
STARTED = time.time()
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()


def source_sha256(obj: Any, name: str) -> str:
    """SHA-256 of the source that determines a function or an object.

    It covers the source of its module and, transitively, of the modules that it imports, except the
    standard library, installed packages (their version is covered) and the testbed. Files are included
    with their paths relative to where they are imported from. For a function in a notebook, it covers
    its own source, the functions that it refers to, and the values that it reads. Values bound to it (by
    `functools.partial`, a closure, attributes of a callable object) are included too: numbers, text,
    arrays, containers and dataclasses of these, and functions.

    Args:
      obj: the function or object.
      name: its name in messages.

    Raises:
      RequestError: its source cannot be found, or something bound to it has neither source nor a value
        that can be identified.
    """
    digest = hashlib.sha256()
    try:
        for piece in _pieces(obj, name, set()):
            digest.update(len(piece).to_bytes(8, "big") + piece)
    except RecursionError as error:
        raise RequestError(f"{name}: a value bound to it contains itself; put it into a file") from error
    return digest.hexdigest()


def _pieces(value: Any, where: str, seen: set[Any]) -> Iterator[bytes]:
    """Yields the bytes that determine a value, in an order that is the same on every machine.

    Args:
      value: any value.
      where: its name in a message.
      seen: files, functions, classes and modules already covered; extended here.
    """
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    yield type(value).__qualname__.encode()
    if isinstance(value, ModuleType | FunctionType | type):
        if value not in seen:
            seen.add(value)
            yield from _code(value, where, seen)
    elif _is_found_by_name(value):
        yield f"{value.__module__} {_name_of(value)}".encode()
        yield from _version(str(value.__module__))
    elif (bound := _bound(value)) is not None:
        for key, part in bound.items():
            yield str(key).encode()
            yield from _pieces(part, f"{where}, {key}", seen)
    elif hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = value.__array__()
        yield f"{array.dtype} {array.shape}".encode() + array.tobytes()
    elif hasattr(value, "itemsize") and hasattr(value, "kind"):  # numpy's data types
        yield str(value).encode()
    else:
        raise RequestError(
            f"{where}: no checksum can be made of a {type(value).__name__}; put the code into a file "
            "and give its path, or bind only numbers, text, arrays and functions"
        )


def _code(value: ModuleType | FunctionType | type, where: str, seen: set[Any]) -> Iterator[bytes]:
    """The pieces of a value that has its own source."""
    if isinstance(value, ModuleType):
        yield from _module(value.__name__, getattr(value, "__file__", None), seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, where, seen)
    else:
        yield from _class(value, where, seen)


def _bound(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a value, if they determine it; None otherwise."""
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if isinstance(value, MethodType):
        owner = value.__self__
        return {"class": type(owner), "method": value.__func__} | getattr(owner, "__dict__", {})
    if isinstance(value, Mapping):
        return {repr(key): value[key] for key in sorted(value, key=repr)}
    if isinstance(value, set | frozenset):
        return dict(enumerate(sorted(value, key=repr)))
    if isinstance(value, tuple | list):
        return {"class": type(value)} | dict(enumerate(value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value)} | fields
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("__")}
    wrapped = getattr(value, "__wrapped__", None)
    if callable(wrapped):  # by jax.jit, functools.cache and the like
        own = {} if _is_of_a_package(type(value).__module__) else attributes
        return {"function": wrapped} | dict(sorted(own.items()))
    if not _is_of_a_package(type(value).__module__):
        return {"class": type(value)} | dict(sorted((_slots(value) | attributes).items()))
    if callable(value) and attributes:
        return {"class": type(value)} | dict(sorted(attributes.items()))
    return None


def _slots(value: Any) -> dict[str, Any]:
    names = [name for cls in type(value).__mro__ for name in vars(cls).get("__slots__", ())]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _function(function: FunctionType, where: str, seen: set[Any]) -> Iterator[bytes]:
    """The pieces of a function: its module, or its own source; and the values bound to it."""
    yield f"{function.__qualname__} {_place(function)}".encode()
    yield from _outside(function)
    names = function.__globals__  # not __module__, which functools.wraps copies
    in_file = _is_file(names.get("__file__")) and not _is_typed_in(function.__code__)
    if in_file:
        yield from _module(names["__name__"], names["__file__"], seen)
    else:
        yield _source(function.__code__, where).encode()
        for name in sorted(_globals_of(function.__code__) & set(names)):
            yield name.encode()
            yield from _pieces(names[name], f"{where}, which reads {name}", seen)
    if in_file:
        _require_as_imported(function, where)
        yield from _read_by(function, where, seen)
        if "<locals>" not in function.__code__.co_qualname and function.__code__.co_name != "<lambda>":
            return  # the bound values are in the source
    bound = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name, cell in bound.items():
        yield name.encode()
        yield from _pieces(_contents(cell), f"{where}, which reads {name}", seen)
    defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    yield from _pieces(defaults, f"{where}, whose defaults", seen)


def _place(function: FunctionType) -> str:
    """Where a function is in its file, unless it is found there by its name: lambdas share one."""
    if function.__globals__.get(function.__qualname__) is function:
        return ""
    code = function.__code__
    first = code.co_firstlineno
    columns = [column for line, _, column, _ in code.co_positions() if line == first and column]
    return f"{first if _is_file(code.co_filename) else 0} {min(columns, default=0)}"


def _outside(function: FunctionType) -> Iterator[bytes]:
    """What a function's texts name outside of the program, if it reads there.

    Variables of the environment with their values, and the contents of files in the function's folder
    or the working directory. What is named otherwise is not found.
    """
    code, file = function.__code__, function.__globals__.get("__file__")
    if _is_of_a_package(str(function.__globals__.get("__name__"))):
        return
    used = _names_in(code, "LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")
    texts = sorted(_texts_in(code))
    if used & READ_ENVIRONMENT:
        yield from (f"{name}={os.environ[name]}".encode() for name in texts if name in os.environ)
    if used & READ_FILES:
        for place in filter(None, (Path.cwd(), file and Path(file).parent)):
            for name in texts:
                with suppress(OSError):  # of what is no name of a file
                    if (place / name).is_file():
                        yield name.encode() + (place / name).read_bytes()


def _texts_in(code: CodeType) -> set[str]:
    """The texts that a function, and the functions inside it, are written with."""
    inner = [_texts_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {text for text in code.co_consts if isinstance(text, str)}.union(*inner)


def _require_as_imported(function: FunctionType, where: str) -> None:
    """Raises RequestError where a file was edited after it was imported: its text is of other code."""
    file = Path(function.__globals__["__file__"])
    if file.stat().st_mtime <= STARTED or _is_of_a_package(function.__globals__["__name__"]):
        return
    codes: Collection[CodeType] = ()
    with suppress(SyntaxError):
        codes = _codes(file.read_bytes(), str(file))
    if file.suffix == ".py" and function.__code__ not in codes:
        raise RequestError(
            f"{where}: {file.name} has been edited since it was imported; import it again "
            "(importlib.reload), or restart Python"
        )


@functools.lru_cache(64)
def _codes(content: bytes, file: str) -> frozenset[CodeType]:
    """The code of a module's functions, as it is compiled from its text."""
    found, left = set[CodeType](), [compile(content, file, "exec")]
    while left:
        found.add(code := left.pop())
        left += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found)


def _read_by(function: FunctionType, where: str, seen: set[Any]) -> Iterator[bytes]:
    """The values that a function in a file, and functions that it calls, read from modules of users.

    Those that the source determines are left out: its text has them. Others are computed when a module
    is imported (from the environment, from a file), or were set later.
    """
    attributes = _names_in(function.__code__, "LOAD_ATTR", "LOAD_METHOD")
    for name, value in sorted(_read_from(function.__globals__, _globals_of(function.__code__))):
        parts = [(name, function.__globals__, value)]
        if isinstance(value, ModuleType) and _is_users(value.__name__, vars(value)):
            parts = [(n, vars(value), v) for n, v in sorted(_read_from(vars(value), attributes))]
        for part, names, found in parts:
            if isinstance(found, FunctionType) and _is_users(found.__module__, found.__globals__):
                yield from _pieces(found, f"{where}, which calls {part}", seen)
            elif _is_value(found) and not _is_in_source(part, found, names["__file__"]):
                yield part.encode()
                yield from _pieces(found, f"{where}, which reads {part}", seen)


def _read_from(names: Mapping[str, Any], read: set[str]) -> Iterator[tuple[str, Any]]:
    return ((name, names[name]) for name in read & set(names) if not name.startswith("__"))


def _is_users(module: str, names: Mapping[str, Any]) -> bool:
    """Whether a module is a file of a user's, or one of FOLLOWED."""
    known = module.partition(".")[0] in OURS or _is_of_a_package(module)
    return not known and _is_file(names.get("__file__"))


def _is_value(value: Any) -> bool:
    """Whether it is a number, a text, an array, or a container of these."""
    if isinstance(value, Mapping):
        return all(map(_is_value, value.values()))
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_value, value))
    if isinstance(value, PurePath):  # a file's own folder, most of all
        return False
    return isinstance(value, PLAIN) or (hasattr(value, "__array__") and hasattr(value, "dtype"))


def _is_in_source(name: str, value: Any, file: str) -> bool:
    """Whether a module sets a name to a literal, once, and it still has that value."""
    literals = _literals(Path(file).read_bytes())
    if name not in literals:
        return False
    one, other = (list(_pieces(v, name, set())) for v in (literals[name], value))
    return one == other  # also of sets, whose order is another in each process


@functools.lru_cache(256)
def _literals(content: bytes) -> dict[str, Any]:
    """Name -> value of a module's assignments of literals; those assigned elsewhere too are left out."""
    tree = ast.parse(content)
    bound = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            with suppress(ValueError):
                value = ast.literal_eval(statement.value)
                found |= {t.id: value for t in targets if isinstance(t, ast.Name)}
    return {name: value for name, value in found.items() if bound.count(name) == 1}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has no value yet
        return None


def _class(cls: type, where: str, seen: set[Any]) -> Iterator[bytes]:
    """The pieces of a class: its module or, in a notebook, its bases, methods and values."""
    yield cls.__qualname__.encode()
    members = {name: _function_in(value) or value for name, value in sorted(vars(cls).items())}
    written = [m for m in members.values() if isinstance(m, FunctionType) and _is_written(m)]
    names = written[0].__globals__ if written else vars(sys.modules.get(cls.__module__, object))
    file = names.get("__file__")
    typed_in = any(_is_typed_in(function.__code__) for function in written)
    if _is_of_a_package(cls.__module__) or (_is_file(file) and not typed_in):
        yield from _module(cls.__module__, file, seen)
        return
    for base in cls.__bases__:
        yield from _pieces(base, where, seen)
    for name, member in members.items():
        is_value = isinstance(member, CONTAINERS) or hasattr(member, "__array__")
        if any(member is w for w in written) or (is_value and not name.startswith("__")):
            yield name.encode()
            yield from _pieces(member, f"{where}.{name}", seen)


def _function_in(member: Any) -> Any:
    """The function of a class method, a static method or a property."""
    return getattr(member, "__func__", None) or getattr(member, "fget", None)


def _is_written(function: FunctionType) -> bool:
    """Whether a function was written by a person: `dataclass` and NamedTuple generate functions."""
    return not function.__code__.co_filename.startswith("<string")


# Where source code is


def _is_typed_in(code: CodeType) -> bool:
    """Whether code is from a notebook or an interactive Python: its source is only in linecache."""
    return code.co_filename in linecache.cache and not _is_file(code.co_filename)


def _source(code: CodeType, where: str) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError) as error:
        raise RequestError(
            f"{where}: its source cannot be found, so later changes to it would go unnoticed; put it "
            "into a file and give its path"
        ) from error


def _globals_of(code: CodeType) -> set[str]:
    """Names that a function, and the functions inside it, read from their module."""
    return _names_in(code, "LOAD_GLOBAL", "LOAD_NAME")


def _names_in(code: CodeType, *operations: str) -> set[str]:
    """Names that these operations of a function, and of the functions inside it, have."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in operations}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names_in(constant, *operations)
    return found


def _module(name: str, origin: str | None, seen: set[Any]) -> Iterator[bytes]:
    """The source of a module and, transitively, of those that it imports; of a package, its version."""
    if name.partition(".")[0] in OURS:
        return
    if _is_of_a_package(name) or not _is_file(origin):
        yield name.encode()
        yield from _version(name)
        return
    assert origin is not None
    path = Path(origin).resolve()
    root = _root(name, path)
    yield from _files(path, root, seen)
    # What it imported by other means than a statement.
    helpers = vars(sys.modules.get(name, object)).get("__helpers__", {})
    for file in sorted(Path(h.__file__).resolve() for h in helpers.values() if h.__file__):
        if file.suffix == ".py" and not _is_only_a_docstring(file.read_bytes()):
            yield from _files(file, root, seen)


def _files(path: Path, root: Path, seen: set[Any]) -> Iterator[bytes]:
    """A file by its path below `root`, and those that it imports."""
    if path in seen or path.suffix != ".py":
        return
    seen.add(path)
    content = path.read_bytes()
    yield path.relative_to(root).as_posix().encode()
    yield content
    for name in _imports(content, path.relative_to(root).parent.parts):
        top = name.partition(".")[0]
        if top in OURS:
            continue
        beside = None if is_installed(root) and top not in FOLLOWED else root
        for start in filter(None, (beside, _root_of_top(top))):
            if found := _locate(name, start):
                for file in found:
                    yield from _files(file, start, seen)
                break


@functools.lru_cache(1024)  # a sweep asks for the same few files thousands of times
def _imports(content: bytes, package: tuple[str, ...]) -> list[str]:
    """The full names of everything that a module imports; `package` is the package that contains it."""
    found = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return sorted(found)


def _locate(name: str, root: Path) -> list[Path]:
    """The files below `root` that importing a name runs; it may name something inside a module."""
    found: list[Path] = []
    folder = root
    for part in name.split("."):
        if (file := folder / f"{part}.py").is_file():
            return [*found, file.resolve()]
        folder = folder / part
        package = folder / "__init__.py"
        if package.is_file() and not _is_only_a_docstring(package.read_bytes()):
            found.append(package.resolve())
        if not folder.is_dir():
            break
    return found


@functools.lru_cache(1024)
def _is_only_a_docstring(content: bytes) -> bool:
    body = ast.parse(content).body
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in body)


def _root_of_top(top: str) -> Path | None:
    """Where a package or module is imported from, unless it is installed or in the standard library."""
    if top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.origin is None:  # a package without an __init__.py
        places = list(spec.submodule_search_locations or ())
        return Path(places[0]).resolve().parent if places and not is_installed(Path(places[0])) else None
    origin = Path(spec.origin)
    if is_installed(origin) and top not in FOLLOWED:
        return None
    return origin.resolve().parents[1 if spec.submodule_search_locations else 0]


def _root(name: str, path: Path) -> Path:
    """The folder in which a module's dotted name starts."""
    if name == "__main__":
        return path.parent
    above = name.count(".") - name.startswith(PREFIX)
    return path.parents[above + (path.name == "__init__.py")]


def _is_file(file: str | None) -> bool:
    return file is not None and Path(file).is_file()


def is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed package or to the standard library."""
    resolved = file.resolve()
    return not {"site-packages", "dist-packages"}.isdisjoint(resolved.parts) or (
        resolved.is_relative_to(STANDARD_LIBRARY)
    )


def _is_of_a_package(module: str) -> bool:
    """Whether a module is installed, in the standard library or built in; False for FOLLOWED ones."""
    top = module.partition(".")[0]
    if top in FOLLOWED | OURS or module == "__main__":
        return False
    if top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and is_installed(Path(file))


def _version(module: str) -> Iterator[bytes]:
    """The version of a module's package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:
            version = ""
    yield f"{top} {version}".encode()


def _name_of(value: Any) -> str | None:
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None)


def _is_found_by_name(value: Any) -> bool:
    """Whether a package has this value under its name, as for functions in C."""
    module, name = getattr(value, "__module__", None), _name_of(value)
    if isinstance(value, BuiltinFunctionType):
        return True
    if not isinstance(module, str) or name is None or not _is_of_a_package(module):
        return False
    return getattr(sys.modules.get(module), name, None) is value
