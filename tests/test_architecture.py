"""Which modules may import which, and what the documents promise."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"testbed", "optimizers", "benchmarks", "analysis"}
WITHOUT_PACKAGES = ("errors", "cli", "start", "records")  # the standard library is all that they need
MAY_IMPORT = {
    "testbed": {"testbed"},
    "optimizers": {
        "optimizers",
        *(f"testbed.{m}" for m in ("errors", "process", "identity", "plugins")),
    },
    "analysis": {
        "analysis",
        "testbed.metrics",
        *(f"testbed.{name}" for name in WITHOUT_PACKAGES),
    },
    "benchmarks": ROOMS,
}
FILES = [path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        if top in ROOMS:
            allowed = MAY_IMPORT[room]
            assert any(f"{name}.".startswith(f"{a}.") for a in allowed), f"{path} imports {name}"
        if room == "optimizers":
            assert top in {"jax", "optax", "optimizers", "testbed", *sys.stdlib_module_names}, name
        if room == "analysis" or path.name in ("plugins.py", "identity.py"):
            assert top not in {"jax", "flax", "optax"}, name
        if room == "testbed" and path.stem in WITHOUT_PACKAGES:
            assert top in {"testbed", *sys.stdlib_module_names}, name


# Rooms from the ground up: each imports from those above it in its list, and from itself.
FLOORS = {
    "testbed": [
        *("errors", "cli", "start", "process", "paths", "records", "metrics", "identity", "plugins"),
        *("devices", "provenance"),
        *("compilation_cache", "models", "data", "teachers", "problem", "tasks", "training"),
    ],
    "analysis": ["frames", "statistics", "figures", "output", "report"],
    "optimizers": ["parts", "spec", "recipe"],
}


def modules() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    found = {}
    for name, path in names.items():
        # `from a.b import c`: the module a.b.c, or something inside of a.b.
        wanted = {w if w in names else w.rpartition(".")[0] for w in imports(path)}
        found[name] = (wanted & names.keys()) - {name}
    return found


@pytest.mark.parametrize("top", FLOORS)
def test_no_room_imports_from_a_higher_floor(top):
    order = FLOORS[top]
    for name, targets in modules().items():
        if not name.startswith(f"{top}.") or name.split(".")[1] not in order:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] == top and len(parts) > 1:
                assert parts[1] in order, f"{name} imports {target}, which has no floor"
                assert order.index(parts[1]) <= order.index(name.split(".")[1]), f"{name} <- {target}"


def test_every_room_of_the_testbed_has_a_floor():
    rooms = {path.stem for path in (ROOT / "testbed").iterdir() if not path.name.startswith("__")}
    assert rooms == set(FLOORS["testbed"])


def test_nothing_imports_in_a_circle():
    """Not even for the sake of types; `testbed` itself looks its names up late."""
    left = {name: set(targets) for name, targets in modules().items() if name != "testbed"}
    for targets in left.values():
        targets.discard("testbed")
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in or above a circle: {sorted(left)}"


def lengths(top: str) -> dict[str, int]:
    """Function -> its lines without its docstring; functions inside it count as part of it."""
    found = {}
    for path in sorted((ROOT / top).rglob("*.py")):
        tree = ast.parse(path.read_text())
        scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
        for function in [f for scope in scopes for f in scope.body if isinstance(f, ast.FunctionDef)]:
            first = function.body[0]
            described = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            assert function.end_lineno is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if described else 0
            name = f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
            found[name] = function.end_lineno - function.lineno + 1 - docstring
    return found


def test_functions_are_short():
    """No function of the testbed is longer than a screen; median and 90th percentile of all."""
    for name, length in lengths("testbed").items():
        assert length <= 45, f"{name}: {length} lines"
    every = sorted(length for room in ROOMS for length in lengths(room).values())
    assert every[len(every) // 2] <= 7
    assert every[len(every) * 9 // 10] <= 23


def tree_of_the_design() -> dict[str, list[str]]:
    """Folder -> the files that docs/design.md lists in it; empty where it lists none."""
    text = (ROOT / "docs" / "design.md").read_text()
    (block,) = re.findall(r"(?:^    \S.*/ .*\n)(?:^    .*\n)+", text[text.index("## Rooms") :], re.M)[:1]
    found: dict[str, list[str]] = {}
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        names = re.split(r"  +", line.strip())[0].split(", ")
        folders = folders[:depth]
        for name in names:
            path = "".join([*folders, name])
            assert (ROOT / path).exists(), f"docs/design.md lists {path}"
            found.setdefault("".join(folders), []).append(name)
        if names[0].endswith("/"):
            folders.append(names[0])
    return found


def test_the_tree_of_the_design_is_the_real_one():
    """All that is listed exists; of the testbed, all that exists is listed."""
    listed = tree_of_the_design()
    for folder in [name for name in listed if name.startswith("testbed/")]:
        real = {
            f"{path.name}/" if path.is_dir() else path.name
            for path in (ROOT / folder).iterdir()
            if path.suffix in ("", ".py") and not path.name.startswith("__")
        }
        assert set(listed[folder]) == real, folder


FORBIDDEN = r"\b(Worl[d]|Cours[e]|Exa[m]|examinatio[n]|caution[s]|tol[d]|dea[r])\b"


def test_words_are_the_fields_own():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").iterdir()]
    for path in [*FILES, *documents]:
        assert not re.search(FORBIDDEN, path.read_text()), path


def test_no_drawers():
    assert not {"utils.py", "common.py", "helpers.py"} & {path.name for path in FILES}


def test_analysis_and_records_load_no_jax():
    code = "import sys, analysis.report, testbed.records; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_module_shadows_the_standard_library():
    """Python puts a command's own folder first on its path."""
    for room in ("benchmarks", "analysis"):
        names = {path.stem for path in (ROOT / room).glob("*.py")}
        assert not names & set(sys.stdlib_module_names)


def test_the_lock_names_no_package_host():
    assert not re.search(r"https?://|--index-url", (ROOT / "requirements.lock").read_text())


def test_relative_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_distribution_is_installed():
    assert importlib.metadata.version("funmatch")
