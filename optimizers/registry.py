"""From the word after `--opt` to an optimizer.

A registered name (`shampoo`), a file with `build` (`my_optimizer.py`), whatever optax exports
(`optax.lion`, `optax.contrib.prodigy`), or whatever Python can import (`package.module:function`).
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import optax
import optax.contrib

import optimizers
from optimizers.spec import Bounds, Spec
from testbed import plugins
from testbed.errors import RequestError, describe


@functools.cache
def registered() -> Mapping[str, Spec]:
    """Name -> spec of every module in this folder that defines `build`."""
    names = sorted(m.name for m in pkgutil.iter_modules(optimizers.__path__) if not m.ispkg)
    modules = {name: importlib.import_module(f"optimizers.{name}") for name in names}
    return {name: _spec_of(module, name) for name, module in modules.items() if hasattr(module, "build")}


def find(opt: str) -> Spec:
    """The optimizer that `--opt` names.

    Raises:
      RequestError: there is none; the message names the nearest and all others.
    """
    if opt in registered():
        return registered()[opt]
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
    values = defaults(spec)
    required = [
        p.name
        for p in list(inspect.signature(spec.build).parameters.values())[1:]
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    for name, text in given.items():
        if name not in values and name not in required:
            known = [*values, *required]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RequestError(
                f"--hp {name}={text}: {spec.name} has no such hyperparameter{hint} "
                f"It has {', '.join(known) or 'none'}"
            )
        values[name] = _parse(spec.name, name, text, values.get(name, 0.0))
        bounds = spec.bounds.get(name, Bounds(-float("inf")))
        if isinstance(values[name], float | int) and not bounds.low <= values[name] < bounds.high:
            raise RequestError(f"--hp {name}={text}: {spec.name} takes {name} {bounds}")
    if missing := [name for name in required if name not in values]:
        raise RequestError(
            f"--opt {spec.name}: needs a value for {missing[0]}; give it with --hp {missing[0]}=…"
        )
    return values


def _spec_of(module: ModuleType, name: str) -> Spec:
    spec = getattr(module, "SPEC", None)
    return spec if isinstance(spec, Spec) else Spec(name=name, build=module.build)


def _from_file(opt: str) -> Spec:
    module = plugins.load_file("--opt", opt)
    if not callable(getattr(module, "build", None)):
        raise RequestError(
            f"--opt {opt}: it defines no build(total_steps, *, …) -> optax.GradientTransformation"
        )
    return _spec_of(module, Path(opt).stem)


def _from_import(opt: str, module: str, function: str) -> Spec:
    try:
        build = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise RequestError(f"--opt {opt}: cannot be imported ({describe(error)})") from error
    return Spec(name=opt.replace(":", "."), build=build, reference=opt)


def _from_optax(opt: str, module: str, function: str) -> Spec:
    """optax's own knows no total_steps: its learning rate is constant, unless the user says more."""
    place = {"optax": optax, "optax.contrib": optax.contrib}.get(module)
    wrapped = getattr(place, function, None)
    if not callable(wrapped) or isinstance(wrapped, type):
        names = [n for n in dir(place or optax) if not n.startswith("_")]
        near = difflib.get_close_matches(function, names, n=1, cutoff=0.0)
        raise RequestError(
            f"--opt {opt}: optax exports no such optimizer; did you mean {module}.{near[0]}?"
        )
    return Spec(name=opt, build=_Optax(wrapped), reference=f"optax {optax.__version__}, {opt}, as it is")


class _Optax:
    """A function of optax behind `build`'s signature: it takes total_steps and drops it."""

    def __init__(self, function: Callable[..., optax.GradientTransformation]) -> None:
        functools.update_wrapper(self, function)
        parameters = list(inspect.signature(function).parameters.values())
        steps = inspect.Parameter("total_steps", inspect.Parameter.POSITIONAL_ONLY)
        keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind is not p.VAR_KEYWORD]
        self._function = function
        self.__signature__ = inspect.Signature([steps, *keywords])

    def __call__(self, total_steps: int, /, **hyperparameters: Any) -> optax.GradientTransformation:
        del total_steps
        return self._function(**hyperparameters)


def _parse(optimizer: str, name: str, text: str, default: Any) -> Any:
    """Reads text as a value of the default's type."""
    literals = {"true": True, "false": False, "none": None}
    value: Any = literals.get(text.lower(), text)
    if value is text:
        for kind in (int, float):
            try:
                value = kind(text)
                break
            except ValueError:
                continue
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise RequestError(
            f"--hp {name}={text}: {optimizer} takes a {type(default).__name__} for {name}, "
            f"such as {default}"
        )
    if isinstance(value, float) and value != value:
        raise RequestError(f"--hp {name}={text}: {optimizer} takes a number for {name}")
    return value
