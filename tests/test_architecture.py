"""Who may import whom, and what the documents promise."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"testbed", "optimizers", "benchmarks", "analysis"}
MAY_IMPORT = {
    "testbed": {"testbed"},
    "optimizers": {"optimizers", "testbed.errors", "testbed.plugins"},
    "analysis": {"analysis", "testbed.records", "testbed.metrics"},
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
        if room == "analysis" or path.name in ("records.py", "plugins.py", "errors.py"):
            assert top not in {"jax", "flax", "optax"}, name


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
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_distribution_is_installed():
    assert importlib.metadata.version("funmatch")
