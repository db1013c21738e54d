"""Users' files, and checksums of functions and objects: of files, notebooks, and bound values."""

import dataclasses
import functools
import linecache
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers import registry
from optimizers.recipe import in_recipe
from testbed import identity
from testbed.errors import RequestError
from testbed.identity import source_sha256
from testbed.plugins import load_file


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """Files of one test are not on the path of the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith((identity.PREFIX, "helper")):
            del sys.modules[name]


def sha(obj):
    return source_sha256(obj, "it")


def notebook(*cells, file=None):
    """The names that cells define, as IPython runs them: their source is in linecache alone."""
    names = {"__name__": "__main__"} | ({"__file__": str(file)} if file else {})
    for number, cell in enumerate(cells):
        name = f"<ipython-input-{number}-{abs(hash(cell))}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), names)  # noqa: S102 (our own text)
    return names


MINE = "import helper_a\ndef build(total_steps, *, learning_rate=0.1):\n    return helper_a.make()\n"
HELPERS = {
    "mine.py": MINE,
    "helper_a.py": "from helper_b import inner\ndef make():\n    return inner.VALUE\n",
    "helper_b/__init__.py": '"""Nothing but this."""\n',
    "helper_b/inner.py": "VALUE = 1\n",
    "unused.py": "VALUE = 1\n",
}


def write(folder, files=HELPERS, **changed):
    for name, text in {**files, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "mine.py"


# Files


def test_a_file_can_import_the_modules_beside_it_also_when_it_is_used(tmp_path):
    write(tmp_path, {"mine.py": "def build():\n    import helper_late\n    return helper_late.VALUE\n"})
    write(tmp_path, {"helper_late.py": "VALUE = 7\n"})
    assert load_file("--opt", tmp_path / "mine.py").build() == 7


def test_two_files_of_one_name_do_not_collide_nor_do_their_helpers(tmp_path):
    for number in (1, 2):
        write(tmp_path / str(number), **{"helper_b/inner.py": f"VALUE = {number}\n"})
    one, two = (load_file("--opt", tmp_path / str(number) / "mine.py") for number in (1, 2))
    assert (one.build(1), two.build(1)) == (1, 2)
    assert one.__name__ != two.__name__


def test_a_file_is_loaded_again_each_time_with_its_helpers(tmp_path):
    file = write(tmp_path)
    assert load_file("--opt", file).build(1) == 1
    write(tmp_path, **{"helper_b/inner.py": "VALUE = 2\n"})
    assert load_file("--opt", file).build(1) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('two\\nlines')", "importing it raised RuntimeError: two lines"),
        ("import helper_missing", "importing it raised ModuleNotFoundError"),
        ("def", "importing it raised SyntaxError"),
        ("import sys\nsys.exit(0)", "importing it raised SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, text, message):
    path = list(sys.path)
    with pytest.raises(RequestError, match=message) as caught:
        load_file("--task", write(tmp_path, {"mine.py": text}))
    assert str(caught.value).startswith(f"--task {tmp_path}/mine.py: ")
    assert "\n" not in str(caught.value)
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "message"), [("other.py", "no such file"), ("mine.txt", "must end in .py")]
)
def test_missing_and_non_python_files_are_refused(tmp_path, name, message):
    write(tmp_path, {"mine.txt": ""})
    with pytest.raises(RequestError, match=message):
        load_file("--opt", tmp_path / name)


# Checksums of files


def test_the_same_files_in_another_folder_have_the_same_checksum(tmp_path):
    files = [write(tmp_path / folder) for folder in ("here", "there")]
    one, two = (sha(load_file("--opt", file).build) for file in files)
    assert one == two


@pytest.mark.parametrize("changed", ["mine.py", "helper_a.py", "helper_b/inner.py"])
def test_an_edited_file_or_helper_has_another_checksum(tmp_path, changed):
    file = write(tmp_path)
    before = sha(load_file("--opt", file).build)
    write(tmp_path, {changed: HELPERS[changed] + "# edited\n"})
    assert sha(load_file("--opt", file).build) != before


def test_what_a_file_does_not_import_is_not_in_its_checksum(tmp_path):
    file = write(tmp_path)
    before = sha(load_file("--opt", file).build)
    write(tmp_path, {"unused.py": "VALUE = 2\n", "helper_b/__init__.py": '"""Other words."""\n'})
    assert sha(load_file("--opt", file).build) == before
    write(tmp_path, {"helper_b/__init__.py": "import os\n"})
    assert sha(load_file("--opt", file).build) != before


def test_helpers_by_relative_imports_and_inside_functions_count(tmp_path):
    files = {
        "mine.py": "def build():\n    from helper_b import outer\n    return outer.inner.VALUE\n",
        "helper_b/__init__.py": "",
        "helper_b/outer.py": "from . import inner\n",
        "helper_b/inner.py": "VALUE = 1\n",
    }
    before = sha(load_file("--opt", write(tmp_path, files)).build)
    write(tmp_path, {"helper_b/inner.py": "VALUE = 2\n"})
    assert sha(load_file("--opt", tmp_path / "mine.py").build) != before


def files_of(obj):
    seen = set()
    list(identity._pieces(obj, "it", seen))
    return {"/".join(path.parts[-2:]) for path in seen if hasattr(path, "parts")}


def test_a_files_checksum_has_our_optimizers_that_it_imports_and_not_the_testbed(tmp_path):
    text = "from optimizers import shampoo\nfrom testbed import errors\nbuild = shampoo.build\n"
    file = write(tmp_path, {"mine.py": text + "def other():\n    pass\n"})
    found = files_of(load_file("--opt", file).other)
    assert {"optimizers/shampoo.py", "parts/roots.py", "optimizers/recipe.py"} <= found
    assert not {"testbed/errors.py", "optimizers/adam.py", "optimizers/registry.py"} & found


def test_relative_imports_of_the_modules_beside_a_file(tmp_path):
    files = {"mine.py": "from .helper_a import VALUE\ndef build():\n    return VALUE\n"}
    file = write(
        tmp_path, {**files, "helper_a.py": "from .helper_b import inner\nVALUE = inner.VALUE\n"}
    )
    write(tmp_path, {"helper_b/inner.py": "VALUE = 1\n"})
    build = load_file("--opt", file).build
    assert build() == 1
    before = sha(build)
    write(tmp_path, {"helper_b/inner.py": "VALUE = 2\n"})
    assert load_file("--opt", file).build() == 2
    assert sha(load_file("--opt", file).build) != before
    with pytest.raises(RequestError, match=r"importing it raised .*'\.helper_c'"):
        load_file("--opt", write(tmp_path, {"mine.py": "from .helper_c import VALUE"}))


@pytest.mark.parametrize(
    "text",
    [
        "import importlib\nhelper_a = importlib.import_module('helper_a')\n",
        "helper_a = __import__('helper_a')\n",
        "from helper_n import inner as helper_a\n",
    ],
)
def test_helpers_imported_by_other_means_count(tmp_path, text):
    files = {"mine.py": text + "def build():\n    return helper_a.VALUE\n"}
    found = []
    for value in (1, 1, 2):
        write(tmp_path, {**files, "helper_a.py": f"VALUE = {value}\n"})
        write(tmp_path, {"helper_n/inner.py": f"VALUE = {value}\n"})
        found.append(sha(load_file("--opt", tmp_path / "mine.py").build))
    assert found[0] == found[1] != found[2]


def test_a_package_without_init_elsewhere_on_the_path_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    write(tmp_path, {"mine.py": "from helper_n import inner\ndef build():\n    return inner.VALUE\n"})
    found = []
    for value in (1, 2):
        write(tmp_path, {"elsewhere/helper_n/inner.py": f"VALUE = {value}\n"})
        found.append(sha(load_file("--opt", tmp_path / "mine.py").build))
    assert found[0] != found[1]


READS = """
import os
import helper_a
LITERAL = 3
COMPUTED = int(os.environ.get("BLOCK", "1")) + 0 * LITERAL
TABLE = {"a": [COMPUTED]}
UNREAD = object(), os.environ.get("BLOCK")
def inner():
    return TABLE["a"][0] + helper_a.VALUE
def build():
    return inner() * LITERAL
"""


def test_values_that_the_source_does_not_determine_count(tmp_path, monkeypatch):
    """Of the environment at the time of the import, or set later."""
    file = write(tmp_path, {"mine.py": READS, "helper_a.py": "VALUE = 1\n"})

    def load(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return load_file("--opt", file)

    one, same, other = load(BLOCK="1"), load(BLOCK="1"), load(BLOCK="2")
    assert sha(one.build) == sha(same.build) != sha(other.build)
    before = sha(one.build)
    for change in (
        lambda: setattr(one, "LITERAL", 4),
        lambda: one.TABLE.update(b=1),
        lambda: setattr(one.helper_a, "VALUE", 2),
    ):
        change()
        assert sha(one.build) != before
        before = sha(one.build)


def test_a_file_that_was_edited_after_its_import_is_refused(tmp_path):
    """Otherwise the checksum would be of what it says now, and the updates of what it said then."""
    file = write(tmp_path, {"mine.py": "def build(total_steps):\n    return 1\n"})
    before = load_file("--opt", file).build
    sha(before)
    write(tmp_path, {"mine.py": "def build(total_steps):\n    return 2\n"})
    with pytest.raises(RequestError, match=r"mine\.py has been edited since it was imported"):
        sha(before)
    sha(load_file("--opt", file).build)


@pytest.mark.parametrize(
    "line",
    [
        'int(os.environ["BLOCK"])',
        'os.getenv("BLOCK")',
        'json.load(open("table.json"))',
        '(pathlib.Path(__file__).parent / "table.json").read_text()',
        'open("table.json").read()',
    ],
)
def test_what_a_build_reads_by_name_from_the_environment_or_from_files_counts(
    tmp_path, monkeypatch, line
):
    text = f"import json, os, pathlib\ndef inner():\n    return {line}\n"
    write(tmp_path, {"mine.py": f"{text}def build(total_steps):\n    return inner()\n"})
    found = []
    for value in ("1", "1", "2"):
        monkeypatch.setenv("BLOCK", value)
        (tmp_path / "table.json").write_text(value)
        found.append(sha(load_file("--opt", tmp_path / "mine.py").build))
    assert found[0] == found[1] != found[2]


def test_what_a_build_writes_does_not_count(tmp_path):
    text = "def build(total_steps):\n    with open('log', 'a') as file:\n        file.write('x')\n"
    build = load_file("--opt", write(tmp_path, {"mine.py": text})).build
    before = sha(build)
    (tmp_path / "log").write_text("x")
    assert sha(build) == before


def test_the_order_of_a_set_does_not_count(tmp_path):
    """In another process it may be another."""
    text = "SLOTS = {0, 8}\ndef build(total_steps):\n    return SLOTS\n"
    module = load_file("--opt", write(tmp_path, {"mine.py": text}))
    before = sha(module.build)
    module.SLOTS = {8, 0}
    assert str(module.SLOTS) != "{0, 8}"
    assert sha(module.build) == before
    module.SLOTS = {8, 1}
    assert sha(module.build) != before


LAMBDAS = """
import optax
a, b = lambda total_steps: optax.sgd(0.1), lambda total_steps: optax.sgd(0.2)
if True:
    def build(total_steps):
        return optax.sgd(0.1)
c = build
def build(total_steps):
    return optax.sgd(0.2)
def make(kind):
    if kind:
        def rule(total_steps):
            return optax.sgd(0.1)
    else:
        def rule(total_steps):
            return optax.sgd(0.2)
    return rule
"""


def test_functions_of_one_name_in_one_file_have_checksums_of_their_own(tmp_path):
    module = load_file("--opt", write(tmp_path, {"mine.py": LAMBDAS}))
    functions = [module.a, module.b, module.c, module.build, module.make(0), module.make(1)]
    assert len({sha(function) for function in functions}) == len(functions)
    again = load_file("--opt", tmp_path / "mine.py")
    assert sha(again.a) == sha(module.a)


# Of notebooks


BUILD = """
import numpy
import optax

def scale(x):
    return x * factor

class Rule:
    power = 2
    weights = {"a": [1.0]}
    table = numpy.ones(2)
    def twice(self, x):
        return 2 * x

def build(total_steps, *, learning_rate=0.1):
    return optax.sgd(scale(learning_rate) + Rule().twice(offset[0]))
"""
UNRELATED = "\nfactor = 3\noffset = [0.0]\ndef other():\n    return object()\nnet = object()\n"


def test_an_edited_notebook_function_has_another_checksum_and_an_unrelated_cell_changes_none():
    one = sha(notebook(BUILD + UNRELATED)["build"])
    assert sha(notebook("factor = 3; offset = [0.0]", BUILD)["build"]) == one
    for old, new in (
        ("+ Rule", "- Rule"), ("x * factor", "x / factor"), ("2 * x", "3 * x"),
        ("power = 2", "power = 3"), ("[1.0]", "[2.0]"), ("ones(2)", "ones(3)"),
        ("factor = 3", "factor = 4"), ("offset = [0.0]", "offset = [1.0]"),
    ):  # fmt: skip
        assert sha(notebook((BUILD + UNRELATED).replace(old, new))["build"]) != one, old


def test_what_is_typed_in_after_a_script_has_run_is_not_taken_for_the_script(tmp_path):
    script = write(tmp_path)
    one, two = (notebook(BUILD + text, file=script) for text in (UNRELATED, UNRELATED.replace("3", "4")))
    assert sha(one["build"]) == sha(notebook(BUILD + UNRELATED)["build"])
    assert sha(one["build"]) != sha(two["build"])


def test_a_notebook_function_behind_our_recipe_counts():
    cells = [
        f"import optax\ndef direction(*, b1=0.9):\n    return optax.scale({k} * b1)\n" for k in (1, 2)
    ]
    builds = [in_recipe(notebook(cell)["direction"], learning_rate=0.1) for cell in cells]
    assert sha(builds[0]) != sha(builds[1])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "lock = open('/dev/null')\ndef build():\n    return lock",
            "build, which reads lock: no checksum",
        ),
        ("loop = []\nloop.append(loop)\ndef build():\n    return loop", "contains itself"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_values_that_cannot_be_identified_are_refused_in_one_line(cell, message):
    with pytest.raises(RequestError, match=message) as caught:
        source_sha256(notebook(cell)["build"], "build")
    assert "put " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_without_source_is_refused():
    names = {"__name__": "__main__"}
    exec("def build(): pass", names)  # noqa: S102 (our own text)
    with pytest.raises(RequestError, match="its source cannot be found"):
        sha(names["build"])


# Of bound values


def make(rate, array=None):
    def build(total_steps):
        return optax.sgd(rate if array is None else array[0])

    return build


class Callable:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, total_steps):
        return optax.sgd(self.rate)


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, total_steps):
        return optax.sgd(self.rate)


@dataclasses.dataclass
class Settings:
    rate: float

    def __call__(self, total_steps):
        return optax.sgd(self.rate)


class Plain:
    def __init__(self, rate):
        self.inner = Slotted(rate)


class Stateless:
    def __call__(self, total_steps):
        return optax.sgd(0.1)


def test_an_object_without_attributes_has_a_checksum():
    assert sha(Stateless()) == sha(Stateless())


@pytest.mark.parametrize(
    "kind",
    [
        lambda rate: Slotted(rate),
        lambda rate: Settings(rate),
        lambda rate: functools.partial(make, Plain(rate)),
        lambda rate: functools.partial(make, pathlib.PurePosixPath(f"/{rate}")),
        lambda rate: functools.partial(make, rate),
        lambda rate: functools.partial(make, rate=rate),
        lambda rate: functools.partial(make, {"rates": (rate, {3})}),
        lambda rate: functools.partial(make, jnp.array([rate, 1.0])),
        lambda rate: functools.partial(make, np.array([rate, 1.0])),
        lambda rate: functools.partial(make, make(rate)),
        lambda rate: make(rate),
        lambda rate: make(0.0, np.full(3, rate)),
        lambda rate: Callable(rate),
        lambda rate: Callable(rate).__call__,
        lambda rate: optax.adam(rate),
        lambda rate: optax.MultiSteps(optax.sgd(rate), 2).gradient_transformation(),
        lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 100)),
    ],
)
def test_bound_values_are_part_of_the_checksum(kind):
    assert sha(kind(0.1)) == sha(kind(0.1))
    assert sha(kind(0.1)) != sha(kind(0.2))


def test_arrays_differ_by_type_and_shape_as_well():
    arrays = [np.zeros(4, "f4"), np.zeros(4, "i4"), np.zeros((2, 2), "f4"), np.zeros(2, "f8")]
    assert len({sha(functools.partial(make, a)) for a in arrays}) == 4


def test_functions_of_installed_packages_enter_by_name_and_version(monkeypatch):
    before = sha(optax.sgd)
    assert sha(optax.adam) != before
    monkeypatch.setattr(optax, "__version__", "999")
    assert sha(optax.sgd) != before


def test_every_registered_optimizer_has_a_checksum_of_its_own():
    found = {source_sha256(spec.build, spec.name) for spec in registry.registered().values()}
    assert len(found) == len(registry.registered())


def test_the_source_of_an_optimizer_includes_the_recipe_and_its_parts():
    found = files_of(registry.find("soap").build)
    assert {"optimizers/soap.py", "optimizers/recipe.py", "parts/roots.py", "parts/axes.py"} <= found
    assert "optimizers/shampoo.py" not in found
