"""The built wheel, installed into an environment of its own, works in an empty folder."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from testbed import records

ROOT = Path(__file__).parents[1]
PACKAGES = ("analysis", "benchmarks", "optimizers", "testbed")
HELPER = "import optax\ndef make(rate):\n    return optax.sgd(rate)\n"
MINE = "import helper\ndef build(total_steps, *, rate=0.1):\n    return helper.make(rate)\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, without what earlier builds have left in the clone."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name)
    # As `make install` does, pip fetches setuptools where the environment's is too old to build with.
    has_setuptools = int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    options = ["--no-build-isolation"] if has_setuptools else []
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", out, source]
    subprocess.run(words, check=True, env=environment())
    (path,) = out.glob("funmatch-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of commands of an environment with the wheel, and all else from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    words = ["pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", *words], check=True, env=environment())
    # Last, so that pip does not see the editable installation there. Its finder is not started: only the
    # .pth files of an environment's own folder are read.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(program: Path, *words: str, at: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [program, *words], cwd=at, env=environment(), capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout, done.stderr


def test_the_wheel_has_every_module_and_every_file_that_they_read(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not {"__pycache__", "results"} & set(path.relative_to(ROOT).parts)
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_installed_command_runs_and_reports_in_an_empty_folder(installed, tmp_path):
    where = "import testbed, sys; print(testbed.__file__)"
    _, stdout, _ = run(installed / "python", "-c", where, at=tmp_path)
    assert Path(stdout).is_relative_to(installed.parent), "not the clone's"
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "mine.py").write_text(MINE)
    words = ("run", "--opt", "sgd", "--opt", "mine.py", "--steps", "20")
    status, stdout, stderr = run(installed / "funmatch", *words, at=tmp_path)
    assert (status, stderr) == (0, "")
    assert stdout.splitlines()[-1] == "Figures: funmatch report runs --out report"
    found = records.read_folder(tmp_path / "runs")
    assert [record.header["optimizer"] for record in found] == ["mine", "sgd"]
    assert {record.header["command"] for record in found} == {" ".join(["funmatch", *words])}
    status, stdout, stderr = run(
        installed / "funmatch", "report", "runs", "--out", "report", at=tmp_path
    )
    assert (status, stderr) == (0, "")
    assert (tmp_path / "report" / "index.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"helper.py", "mine.py", "runs", "report"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn"], "funmatch: command runn: unknown; did you mean 'run'? Choices: compare, run, "),
        (["run", "--opt", "adm"], "funmatch run: --opt adm: unknown; did you mean 'adam'? Choices: "),
        (["run", "--steps"], "funmatch run: error: argument --steps: expected one argument"),
        (["report"], "give one folder of records"),
    ],
)
def test_bad_input_is_one_line_and_status_2(installed, tmp_path, words, message):
    status, stdout, stderr = run(installed / "funmatch", *words, at=tmp_path)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") == 1


def test_help_has_a_line_for_each_command_and_imports_no_jax(installed, tmp_path):
    status, stdout, _ = run(installed / "funmatch", "--help", at=tmp_path)
    assert status == 0
    for name in COMMANDS:
        (line,) = [line for line in stdout.splitlines() if line.startswith(f"  {name} ")]
        assert len(line) <= 120
    assert run(installed / "funmatch", at=tmp_path)[1] == stdout
    code = "import sys, benchmarks.__main__ as m; m.overview(); sys.exit('jax' in sys.modules)"
    assert run(installed / "python", "-c", code, at=tmp_path)[0] == 0
    code = "import os, benchmarks.__main__; print(os.environ['OPENBLAS_NUM_THREADS'])"
    assert run(installed / "python", "-c", code, at=tmp_path)[1] == "1\n"


def test_the_registry_is_an_entry_point(installed, tmp_path):
    code = (
        "from importlib.metadata import entry_points as e;"
        "(p,) = [p for p in e(group='funmatch.optimizers') if p.name == 'registry'][:1];"
        "print(p.load()('adam').name)"
    )
    assert run(installed / "python", "-c", code, at=tmp_path)[1] == "adam\n"
