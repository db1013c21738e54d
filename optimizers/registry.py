"""From the word after `--opt` to an optimizer.

A registered name (`shampoo`), a file with `build` (`my_optimizer.py`), whatever optax exports
(`optax.lion`, `optax.contrib.prodigy`), or whatever Python can import (`package.module:function`);
each of them in a wrapper, too (`slowed-1.05+adam`).
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import optax
import optax.contrib

import optimizers
from optimizers import hyperparameters
from optimizers.spec import SHARED, Bounds, Spec
from optimizers.wrappers import slowed
from testbed import plugins, process
from testbed.errors import RequestError, check_name, describe, printable, refusing
from testbed.identity import source_sha256

FOLDER = Path(optimizers.__path__[0])
PLACES = {"optax": optax, "optax.contrib": optax.contrib}
WRAPPERS: Mapping[str, Callable[[Spec, str], Spec]] = {"slowed": slowed.wrap}  # Spec, what follows "-"
ALL = {"learning_rate": SHARED["learning_rate"]}  # bounds of all optimizers: a rate is never negative


@functools.cache
def registered() -> Mapping[str, Spec]:
    """Name -> spec of every module in this folder that defines `build`."""
    names = sorted(m.name for m in pkgutil.iter_modules(optimizers.__path__) if not m.ispkg)
    modules = {name: importlib.import_module(f"optimizers.{name}") for name in names}
    return {name: _spec_of(module, name) for name, module in modules.items() if hasattr(module, "build")}


def find(opt: str) -> Spec:
    """The optimizer that `--opt` names.

    A user's optimizer that is called as a registered one, in any case of letters, gets another name:
    from a file its name and ".py", from an import that of the import.

    Raises:
      RequestError: there is none, and the message names the nearest and all others; or it is none.
    """
    if opt in registered():
        return registered()[opt]
    wrapper, inner = split_wrapper(opt)
    if wrapper:
        name, _, argument = wrapper.partition("-")
        spec = find(inner)
        with refusing(f"--opt {opt}"):
            return WRAPPERS[name](spec, argument)
    if opt.endswith(".py") or "/" in opt:
        return _from_file(opt)
    if ":" in opt:
        module, _, function = opt.partition(":")
        return _from_import(opt, module, function)
    if opt.startswith("optax."):
        module, _, function = opt.rpartition(".")
        return _from_optax(opt, module, function)
    near = difflib.get_close_matches(opt, registered(), n=1, cutoff=0.0)
    raise RequestError(
        f"--opt {opt}: unknown; did you mean {near[0]!r}? Choices: {', '.join(registered())}; or a file "
        "(my_optimizer.py), optax.NAME, package.module:function"
    )


def split_wrapper(opt: str) -> tuple[str, str]:
    """The wrapper and what it wraps: "slowed-1.05", "adam" of "slowed-1.05+adam"; "": there is none."""
    wrapper, plus, inner = opt.partition("+")
    return (wrapper, inner) if plus and wrapper.partition("-")[0] in WRAPPERS else ("", opt)


def find_all(opts: Sequence[str]) -> list[Spec]:
    """The optimizers of one command, in the order of its `--opt`; one given again is the same Spec.

    Raises:
      RequestError: as `find`; or two different optimizers have one name, in any case of letters.
    """
    by_word = {opt: find(opt) for opt in dict.fromkeys(opts)}
    by_name: dict[str, str] = {}  # name -> the first word for it
    for opt, spec in by_word.items():
        first = by_name.setdefault(spec.name.casefold(), opt)
        if spec is not by_word[first] and _sha256(spec) != _sha256(by_word[first]):
            raise RequestError(
                f"--opt {first}, --opt {opt}: two optimizers are called {spec.name}; give one of them "
                "another name, by its file's or SPEC's"
            )
        by_word[opt] = by_word[first]
    return [by_word[opt] for opt in opts]


def _sha256(spec: Spec) -> str:
    return source_sha256(spec.build, spec.name)


def defaults(spec: Spec) -> dict[str, Any]:
    """Hyperparameter -> default: the keyword arguments of `build` that have one.

    Defaults that a record and a command line cannot hold, such as functions, are left out.
    """
    return plugins.defaults(spec.build)


def configure(spec: Spec, given: Mapping[str, str]) -> dict[str, Any]:
    """All hyperparameters: the defaults, replaced by values that are given as text.

    Raises:
      RequestError: unknown hyperparameter, a value that cannot be read, or one that is not allowed.
    """
    values, known = defaults(spec), plugins.hyperparameters(spec.build)
    for name, text in given.items():
        what = f"--hp {name}={printable(text, 60)}: {spec.name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RequestError(
                f"{what} has no such hyperparameter{hint} It has {', '.join(known) or 'none'}"
            )
        try:
            values[name] = hyperparameters.read(spec.build, name, text)
        except ValueError as error:
            raise RequestError(f"{what} {error}") from error
        bounds = spec.bounds.get(name, ALL.get(name))
        if bounds and not _is_allowed(values[name], bounds) and values[name] != known[name].default:
            finite = ", and finite" if values[name] == math.inf else ""
            raise RequestError(f"{what} takes {name} {bounds}{finite}")
    require_values(spec, values)
    return values


def require_values(spec: Spec, values: Mapping[str, Any], remedy: str = "") -> None:
    """Finds hyperparameters without a default that have no value.

    Args:
      spec: the optimizer.
      values: hyperparameters that have one.
      remedy: what a message says to do; "": to give it with `--hp`.

    Raises:
      RequestError: there is one.
    """
    known = plugins.hyperparameters(spec.build).values()
    missing = [p for p in known if p.default is p.empty and p.name not in values]
    for parameter in missing:
        if not hyperparameters.forms_of(spec.build, parameter):
            missing, remedy = (
                [parameter],
                "no command line can give it: write a file whose build sets it",
            )
            break
    if missing:
        name = missing[0].name
        raise RequestError(
            f"--opt {spec.name}: needs a value for {name}; {remedy or f'give it with --hp {name}=…'}"
        )


def _is_allowed(value: Any, bounds: Bounds) -> bool:
    return not isinstance(value, float | int) or bounds.low <= value < bounds.high


# Where optimizers come from


def _from_file(opt: str) -> Spec:
    path = Path(opt)
    if path.stem in registered() and path.resolve() == (FOLDER / f"{path.stem}.py").resolve():
        return registered()[path.stem]
    module = plugins.load_file("--opt", opt)
    with refusing(f"--opt {opt}"):
        if not hasattr(module, "SPEC") and not hasattr(module, "build"):
            raise RequestError("it defines no build(total_steps, *, …) -> optax.GradientTransformation")
        spec = _spec_of(module, path.stem)
        return dataclasses.replace(spec, name=f"{spec.name}.py") if _is_taken(spec.name) else spec


def _spec_of(module: ModuleType, name: str) -> Spec:
    spec = getattr(module, "SPEC", None)
    if spec is None:
        return _unnamed(name, module.build)
    if not isinstance(spec, Spec):
        raise RequestError(f"its SPEC is a {type(spec).__name__}, not an optimizers.spec.Spec")
    return spec


def _unnamed(name: str, build: Any, reference: str = "") -> Spec:
    """The Spec of a `build` that has none: called as its file or import."""
    check_name("its name (a SPEC gives it another)", name)
    return Spec(name, build, reference=reference)


def _is_taken(name: str) -> bool:
    return name.casefold() in {other.casefold() for other in registered()}


def _from_import(opt: str, module: str, name: str) -> Spec:
    try:
        with process.preserved(f"--opt {opt}"):
            value = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise RequestError(f"--opt {opt}: cannot be imported ({describe(error)})") from error
    for place, of_optax in PLACES.items():  # a function of optax is no build: it takes no steps
        for exported, one in vars(of_optax).items():
            if one is value and callable(one) and not exported.startswith("_"):
                return _from_optax(f"{place}.{exported}", place, exported)
    with refusing(f"--opt {opt}"):
        if isinstance(value, Spec):
            taken = _is_taken(value.name) and value not in registered().values()
            return dataclasses.replace(value, name=opt.replace(":", ".")) if taken else value
        return _unnamed(opt.replace(":", "."), value, opt)


def _from_optax(opt: str, module: str, name: str) -> Spec:
    """optax's own knows no total_steps: its learning rate is constant, unless the user says more."""
    place = module if module in PLACES else "optax"
    function = None if name.startswith("_") else getattr(PLACES.get(module), name, None)
    if function is None:
        near = difflib.get_close_matches(name, _exported(place), n=1, cutoff=0.0)
        raise RequestError(
            f"--opt {opt}: optax exports no such optimizer; did you mean {place}.{near[0]}?"
        )
    if inner := _inner_optimizer(function):
        raise RequestError(
            f"--opt {opt}: it takes another optimizer, its {inner}; write a file whose "
            f"build(total_steps, *, …) returns {opt}(…), and give its path"
        )
    if not _makes_optimizer(function):
        raise RequestError(
            f"--opt {opt}: it makes no optimizer, no optax.GradientTransformation; write a file whose "
            "build(total_steps, *, …) uses it, and give its path"
        )
    return Spec(
        name=opt, build=_Optax(function), reference=f"optax {optax.__version__}, {opt}, as it is"
    )


def _exported(place: str) -> list[str]:
    """The names of the optimizers that `optax` or `optax.contrib` exports."""
    everything = vars(PLACES[place]).items()
    return [n for n, function in everything if not n.startswith("_") and _makes_optimizer(function)]


def _inner_optimizer(function: Any) -> str | None:
    """The argument for which a function or class of optax needs another optimizer, or several."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return next((p.name for p in needed if "GradientTransformation" in str(p.annotation)), None)


def _makes_optimizer(function: Any) -> bool:
    """Whether a function of optax returns a transformation: it says so, or does so when it is called."""
    if isinstance(function, type) or _inner_optimizer(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False
    returned = signature.return_annotation
    if returned is not signature.empty:
        return isinstance(returned, type) and issubclass(returned, optax.GradientTransformation)
    if any(p.default is p.empty for p in signature.parameters.values()):
        return False
    return isinstance(function(), optax.GradientTransformation)


class _Optax:
    """A function of optax behind `build`'s signature: it takes total_steps and drops it."""

    def __init__(self, function: Callable[..., optax.GradientTransformation]) -> None:
        functools.update_wrapper(self, function)
        parameters = list(inspect.signature(function).parameters.values())
        steps = inspect.Parameter("total_steps", inspect.Parameter.POSITIONAL_ONLY)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind not in variadic]
        self._function = function
        self.__signature__ = inspect.Signature([steps, *keywords])

    def __call__(self, total_steps: int, /, **hyperparameters: Any) -> optax.GradientTransformation:
        del total_steps
        return self._function(**hyperparameters)
