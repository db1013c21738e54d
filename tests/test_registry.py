"""From words to optimizers: what a name, a `build` and a SPEC may be, and what optax has."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import optax
import optax.contrib
import pytest

from benchmarks import race, run, study, sweep
from optimizers import registry
from optimizers.spec import Range, Spec
from testbed import RequestError, Trial, open_problem, plugins
from testbed.tasks import find as find_task
from testbed.training.optimizer import Optimizer
from tests.users import (
    EXPORTED,
    HEAD,
    PLAIN,
    SPACE,
    headers,
    needed,
    optimizers_of_optax,
    refusal,
    write,
)

# Names

BAD_NAMES = [
    "", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "a b", "a\nb", "a\x1b[31m", "\udcff", "-x", "_x",
    ".x", "x" * 65, "x" * 5000, "my.checkpoint", "x.JSONL", "x.lock", 5, 0, True, b"x", ("x",), [],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:12])
@pytest.mark.parametrize("where", ["Spec", "Task", "Trial", "Optimizer"])
def test_no_name_enters_anywhere_that_cannot_be_a_folders(name, where, tiny):
    def build(total_steps):
        return optax.sgd(0.1)

    make = {
        "Spec": lambda: Spec(name, build),
        "Task": lambda: dataclasses.replace(tiny, name=name),
        "Trial": lambda: Trial(open_problem(tiny), build, 20, name=name),
        "Optimizer": lambda: Trial(open_problem(tiny), Optimizer(name, build, {}, "0"), 20),
    }
    with pytest.raises(RequestError, match=r"a name has letters|own files are called so") as caught:
        make[where]()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a", "7", "adam.py", "Lion-2", "a+b", "müller_3", "x" * 64])
def test_a_plain_name_is_taken(name):
    assert Spec(name, lambda total_steps: optax.sgd(0.1)).name == name


@pytest.mark.parametrize("name", ["../../outside/mine", "/outside", "", "a\nb", 5, None])
def test_a_name_in_a_file_is_refused_before_anything_is_written(command, tiny_task, files, name):
    file = write(files, f"{PLAIN}SPEC = Spec(name={name!r}, build=build)\n")
    assert repr(name) in refusal(command, run, "--opt", file)


@pytest.mark.parametrize("file", ["my optimizer.py", "-x.py", "_x.py", "x.lock.py"])
def test_the_name_of_a_file_is_a_name_or_spec_gives_another(command, tiny_task, files, file):
    line = refusal(command, run, f"--opt={write(files, PLAIN, file)}")
    assert f"its name (a SPEC gives it another) {Path(file).stem!r}: " in line
    named = write(files, f"{PLAIN}SPEC = Spec(name='mine', build=build)\n", file)
    assert registry.find(named).name == "mine"


def test_labels_of_callables_are_names_or_trial_gives_one(tiny):
    problem = open_problem(tiny)
    assert Trial(problem, lambda total_steps: optax.sgd(0.1), 20).optimizer.name == "lambda"

    def build(total_steps):
        return optax.sgd(0.1)

    build.__name__ = "<my/optimizer>"
    with pytest.raises(RequestError, match=r"Trial\(name=...\) gives it another name"):
        Trial(problem, build, 20)
    assert Trial(problem, build, 20, name="mine").optimizer.name == "mine"


def test_the_name_of_a_registered_task_is_taken_in_any_case(files):
    text = "import dataclasses\nfrom testbed import TASKS\n"
    file = write(files, f"{text}TASK = dataclasses.replace(TASKS['digits'], name='Digits')\n")
    with pytest.raises(RequestError, match="the name Digits is taken"):
        find_task(file)


# Two optimizers of one name


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_called_as_a_registered_optimizer_is_told_apart_from_it(
    command, tiny_task, files, tmp_path, order
):
    words = ("adam", write(files, PLAIN.replace("0.05", "1e-6"), "adam.py"))
    opts = [word for i in order for word in ("--opt", words[i])]
    status, _, _ = command(run, "--task", "tiny", *opts, "--hp", "adam.py.learning_rate=2e-6")
    assert status == 0
    found = headers(tmp_path / "runs")
    assert found["adam"]["hyperparameters"] == registry.defaults(registry.find("adam"))
    assert found["adam.py"]["hyperparameters"] == {"learning_rate": 2e-6}


@pytest.mark.parametrize("name", ["adam", "ADAM", "Shampoo"])
def test_a_users_optimizer_never_has_the_name_of_a_registered_one(files, name, monkeypatch):
    """So it gets nobody's published hyperparameters."""
    file = write(files, f"{PLAIN}SPEC = Spec(name={name!r}, build=build)\n", "named.py")
    assert registry.find(file).name == f"{name}.py"
    monkeypatch.syspath_prepend(Path(file).parent)
    assert registry.find("named:SPEC").name == "named.SPEC"


def test_the_file_of_a_registered_optimizer_is_that_optimizer():
    file = Path(registry.__file__).with_name("adam.py")
    assert registry.find(str(file)) is registry.find("adam")
    assert registry.find("optimizers.adam:SPEC") is registry.find("adam")


@pytest.mark.parametrize("other", ["b/mine.py", "b/MINE.py"])
@pytest.mark.parametrize("module", [run, race, sweep])
def test_two_optimizers_of_one_name_are_refused_by_the_words_for_them(
    command, tiny_task, files, module, other
):
    spec = f"SPEC = Spec(name='mine', build=build, {SPACE})\n" if other == "b/mine.py" else ""
    words = (write(files, PLAIN + spec, "a/mine.py"), write(files, f"{PLAIN}{spec}# another\n", other))
    line = refusal(command, module, "--opt", words[0], "--opt", words[1])
    assert f"--opt {words[0]}, --opt {words[1]}: two optimizers are called" in line


def test_the_same_optimizer_given_twice_is_one(files):
    words = (
        write(files, PLAIN, "a/mine.py"),
        write(files, PLAIN, "b/mine.py"),
        "optax.adam",
        "optax:adam",
        "adam",
    )
    one, same, optaxs, also, registered = registry.find_all([*words])
    assert one is same
    assert optaxs is also
    assert registered is registry.find("adam")


def test_lanes_of_a_race_are_told_apart_in_any_case(files):
    rival = write(files, PLAIN, "ADAM-2.py")
    lanes = race.make_lanes(["adam", "adam", rival, rival], [], {})
    assert list(lanes) == ["adam", "adam-2", "ADAM-2-2", "ADAM-2-3"]


# What is a `build`


@pytest.mark.parametrize(
    "signature",
    [
        "total_steps", "steps", "num_steps", "n_steps", "_steps", "_", "__", "total_steps, /",
        "steps: int", "total_steps, learning_rate=0.1", "total_steps, *, rate=0.1",
        "total_steps, **hp", "_, *args",
    ],
)  # fmt: skip
def test_a_build_takes_the_number_of_steps_first(signature):
    names: dict[str, Any] = {}
    exec(f"def build({signature}): pass", names)  # noqa: S102 (our own text)
    plugins.require_build("it", names["build"])


@pytest.mark.parametrize(
    "signature",
    [
        "", "learning_rate", "learning_rate=0.1, momentum=0.9", "params", "total_steps=100",
        "*total_steps", "*args, **kwargs", "**total_steps", "*, total_steps", "x, total_steps", "step",
        "total_steps, lr, /", "total_steps, lr=0.1, /", "steps_total",
    ],
)  # fmt: skip
def test_other_callables_are_refused_with_what_build_must_look_like(
    command, tiny_task, files, signature
):
    file = write(files, f"{HEAD}def build({signature}):\n    return optax.sgd(0.1)\n")
    assert "build(total_steps, *, " in refusal(command, run, "--opt", file)


@pytest.mark.parametrize("build", ["3", "None", "dict", "print", "math", "optax.adam", "optax.sgd(0.1)"])
def test_what_is_no_function_of_steps_is_no_build(command, tiny_task, files, build):
    file = write(files, f"{HEAD}build = {build}\n")
    assert "build(total_steps, *, …) -> optax.GradientTransformation" in refusal(
        command, run, "--opt", file
    )


def test_functions_made_otherwise_are_builds(tiny):
    class Rule:
        def __init__(self, power):
            self.power = power

        def __call__(self, total_steps, *, learning_rate=0.1):
            return optax.sgd(learning_rate * self.power)

        def build(self, total_steps, *, learning_rate=0.1):
            return self(total_steps, learning_rate=learning_rate)

    def make(power, total_steps, *, learning_rate=0.1):
        return Rule(power)(total_steps, learning_rate=learning_rate)

    for build in (Rule(2.0), Rule(2.0).build, functools.partial(make, 2.0)):
        assert Trial(open_problem(tiny), build, 20).optimizer.hyperparameters == {"learning_rate": 0.1}
    with pytest.raises(RequestError, match=r"its build takes \(power, total_steps"):
        Trial(open_problem(tiny), make, 20)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("optax:adam", "optax.adam"),
        ("optax:nadam", "optax.nadam"),
        ("optax.contrib:prodigy", "optax.contrib.prodigy"),
        ("optax._src.alias:lion", "optax.lion"),
    ],
)
def test_an_imported_function_of_optax_is_what_it_is_by_its_name(word, name):
    one, other = registry.find(word), registry.find(name)
    assert (one.name, one.reference) == (other.name, other.reference)
    assert registry.defaults(one) == registry.defaults(other)


# SPEC


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "Spec('mine', build, space={'lr': Range(0.1, 1)})",
            "its space names 'lr', but build has learning",
        ),
        (
            "Spec('mine', build, bounds={'lr': Bounds(0)})",
            "its bounds names 'lr', but build has learning",
        ),
        ("Spec('mine', build, space={5: Range(0.1, 1)})", "its space names 5"),
        ("Spec('mine', build, space=['learning_rate'])", "its space is ['learning_rate']"),
        ("Spec('mine', build, space={'learning_rate': (0.1, 1)})", "write Range(low, high)"),
        ("Spec('mine', build, space={'learning_rate': Bounds(0.1, 1)})", "write Range(low, high)"),
        ("Spec('mine', build, space={'learning_rate': Range('a', 1)})", "write Range(low, high)"),
        ("Spec('mine', build, space={'learning_rate': Range(1, 0.1)})", "is empty: 1 to 0.1"),
        ("Spec('mine', build, space={'learning_rate': Range(1, math.inf)})", "is empty: 1 to inf"),
        ("Spec('mine', build, space={'learning_rate': Range(math.nan, 1)})", "is empty: nan to 1"),
        ("Spec('mine', build, space={'learning_rate': Range(0.0, 1)})", "since it is logarithmic"),
        ("Spec('mine', build, bounds={'learning_rate': Bounds(1, 1)})", "no value of learning_rate"),
        ("Spec('mine', build, bounds={'learning_rate': 1})", "write Bounds(low, high)"),
        ("Spec('mine', optax.adam)", "its build takes (learning_rate, "),
        ("{'name': 'mine'}", "its SPEC is a dict, not an optimizers.spec.Spec"),
        ("build", "its SPEC is a function, not an optimizers.spec.Spec"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(command, tiny_task, files, spec, message):
    file = write(files, f"{PLAIN}SPEC = {spec}\n")
    for module in (run, sweep):
        assert message in refusal(command, module, "--opt", file)


def test_a_linear_range_may_begin_at_zero_and_keywords_may_be_open():
    def build(total_steps, **hyperparameters):
        return optax.sgd(**hyperparameters)

    assert Spec("mine", build, space={"momentum": Range(0.0, 0.9, log=False)}).space


def test_commands_without_hp_say_that_a_default_is_missing(command, tiny_task, files):
    spec = f"SPEC = Spec(name='mine', build=build, {SPACE})\n"
    file = write(files, PLAIN.replace("=0.05", "") + spec)
    assert "give it a default" in refusal(command, sweep, "--opt", file)
    assert "needs a value for learning_rate" in refusal(command, study, "consistency", "--opt", file)


# optax

WRAPPERS = {
    "optax": "MultiSteps apply_if_finite chain conditionally_mask conditionally_transform flatten "
    "inject_hyperparams lookahead masked multi_transform named_chain partition selective_transform",
    "optax.contrib": "mechanize sam schedule_free split_real_and_imaginary",
}
OTHERS = (
    "global_norm apply_updates cosine_decay_schedule join_schedules kl_divergence "
    "GradientTransformation AddNoiseState Params Schedule tree_map_params losses contrib"
)


@pytest.mark.filterwarnings("ignore")  # optax's own, of what it deprecates
def test_all_that_optax_exports_is_an_optimizer_or_refused_in_one_line():
    assert len(EXPORTED) > 250
    assert len(optimizers_of_optax()) > 90
    functions = {"measure_with_ema", "scale_by_schedule", "snapshot", "stateless"}
    functions.add("stateless_with_tree_map")
    for spec in map(registry.find, optimizers_of_optax()):
        if spec.name.removeprefix("optax.") in functions:
            with pytest.raises(RequestError, match="no command line can give it: write a file"):
                registry.configure(spec, {})
        else:
            values = registry.configure(spec, needed(spec))
            assert isinstance(spec.build(100, **values), optax.GradientTransformation), spec.name


@pytest.mark.parametrize(
    "opt", [f"{place}.{n}" for place, names in WRAPPERS.items() for n in names.split()]
)
def test_a_wrapper_of_optax_says_how_to_give_it_its_optimizer(opt):
    with pytest.raises(RequestError, match=f"it takes another optimizer, its .* returns {opt}"):
        registry.find(opt)


@pytest.mark.parametrize("name", OTHERS.split())
def test_what_optax_exports_beside_optimizers_is_refused(name):
    with pytest.raises(RequestError, match="it makes no optimizer, no optax"):
        registry.find(f"optax.{name}")


@pytest.mark.parametrize(
    "opt", ["optax.", "optax.adamm", "optax._src", "optax.contrib.adam", "optax.a.b.c"]
)
def test_what_optax_does_not_export_is_refused(opt):
    with pytest.raises(RequestError, match="exports no such optimizer; did you mean optax"):
        registry.find(opt)
