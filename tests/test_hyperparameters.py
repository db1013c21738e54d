"""Hyperparameters: what `--hp` may say, and what a record has of them."""

import dataclasses
import enum
import functools
import inspect
import json
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from analysis import frames
from benchmarks import jobs, run
from optimizers import hyperparameters, registry
from optimizers.spec import Bounds, Spec
from testbed import RequestError, Trial, open_problem, plugins, records
from testbed.training.optimizer import Optimizer, from_spec
from tests.trials import finish
from tests.users import HEAD, SPACE, headers, optimizers_of_optax, refusal, write

# Hyperparameters as text


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Word(enum.StrEnum):
    FAST = "f"


def build_with(annotation: Any, default: Any) -> Any:
    """A build with one hyperparameter, x."""

    def build(total_steps, *, x):
        return optax.sgd(0.1)

    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY)
    if annotation is not None:
        parameter = parameter.replace(annotation=annotation)
    if default is not REQUIRED:
        parameter = parameter.replace(default=default)
    first = inspect.Parameter("total_steps", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    build.__signature__ = inspect.Signature([first, parameter])
    return build


REQUIRED = inspect.Parameter.empty  # no default
Maker = typing.Callable[[Any], Any]
Rate = typing.NewType("Rate", float)
Optionally = typing.Optional[int]  # noqa: UP045 (as many write it)

READ = [  # annotation, default, text, value
    (None, 0, "0.1", 0.1), (None, 0, "3", 3), (None, 0, "0.0", 0), (None, 2, "-1", -1),
    (None, 0, "1e-3", 1e-3), (None, 0.5, "1", 1.0), (None, 0.5, ".5", 0.5), (None, 0.5, " 2 ", 2.0),
    (None, 1.0, "inf", math.inf), (None, math.inf, "3", 3.0), (None, math.inf, "inf", math.inf),
    (None, 1.0, "-Infinity", -math.inf), (None, math.nan, "1", 1.0), (None, True, "false", False),
    (None, False, "TRUE", True), (None, "a", "b", "b"), (None, "a", "0.1", "0.1"),
    (None, "a", "none", "none"), (None, "a", "'b c'", "b c"),
    (None, (0.9, 0.99), "(0.8, 0.9)", (0.8, 0.9)), (None, (0.9, 0.99), "0.8, 0.9", (0.8, 0.9)),
    (None, (0.9, 0.99), "[0.8, 0.9]", (0.8, 0.9)), (None, [1], "[2, 3]", [2, 3]),
    (None, [1], "(2,)", [2]), (None, {"a": 1}, "{'a': 2}", {"a": 2}),
    (None, Mode.FAST, "SLOW", Mode.SLOW), (None, Word.FAST, "FAST", Word.FAST),
    (None, None, "0.1", 0.1), (None, None, "3", 3), (None, None, "none", None),
    (None, None, "true", True), (None, None, "(1, 2)", (1, 2)), (None, REQUIRED, "3", 3),
    (None, REQUIRED, "0.5", 0.5), (None, REQUIRED, "fast", "fast"), (None, REQUIRED, "true", True),
    (None, REQUIRED, "(1, 0.5)", (1, 0.5)), (int, REQUIRED, "4", 4), (int, 3, "1_000", 1000),
    (float, REQUIRED, "1", 1.0), (float, 0, "0", 0), (float, 0, "0.1", 0.1),
    (bool, REQUIRED, "true", True), (str, REQUIRED, "fast", "fast"), (str, REQUIRED, "3", "3"),
    (str, REQUIRED, "true", "true"), (str, None, "none", None), (float | None, None, "0.1", 0.1),
    (float | None, 0.1, "None", None), (int | float, REQUIRED, "3", 3), (int | float, 0.5, "3", 3.0),
    (int | str, REQUIRED, "3", 3), (int | str, REQUIRED, "x", "x"),
    (Optionally, None, "3", 3), (float | Maker, REQUIRED, "3", 3.0),
    (typing.Literal["fast", "slow"], "fast", "slow", "slow"), (typing.Literal[1, "2"], 1, "1", 1),
    (typing.Literal["none", 2], 2, "none", "none"),
    (float | typing.Literal[False], 1.0, "false", False), (Mode, REQUIRED, "FAST", Mode.FAST),
    (Mode | None, None, "SLOW", Mode.SLOW), (tuple[float, float], (0.9, 0.99), "(0, 1)", (0.0, 1.0)),
    (tuple[float, ...], (), "(1, 2, 3)", (1.0, 2.0, 3.0)),
    (tuple[int, str], REQUIRED, "(3, 'a')", (3, "a")), (list[int], REQUIRED, "[3, 4]", [3, 4]),
    (tuple, REQUIRED, "(1, 0.5)", (1, 0.5)), (typing.Sequence[float], (1.0,), "[2]", (2.0,)),
    (tuple[tuple[int, int], ...], (), "((1, 2), (3, 4))", ((1, 2), (3, 4))),
    (tuple[float, float] | None, None, "0.9, 0.99", (0.9, 0.99)),
    (dict[str, float], REQUIRED, "{'a': 1}", {"a": 1}), ("float", REQUIRED, "1", 1.0),
    ("float | None", None, "1", 1.0), ("Optional['int']", None, "3", 3),
    ("tuple[Nowhere, int]", 0.5, "3", 3.0), ("Nowhere", REQUIRED, "x", "x"),
    ("not python(", 1, "2", 2), (typing.Annotated[float, "positive"], REQUIRED, "1", 1.0),
    (jax.typing.ArrayLike, REQUIRED, "true", True), (jax.typing.ArrayLike, 0.5, "1", 1.0),
    (jax.typing.ArrayLike, 2, "3", 3), (Rate, REQUIRED, "1", 1.0),
    (typing.Any, 0.5, "1", 1.0), (typing.Any, REQUIRED, "1", 1),
    (np.floating | float, REQUIRED, "1", 1.0), (Maker, 0.5, "1", 1.0),
    (Maker | None, None, "none", None), (3, 0.5, "1", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "default", "text", "expected"), READ, ids=str)
def test_a_text_is_read_as_the_annotation_says_and_then_as_the_default_does(
    annotation, default, text, expected
):
    build = build_with(annotation, default)
    value = hyperparameters.read(build, "x", text)
    assert (type(value), repr(value)) == (type(expected), repr(expected))


HUGE = "1" * 5000


def test_annotations_that_are_texts_are_read_wherever_the_function_is():
    def build(total_steps, *, x: "Rate", y: "int | None" = None):
        return optax.sgd(x)

    class Rule:
        def __init__(self, total_steps, *, x: "Rate"):
            pass

        def __call__(self, total_steps, *, x: "Rate"):
            return optax.sgd(x)

    @functools.wraps(build)
    def wrapped(*args, **kwargs):
        return build(*args, **kwargs)

    for function in (build, Rule, Rule(1, x=1.0), functools.partial(build, y=1), wrapped):
        assert type(hyperparameters.read(function, "x", "1")) is float


NOT_READ = [  # annotation, default, text, value
    (None, 0, "fast"), (None, 0, "true"), (None, 0.5, "fast"), (None, 0.5, "none"), (None, 0.5, "nan"),
    (None, 0.5, "1e999"), (None, 0.5, "-1e999"), (None, 0.5, "1e39"), (None, 0.5, HUGE),
    (None, 0, HUGE), (None, 0, str(2**63)), (None, 0, "nan"), (None, math.nan, "nan"), (None, 0.5, ""),
    (None, 0.5, "1+2j"), (None, 0.5, "1 + 1"), (None, 0.5, "0.1.2"), (None, 0.5, "((" * 500),
    (None, 0.5, "__import__('os')"), (None, True, "1"), (None, True, "yes"),
    (None, (0.9, 0.99), "0.9"), (None, (0.9, 0.99), "(0.9, 1e999)"), (None, [1], "{1}"),
    (None, {"a": 1}, "[1]"), (None, Mode.FAST, "fast"), (None, Mode.FAST, "1"),
    (None, None, "kernels"), (None, None, "'kernels'"), (None, None, "nan"), (None, None, "b'x'"),
    (None, REQUIRED, "1e999"), (None, REQUIRED, "nan"), (None, abs, "0.1"), (None, abs, "none"),
    (jax.typing.ArrayLike, 0.5, "true"),
    (jax.typing.ArrayLike, 2, "true"), (int, REQUIRED, "0.5"),
    (int, REQUIRED, "fast"), (int, REQUIRED, "true"), (bool, REQUIRED, "3"),
    (float, REQUIRED, "true"), (float, REQUIRED, "(1,)"), (float | None, None, "fast"),
    (typing.Literal["fast", "slow"], "fast", "faster"), (typing.Literal[1], 1, "true"),
    (Mode, REQUIRED, "x"), (tuple[float, float], REQUIRED, "(1, 2, 3)"),
    (tuple[int, ...], REQUIRED, "(1, 0.5)"), (tuple[int, int], REQUIRED, "('a', 1)"),
    (dict[str, int], REQUIRED, "{'a': {1}}"), (Maker, REQUIRED, "cosine"),
    (Maker | None, None, "cosine"), (Maker | None, None, "3"), (typing.Any | None, None, "kernels"),
    ("float", REQUIRED, "fast"), (complex, REQUIRED, "1"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "default", "text"), NOT_READ, ids=lambda x: str(x)[:30])
def test_a_text_that_cannot_be_a_value_is_refused(annotation, default, text):
    build = build_with(annotation, default)
    spec = Spec("mine", build)
    with pytest.raises(RequestError, match="mine takes") as caught:
        registry.configure(spec, {"x": text})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_every_default_of_the_registry_and_of_optax_is_read_back_as_itself():
    for spec in [*registry.registered().values(), *map(registry.find, optimizers_of_optax())]:
        for name, default in registry.defaults(spec).items():
            value = hyperparameters.read(spec.build, name, str(default))
            assert (type(value), repr(value)) == (type(default), repr(default)), f"{spec.name} {name}"


NASTY = [
    "", " ", "0x10", "1e400", "-0", "1__0", "1.", "nan", "NaN", "+inf", "None", "[]", "()", "{}",
    "{**1}", "a=b", "\x00", "\n", "\udcff", "lambda: 0", "(" * 300, "[" * 3000, "-" * 9000, "9" * 4301,
    "1" * 400, "'" * 3, "b''", "...", "1if 1else 2", "'\\d'", "5 # x", "f'{1}'", "[1e999]",
    "{1: 2e999}", "(1,) * 9", "\u0661", "\u00bd",
]  # fmt: skip


def value_or_message(build: Any, name: str, text: str) -> Any:
    try:
        return hyperparameters.read(build, name, text)
    except ValueError as refusal:
        return str(refusal)


@pytest.mark.parametrize("text", NASTY, ids=lambda text: repr(text)[:20])
def test_any_text_for_any_hyperparameter_is_a_value_for_a_record_or_one_line(text):
    builds = [build_with(annotation, default) for annotation, default, _, _ in READ]
    builds += [spec.build for spec in registry.registered().values()]
    for build in builds:
        for name in plugins.hyperparameters(build):
            value = value_or_message(build, name, text)
            assert json.dumps(plugins.as_json(value), allow_nan=False)


def test_values_are_within_bounds_and_a_rate_is_never_negative(command, tiny_task, files):
    text = "def build(total_steps, *, {}=0.1):\n    return optax.sgd({})\n"
    rate = write(files, HEAD + text.format("learning_rate", "learning_rate"), "rate.py")
    scale = write(files, HEAD + text.format("scale", "scale"), "scale.py")
    for value in ("-1", "-1e-9", "inf", "nan"):
        refusal(command, run, "--opt", rate, "--hp", f"learning_rate={value}")
    assert registry.configure(registry.find(scale), {"scale": "-1"}) == {"scale": -1.0}
    for name, value in (("b1", "1"), ("clip", "0"), ("warmup", "-0.1"), ("weight_decay", "-1")):
        line = refusal(command, run, "--opt", "adam", "--hp", f"{name}={value}")
        assert f"adam takes {name} >= " in line


def test_the_default_is_allowed_even_outside_of_its_bounds():
    def build(total_steps, *, clip=math.inf):
        return optax.sgd(0.1)

    spec = Spec("mine", build, bounds={"clip": Bounds(0.0)})
    assert registry.configure(spec, {"clip": "inf"}) == {"clip": math.inf}
    with pytest.raises(RequestError, match="takes clip >= 0"):
        registry.configure(spec, {"clip": "-inf"})


REQUIRING = """
def build(total_steps, *, every: int, mode: str, nesterov: bool, betas: tuple[float, float],
          kind: Literal['a', 'b'], scale, learning_rate: float = 0.003):
    given = (every, mode, nesterov, betas, kind, scale)
    assert given == (4, 'fast', True, (0.9, 1.0), 'b', 2), given
    return optax.MultiSteps(optax.sgd(learning_rate), every).gradient_transformation()
"""


def test_required_values_of_any_type_are_given_and_recorded(command, tiny_task, files, tmp_path):
    file = write(files, HEAD + REQUIRING)
    texts = ["every=4", "mode=fast", "nesterov=true", "betas=(0.9,1)", "kind=b", "scale=2"]
    words = [word for text in texts for word in ("--hp", text)]
    assert "needs a value for scale; give it with --hp scale=…" in refusal(
        command, run, "--opt", file, *words[:-2]
    )
    assert command(run, "--opt", file, *words, "--task", "tiny")[0] == 0
    recorded = headers(tmp_path / "runs")["mine"]["hyperparameters"]
    assert recorded == {
        "learning_rate": 0.003, "every": 4, "mode": "fast", "nesterov": True, "betas": [0.9, 1.0],
        "kind": "b", "scale": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mask=kernels", "takes none or a Python literal and no text for mask"),
        ("mu_dtype=float33", "the name of a dtype"),
        ("learning_rate=kernels", "takes a float for learning_rate"),
        ("learning_rate=none", "takes a float for learning_rate"),
        ("b1=true", "takes a float for b1"),
        ("kernels=1", "has no such hyperparameter"),
        ("optax.adam.b1=0.9", "'optax.adam' is not among the optimizers of this run: optax.lion"),
        ("=1", "has no such hyperparameter"),
        ("b1", "write NAME=VALUE"),
    ],
)
def test_what_would_have_no_effect_is_refused(command, tiny_task, words, message):
    given = ("--hp", "learning_rate=0.1", "--hp", words)
    assert message in refusal(command, run, "--opt", "optax.lion", *given)


def test_functions_and_other_objects_cannot_be_given():
    adopt = registry.find("optax.contrib.adopt")
    assert "clip_value_fn" not in registry.defaults(adopt)
    for spec, name in (
        (adopt, "clip_value_fn"),
        (registry.find("optax.contrib.sophia"), "hessian_diagonal_fn"),
        (registry.find("optax.scale_by_schedule"), "step_size_fn"),
    ):
        with pytest.raises(RequestError, match="what no command line can give"):
            registry.configure(
                spec, {"learning_rate": "1", name: "abs"} if spec is adopt else {name: "abs"}
            )
    with pytest.raises(RequestError, match="no command line can give it"):
        registry.configure(registry.find("optax.scale_by_schedule"), {})


def test_dtypes_have_names():
    values = registry.configure(
        registry.find("optax.adam"), {"learning_rate": "1", "mu_dtype": "bfloat16"}
    )
    assert registry.find("optax.adam").build(10, **values).init(jnp.zeros(2))[0].mu.dtype == jnp.bfloat16


# Defaults in records

DEFAULTS = """
class Mode(enum.Enum):
    FAST = 1

def double(x):
    return 2 * x

def build(total_steps, *, learning_rate=0.003, clip=math.inf, low=-math.inf, unknown=math.nan,
          start=None, betas=(0.9, 0.99), nested=((1, 'a'), None), nesterov=True, kind='a',
          mode=Mode.FAST, f=double, dtype=float, every=4, steps=[10, 20], table={'a': (1, 2.5)}):
    assert betas == (0.9, 0.99) and f is double and nesterov is True and mode is Mode.FAST, betas
    assert steps == [10, 20] and table == {'a': (1, 2.5)}, table
    return optax.chain(optax.clip(clip), optax.sgd(learning_rate))
"""


def test_defaults_of_all_types_are_recorded_in_valid_json_and_shown(tiny, files, tmp_path):
    file = write(files, HEAD + DEFAULTS)
    trial = Trial(open_problem(tiny), registry.find(file).build, 20, name="mine")
    record = finish(trial, tmp_path / "runs")
    assert record.end["status"] == "finished"
    json.loads(record.path.read_text().splitlines()[0], parse_constant=pytest.fail)
    assert record.header["hyperparameters"] == {
        "learning_rate": 0.003, "clip": "inf", "low": "-inf", "unknown": "nan", "start": None,
        "betas": [0.9, 0.99], "nested": [[1, "a"], None], "nesterov": True, "kind": "a", "mode": "FAST",
        "every": 4, "steps": [10, 20], "table": {"a": [1, 2.5]},
    }  # fmt: skip
    values = trial.optimizer.hyperparameters | {"clip": 1.0, "betas": (0.5, 0.99)}
    other = dataclasses.replace(
        trial, optimizer=dataclasses.replace(trial.optimizer, hyperparameters=values)
    )
    assert other.record_path(tmp_path) != trial.record_path(tmp_path)
    header = record.header | {"run_id": "other", "hyperparameters": other.identity()["hyperparameters"]}
    rows = [header, *record.measurements, record.end]
    records.append(record.path.with_name("other.jsonl"), *rows, at=0)
    frame, errors = frames.load(tmp_path / "runs")
    assert not errors
    assert set(frame["label"]) == {"mine betas=[0.9, 0.99] clip=inf", "mine betas=[0.5, 0.99] clip=1"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"), (0.1, 0.1), (3, 3), (True, True),
        (None, None), ("a", "a"), ((1, (math.inf,)), [1, ["inf"]]), ([1], [1]),
        ({"a": (1,)}, {"a": [1]}), (Mode.SLOW, "SLOW"), (Word.FAST, "FAST"), (np.float32(0.5), 0.5),
        (np.int64(3), 3), (np.bool_(True), True), (np.float64("inf"), "inf"), (jnp.float32(0.5), 0.5),
        ({Mode.FAST: 1}, {"FAST": 1}), (2**64, 2**64),
    ],
    ids=str,
)  # fmt: skip
def test_a_hyperparameter_has_one_form_in_json(value, expected):
    assert json.dumps(plugins.as_json(value), allow_nan=False) == json.dumps(expected)


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value", [abs, object(), {1}, 1j, b"x", 10**5000, optax.adam(0.1), np.ones(2), LOOP], ids=type
)
def test_what_json_has_not_is_left_out_of_the_defaults(value):
    assert plugins.defaults(build_with(None, value)) == {}


def test_a_hyperparameter_that_cannot_be_recorded_is_refused(tiny):
    def build(total_steps, *, schedule):
        return optax.sgd(schedule)

    optimizer = Optimizer("mine", build, {"schedule": lambda step: 0.1}, "0")
    with pytest.raises(RequestError, match="a hyperparameter that is a function cannot be recorded"):
        Trial(open_problem(tiny), optimizer, 20).identity()


def test_a_sweep_sends_its_workers_what_differs_from_the_defaults(files):
    spec = registry.find(write(files, HEAD + DEFAULTS + f"SPEC = Spec('mine', build, {SPACE})\n"))
    assert jobs.chosen(from_spec(spec, {"learning_rate": 0.05})) == {"learning_rate": 0.05}
    assert jobs.chosen(from_spec(spec)) == {}
