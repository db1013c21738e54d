"""Hyperparameters as text: what `--hp NAME=VALUE` can say of an argument of `build`.

An annotation says which values an argument takes; where there is none, its default does. The text is
read as a Python literal where it looks like one: 0.1, true, none, (0.9, 0.95), inf, 'text'.
"""

import ast
import functools
import inspect
import math
import numbers
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax.numpy as jnp

from testbed import plugins

LARGEST = float(jnp.finfo(jnp.float32).max)  # an argument of a program that is larger becomes infinite
WHOLE = range(-(2**63), 2**63)
WORDS = {"true": True, "false": False, "none": None} | {
    sign + word: float(sign + word) for sign in ("", "+", "-") for word in ("inf", "infinity", "nan")
}
MISSING = inspect.Parameter.empty  # no value that anybody gives


class Form(NamedTuple):
    """A form that the values of a hyperparameter can have.

    Attributes:
      kind: one of the keys of EXPECTED.
      of: the choices of a "choice"; the Enum of a "member"; the type of a "sequence".
      items: the annotations of a sequence's items, as `typing.get_args` has them; () for any.
    """

    kind: str
    of: Any = None
    items: tuple[Any, ...] = ()


class Given(NamedTuple):
    """A text, and the Python literal that it is; the text itself, where it is none."""

    text: str
    literal: Any


# Kind -> how a message calls it. The first form that a value has is taken: a text has all others.
EXPECTED = {
    "none": "none",
    "bool": "true or false",
    "int": "an int",
    "float": "a float",
    "choice": "one of {}",
    "member": "one of {}",
    "sequence": "a {}",
    "mapping": "a dict",
    "dtype": "the name of a dtype",
    "any": "a Python literal and no text",
    "str": "a text",
}
ANY, STR = Form("any"), Form("str")


def read(build: Callable[..., Any], name: str, text: str) -> Any:
    """The value that a text gives to a hyperparameter.

    Numbers are finite, but for `inf` and `-inf`: a float may be so, as it often means "no limit". A
    number that is equal to the default is the default: 0 and 0.0 make one trial.

    Args:
      build: the optimizer's.
      name: of one of its hyperparameters.
      text: what the user wrote.

    Raises:
      ValueError: the message goes on from the optimizer's name, and says what the hyperparameter takes.
    """
    parameter = plugins.hyperparameters(build)[name]
    default = parameter.default
    forms = forms_of(build, parameter)
    if not forms:
        raise ValueError(
            f"takes for {name} what no command line can give; write a file whose build sets it"
        )
    given = Given(text, literal(text))
    value = next((v for form in forms if (v := _in_form(form, given)) is not MISSING), MISSING)
    if value is MISSING:
        such = f", such as {plugins.as_json(default)}" if name in plugins.defaults(build) else ""
        raise ValueError(f"takes {_expected(forms)} for {name}{such if default is not None else ''}")
    explicit = text.strip().lower() in WORDS
    if not _is_finite(value) and not (explicit and value in (math.inf, -math.inf)):
        why = "it is none" if explicit else "it is too large"
        raise ValueError(f"takes a number for {name}, and {why}")
    return default if _is_same(value, default) else value


def literal(text: str) -> Any:
    """The Python literal that a text is, with true, none, inf in any case; if it is none, the text."""
    stripped = text.strip()
    if stripped.lower() in WORDS:
        return WORDS[stripped.lower()]
    try:
        with warnings.catch_warnings():  # about what would be a mistake in a program
            warnings.simplefilter("ignore")
            return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def forms_of(build: Callable[..., Any], parameter: inspect.Parameter) -> list[Form]:
    """The forms of a hyperparameter, the most special first; none, if no text can give it."""
    default, annotation = parameter.default, _annotation(build, parameter)
    suggested = _of_default(default) if default is MISSING or plugins.is_plain(default) else []
    forms = suggested if annotation is MISSING else _of_annotation(annotation)
    if default is None:
        forms = [*forms, Form("none")]
    elif default is not MISSING and (ANY in forms or not forms):  # it says more than the annotation
        forms = [form for form in forms if form != ANY] + suggested
    if "dtype" in parameter.name.split("_") and STR not in forms:
        forms = [*forms, Form("dtype")]
    if type(default) is float:  # 1 is 1.0 then
        forms = [form for form in forms if form.kind != "int"]
    if type(default) in (int, float) and complex in typing.get_args(annotation):
        # All that JAX takes for an array: it says less than the default.
        forms = [form for form in forms if form.kind != "bool"]
    return sorted(forms, key=lambda form: [*EXPECTED].index(form.kind))


def _annotation(build: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The annotation, evaluated where it is a text; MISSING, if that fails or there is none."""
    function: Any = build
    while isinstance(function, functools.partial):
        function = function.func
    # A signature that was set has none; `functools.wraps` copies them.
    copied = getattr(function, "__annotations__", {})
    own = parameter.annotation
    annotation = copied.get(parameter.name, MISSING) if own is MISSING else own
    if annotation is MISSING:
        return MISSING
    if isinstance(function, type):
        function = function.__init__  # type: ignore[misc]
    called = function if hasattr(function, "__globals__") else type(function).__call__
    names = getattr(inspect.unwrap(called), "__globals__", {})
    bearer = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    try:
        return typing.get_type_hints(bearer, globalns=names)[parameter.name]
    except Exception:  # whatever a user's text raises; the default says enough
        return MISSING if isinstance(annotation, str) else annotation


def _of_annotation(annotation: Any) -> list[Form]:
    """The forms that an annotation names; none for functions, arrays and what else is no text."""
    annotation = getattr(annotation, "__supertype__", getattr(annotation, "__value__", annotation))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [form for a in args for form in _of_annotation(a)]
    if annotation in (Any, object) or isinstance(annotation, typing.TypeVar):
        return [ANY]
    if origin is typing.Literal:
        return [Form("choice", args)]
    kind = origin or annotation
    if not isinstance(kind, type):
        return []
    return _of_type(kind, args)


def _of_type(kind: type, items: tuple[Any, ...] = ()) -> list[Form]:
    if issubclass(kind, Enum):
        return [Form("member", kind)]
    for name, base in (
        ("none", types.NoneType),
        ("bool", bool),
        ("int", numbers.Integral),
        ("float", numbers.Real),
        ("str", str),
        ("mapping", Mapping),
    ):
        if issubclass(kind, base):
            return [Form(name)]
    if kind in (tuple, list, Sequence, Iterable):  # no other tuples, whose items have names
        return [Form("sequence", list if kind is list else tuple, items)]
    return []


def _of_default(default: Any) -> list[Form]:
    """The forms that a default suggests where nothing else does; of a whole number, any number."""
    if default is MISSING:
        return [ANY, STR]
    if default is None:
        return [ANY]
    forms = _of_type(type(default))
    return [*forms, Form("float")] if forms == [Form("int")] else forms


# Whether a text has a form


def _in_form(form: Form, given: Given) -> Any:
    """The value in this form; MISSING, if it has not."""
    value: Any = given.literal
    match form.kind:
        case "none":
            return value if value is None else MISSING
        case "bool" | "int":
            return value if type(value).__name__ == form.kind else MISSING
        case "float":
            return _as_float(value) if type(value) in (int, float) else MISSING
        case "choice":
            return next((c for c in form.of if _is_choice(c, given)), MISSING)
        case "member":
            return form.of.__members__.get(given.text, MISSING)
        case "sequence":
            return _as_sequence(form, value) if type(value) in (tuple, list) else MISSING
        case "mapping":
            return value if type(value) is dict and _is_plain(value) else MISSING
        case "dtype":
            return given.text if _is_dtype(given.text) else MISSING
        case "any":
            return value if _is_plain(value) and not isinstance(value, str) else MISSING
    return value if isinstance(value, str) else given.text


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_choice(choice: Any, given: Given) -> bool:
    if isinstance(choice, Enum):
        return given.text == choice.name
    return given.text == choice or (type(given.literal) is type(choice) and given.literal == choice)


def _as_sequence(form: Form, value: Sequence[Any]) -> Any:
    """Its items in the forms that an annotation names, such as tuple[float, ...] or tuple[int, int]."""
    annotations = form.items or (Any, ...)
    if form.of is list or annotations[-1] is ...:
        annotations = annotations[:1] * len(value)
    if len(annotations) != len(value):
        return MISSING
    items = []
    for annotation, item in zip(annotations, value, strict=True):
        forms = [ANY, STR] if annotation is Any else _of_annotation(annotation)
        given = Given(item if isinstance(item, str) else repr(item), item)
        items.append(next((v for f in forms if (v := _in_form(f, given)) is not MISSING), MISSING))
    return MISSING if MISSING in items else form.of(items)


def _is_dtype(text: str) -> bool:
    try:
        jnp.dtype(text)
    except TypeError:
        return False
    return True


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None) or (
        isinstance(value, tuple | list | dict) and all(map(_is_plain, _items(value)))
    )


def _items(value: Any) -> list[Any]:
    """What a container has; a mapping's keys and values."""
    return [*value, *value.values()] if isinstance(value, dict) else [*value]


def _is_finite(value: Any) -> bool:
    """Whether all numbers in a value are, in float32 and 64 bits."""
    if isinstance(value, float):
        return abs(value) <= LARGEST
    if isinstance(value, int):
        return value in WHOLE
    return not isinstance(value, tuple | list | dict) or all(map(_is_finite, _items(value)))


def _is_same(value: Any, default: Any) -> bool:
    """Whether numbers, or sequences of them, are equal."""
    kinds = (bool, int, float, tuple, list)
    if type(value) not in kinds or type(default) not in kinds:
        return False
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _expected(forms: Sequence[Form]) -> str:
    """What a message says of them."""
    parts = []
    for form in forms:
        names = form.of.__members__ if form.kind == "member" else form.of
        what = ", ".join(map(str, names)) if form.kind in ("choice", "member") else ""
        what = form.of.__name__ if form.kind == "sequence" else what
        parts.append(EXPECTED[form.kind].format(what))
    return " or ".join(dict.fromkeys(parts))
