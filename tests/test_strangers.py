"""Optimizers as people write them: each runs, alone and in a batch, or is refused in one line."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from optimizers import registry
from optimizers.spec import Spec
from testbed import process
from testbed.errors import Notice, RequestError
from testbed.problem.problem import open_problem
from testbed.training.alone import train
from testbed.training.compile import KEPT, build_once, compile_trial
from testbed.training.compile import _compiled as compiled_trials
from testbed.training.groups import require_runs_alone
from testbed.training.optimizer import from_spec
from testbed.training.trial import Trial
from tests.test_batch import finish_batch
from tests.trials import finish, trial_of
from tests.users import needed, optimizers_of_optax

STEPS = 12


# Ordinary Python in `build`


def formats(total_steps, *, learning_rate=0.1):
    print(f"rate {learning_rate:.2e}")
    return optax.sgd(learning_rate)


def prints(total_steps, *, learning_rate=0.1):
    print("rate", learning_rate)
    return optax.sgd(learning_rate)


def asserts(total_steps, *, learning_rate=0.1, b1=0.9):
    assert learning_rate > 0, learning_rate
    assert 0 < b1 < 1, b1
    return optax.sgd(learning_rate, b1)


def is_number_or_schedule(total_steps, *, learning_rate=0.1):
    return optax.sgd(learning_rate if callable(learning_rate) else lambda count: learning_rate)


def is_float(total_steps, *, learning_rate=0.1):
    if not isinstance(learning_rate, float):
        raise TypeError("learning_rate must be a float")
    return optax.sgd(learning_rate)


def divides(total_steps, *, learning_rate=0.1, beta=0.9):
    horizon = 1 / beta
    return optax.sgd(learning_rate / horizon, nesterov=int(horizon) > 0, momentum=beta)


def warns(total_steps, *, learning_rate=0.1):
    warnings.warn("this optimizer is experimental", UserWarning, stacklevel=1)
    return optax.sgd(learning_rate)


def rounds(total_steps, *, learning_rate=0.1, warmup=0.5):
    return optax.sgd(optax.linear_schedule(0.0, learning_rate, round(warmup * total_steps)))


def no_clip(total_steps, *, learning_rate=0.1, clip=float("inf")):
    return optax.chain(optax.clip(clip), optax.sgd(learning_rate))


def lists(total_steps, *, learning_rate=0.1, betas=[0.9, 0.99], options={"eps": 1e-8}):  # noqa: B006
    return optax.adam(learning_rate, *betas, **options)


PYTHON = [formats, prints, asserts, is_number_or_schedule, is_float, divides, rounds, no_clip, lists]


# State in Python, between `init` and `update`; and states of all kinds


def like_sgd(init: Callable[..., Any], update: Callable[..., Any]) -> Callable[..., Any]:
    """A build: steps of SGD; update: state -> the next."""

    def build(total_steps, *, learning_rate=0.1):
        def step(grads, state, params=None):
            return jax.tree.map(lambda g: -learning_rate * g, grads), update(state)

        return optax.GradientTransformation(init, step)

    return build


def layout(total_steps, *, learning_rate=0.1):
    found = {}

    def init(params):
        found["tree"] = jax.tree.structure(params)
        return ()

    def update(grads, state, params=None):
        leaves = [-learning_rate * g for g in jax.tree.leaves(grads)]
        return jax.tree.unflatten(found["tree"], leaves), state

    return optax.GradientTransformation(init, update)


class Layout:
    """The same by a class."""

    def __init__(self, rate):
        self.rate = rate

    def init(self, params):
        self.tree = jax.tree.structure(params)
        return ()

    def update(self, grads, state, params=None):
        leaves = [-self.rate * g for g in jax.tree.leaves(grads)]
        return jax.tree.unflatten(self.tree, leaves), state


def layout_of_a_class(total_steps, *, learning_rate=0.1):
    rule = Layout(learning_rate)
    return optax.GradientTransformation(rule.init, rule.update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    count: Any
    name: str = dataclasses.field(default="x", metadata={"static": True})


class Pair(NamedTuple):
    first: Any
    second: Any = None


def half(total_steps, *, learning_rate=0.1):
    def update(grads, state, params=None):
        return jax.tree.map(lambda g: (-learning_rate * g).astype(jnp.bfloat16), grads), state

    return optax.GradientTransformation(lambda params: (), update)


def same(state):
    return state


STATES = {
    "None": (lambda p: (None, Pair(None)), same),
    "bool": (lambda p: jnp.array([True, False]), jnp.logical_not),
    "numbers": (lambda p: (0, 0.0, True), lambda s: (s[0] + 1, s[1] + 0.5, s[2])),
    "int8": (lambda p: jnp.zeros(3, jnp.int8), lambda s: s + jnp.int8(1)),
    "float8": (lambda p: jnp.ones(3, jnp.float8_e4m3fn), same),
    "bfloat16": (lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p), same),
    "key": (lambda p: jax.random.key(1), lambda s: jax.random.split(s)[0]),
    "old key": (lambda p: jax.random.PRNGKey(1), lambda s: jax.random.split(s)[0]),
    "numpy": (lambda p: {"a": np.zeros((2, 2)), "b": np.int64(3)}, same),
    "empty": (lambda p: {"a": jnp.zeros((0, 3)), "b": {}}, same),
    "dataclass": (lambda p: Registered(jnp.zeros([])), lambda s: Registered(s.count + 1)),
    "parameters": (lambda p: p, same),
    "weak": (lambda p: jnp.asarray(1.0), lambda s: s * jnp.float32(2)),
}
RUNS = {
    **{build.__name__: build for build in PYTHON},
    **{f"state: {name}": like_sgd(*pair) for name, pair in STATES.items()},
    "layout": layout,
    "layout of a class": layout_of_a_class,
    "half precision": half,
    "obj_fn": lambda total_steps, *, learning_rate=0.1: optax.GradientTransformationExtraArgs(
        lambda p: (),
        lambda g, s, p=None, *, obj_fn, **_: (
            jax.tree.map(lambda x: -learning_rate * x, jax.grad(obj_fn)(p)),
            s,
        ),
    ),
    "sophia": lambda total_steps, *, learning_rate=0.01: optax.contrib.sophia(learning_rate),
    "plateau": lambda total_steps, *, learning_rate=0.1, factor=0.5: optax.chain(
        optax.sgd(learning_rate),
        optax.contrib.reduce_on_plateau(factor=factor, patience=5, accumulation_size=4),
    ),
}


def spec_of(build: Callable[..., Any]) -> Spec:
    return Spec("strange", build)


@pytest.mark.parametrize("name", RUNS)
def test_it_runs(tiny, name, capfd):
    result = train(trial_of(tiny, spec_of(RUNS[name]), steps=STEPS))
    assert result.end["status"] == "finished"
    assert result.measurements[-1]["train_kl"] < result.measurements[0]["train_kl"]
    assert capfd.readouterr().out.count("rate") == (name in ("formats", "prints"))


@pytest.mark.parametrize(
    "name", ["formats", "asserts", "layout", "state: key", "state: float8", "half precision"]
)
def test_it_runs_batched(tiny, out, name):
    records = finish_batch(
        [trial_of(tiny, spec_of(RUNS[name]), steps=STEPS, learning_rate=rate) for rate in (0.1, 0.2)],
        out,
    )
    assert [record.end["status"] for record in records] == ["finished"] * 2


def test_a_warning_is_passed_on(tiny):
    with pytest.warns(UserWarning, match="experimental"):
        trial_of(tiny, spec_of(warns)).compile()


# Refused


def exits(total_steps, *, learning_rate=0.1):
    sys.exit(0)


def divides_by_zero(total_steps, *, learning_rate=0.1, beta=0.0):
    return optax.sgd(learning_rate / beta)


def keeps_arrays(total_steps, *, learning_rate=0.1):
    kept = {}

    def init(params):
        kept["first"] = jax.tree.map(lambda p: p + 0, params)
        return ()

    def update(grads, state, params=None):
        return jax.tree.map(lambda g, p: -learning_rate * g + 0 * p, grads, kept["first"]), state

    return optax.GradientTransformation(init, update)


def wants_more(total_steps, *, learning_rate=0.1):
    return optax.GradientTransformationExtraArgs(
        lambda p: (), lambda g, s, p=None, *, hessian, **_: (g, s)
    )


class Unregistered:
    pass


def complex_updates(total_steps, *, learning_rate=0.1):
    return optax.stateless(lambda g, p: jax.tree.map(lambda x: x * 1j, g))


REFUSED = {
    "exits": (exits, "SystemExit"),
    "division": (divides_by_zero, "ZeroDivisionError"),
    "assertion": (lambda total_steps, *, rate=-1.0: asserts(total_steps, learning_rate=rate), "-1.0"),
    "no transformation": (lambda total_steps: 3, "build returned a int"),
    "keeps arrays": (keeps_arrays, "in the state"),
    "wants more": (wants_more, "hessian.*value_fn, obj_fn, logits_fn, key"),
    "needs a value": (
        lambda total_steps: optax.inject_hyperparams(optax.adafactor)(learning_rate=0.1),
        "static_args",
    ),
    "lookahead": (lambda total_steps: optax.lookahead(optax.sgd(0.1), 5, 0.5), "nested dictionaries"),
    "complex updates": (complex_updates, r"update returned complex64\[.*\] at \['"),
    "text": (like_sgd(lambda p: {"a": ("x",)}, same), r"a str at \['a'\]\[0\]"),
    "set": (like_sgd(lambda p: {"a": {1, 2}}, same), r"a set at \['a'\]"),
    "function": (like_sgd(lambda p: [jnp.zeros(2), len], same), r"at \[1\]"),
    "object": (like_sgd(lambda p: Pair(Unregistered()), same), "Unregistered at .first.*register_data"),
    "mixed keys": (like_sgd(lambda p: {"a": {1: 0, "b": 1}}, same), r"at \['a'\] whose keys"),
    "mixed keys inside": (
        like_sgd(lambda p: [0, Registered(Pair({"b": {1: 0, "b": 1}}))], same),
        r"at \[1\].count.first\['b'\] whose keys",
    ),
    "drift": (
        like_sgd(lambda p: {"n": jnp.int32(0)}, lambda s: {"n": s["n"] + 1.0}),
        r"float32\[\] at \['n'\], where the one from init has int32\[\]",
    ),
    "half drift": (
        like_sgd(lambda p: {"m": jnp.zeros(3)}, lambda s: {"m": s["m"].astype(jnp.bfloat16)}),
        r"bfloat16\[3\] at \['m'\]",
    ),
    "int4": (like_sgd(lambda p: {"q": jnp.ones(3, jnp.int4)}, same), r"int4 at \['q'\].*int8"),
    "list for a tuple": (like_sgd(lambda p: (jnp.zeros(2),), lambda s: [*s]), "other containers"),
    "other statics": (
        like_sgd(lambda p: Registered(jnp.zeros(2)), lambda s: Registered(s.count, s.name + "x")),
        "other containers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ["alone", "batched"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_before_a_record_is_begun(tiny, out, name, how, capfd):
    build, message = REFUSED[name]
    trials = [trial_of(tiny, spec_of(build), steps=STEPS)] * 2
    with pytest.raises(RequestError, match=message) as caught:
        finish(trials[0], out) if how == "alone" else finish_batch(trials, out)
    assert str(caught.value).startswith("optimizer strange: ")
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.jsonl"))
    assert not capfd.readouterr().out


# What happens while it runs


def at_step(n: int, do: Callable[[], Any]) -> Callable[..., Any]:
    """A build that calls back into Python at step n."""

    def callback(count):
        if count == n:
            do()
        return np.float32(1)

    def build(total_steps, *, learning_rate=0.1):
        def update(grads, count, params=None):
            one = jax.experimental.io_callback(callback, jax.ShapeDtypeStruct((), jnp.float32), count)
            return jax.tree.map(lambda g: -learning_rate * one * g, grads), count + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)

    return build


def fail():
    raise ValueError("no more\nsteps")


@pytest.mark.parametrize("do", [fail, lambda: sys.exit(3)])
def test_an_optimizer_that_fails_at_a_step_fails_its_trial_in_one_line(tiny, out, do):
    trial = trial_of(tiny, spec_of(at_step(8, do)), steps=STEPS)
    with pytest.raises(jax.errors.JaxRuntimeError):
        finish(trial, out)
    (path,) = out.rglob("*.jsonl")
    end = path.read_text().splitlines()[-1]
    assert '"status": "failed"' in end
    assert "\\n" not in end


def test_callbacks_and_debugging_prints_run(tiny, capfd):
    seen = []
    assert (
        train(trial_of(tiny, spec_of(at_step(8, lambda: seen.append(8))), steps=STEPS)).end["step"]
        == STEPS
    )
    assert seen == [8]

    def build(total_steps, *, learning_rate=0.1):
        def update(grads, state, params=None):
            jax.debug.print("a step")
            return jax.tree.map(lambda g: -learning_rate * g, grads), state

        return optax.GradientTransformation(lambda params: (), update)

    assert train(trial_of(tiny, spec_of(build), steps=STEPS)).end["status"] == "finished"
    jax.effects_barrier()
    assert capfd.readouterr().out.count("a step") == STEPS


# What is the whole process's


def test_what_an_optimizer_changes_for_the_process_is_changed_back(tiny, tmp_path):
    before = dict(jax.config.values), os.getcwd(), np.geterr()

    def build(total_steps, *, learning_rate=0.1):
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_prng_impl", "rbg")
        os.chdir(tmp_path)
        np.seterr(all="raise")
        return optax.sgd(learning_rate)

    with pytest.warns(Notice, match="optimizer strange: it changed jax_.*the working directory"):
        trial_of(tiny, spec_of(build)).compile()
    assert (dict(jax.config.values), os.getcwd(), np.geterr()) == before


def test_a_rivals_configuration_does_not_change_a_trial(tiny):
    """First weights and lessons name their generator."""
    trial = trial_of(tiny, steps=STEPS)
    one = train(trial).measurements
    with jax.default_prng_impl("rbg"):
        two = train(trial).measurements
    kept = ("train_kl", "validation_kl")
    assert [[m[k] for k in kept] for m in one] == [[m[k] for k in kept] for m in two]


@pytest.mark.parametrize("flag", process.REQUIRED)
def test_a_process_with_other_flags_is_refused(tiny, flag):
    before = jax.config.values[flag]
    jax.config.update(flag, {True: False, False: True, "standard": "strict"}.get(before, "rbg"))
    try:
        with pytest.raises(RequestError, match=flag.upper()):
            open_problem(tiny)
    finally:
        jax.config.update(flag, before)


# Many programs


def maps() -> int:
    """Memory maps of this process, of which Linux allows 65,530."""
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux")
def test_programs_are_freed(tiny):
    """An optimizer that needs a value in Python is compiled for each value: few are kept."""
    assert compiled_trials.cache_info().maxsize == build_once.cache_info().maxsize == KEPT
    counts = []
    for number in range(4):
        trial = trial_of(tiny, spec_of(asserts), steps=STEPS, learning_rate=0.1 + number)
        compile_trial(trial.problem, trial.optimizer, STEPS)
        if number % 2:
            compiled_trials.cache_clear()
        counts.append(maps())
    assert counts[3] - counts[1] < 0.2 * (counts[2] - counts[1])


@pytest.mark.filterwarnings("ignore")  # optax's own, of what it deprecates
def test_all_that_optax_exports_runs_or_is_refused_in_one_line(tiny):
    """Traced, not compiled; some need functions, gradients per example, or matrices alone."""
    problem, refused = open_problem(tiny), {}
    for spec in map(registry.find, optimizers_of_optax()):
        try:
            values = registry.configure(spec, needed(spec))
            require_runs_alone([Trial(problem, from_spec(spec, values), STEPS)])
        except RequestError as error:
            refused[spec.name] = str(error)
    assert all("\n" not in message for message in refused.values())
    assert len(optimizers_of_optax()) - len(refused) > 95
    assert not {"optax.contrib.sophia", "optax.adam", "optax.lbfgs", "optax.adafactor"} & refused.keys()
