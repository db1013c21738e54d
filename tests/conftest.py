"""Options and small tasks that the tests share."""

import dataclasses
import sys
from pathlib import Path
from types import MappingProxyType

import hypothesis
import pytest

import benchmarks  # noqa: F401  # before numpy and JAX: it sets LAPACK's number of threads
from testbed import compilation_cache
from testbed.cli import serve
from testbed.models.mlp import MLP
from testbed.problem.task import Task
from testbed.tasks import TASKS
from tests import stand_ins

# A few examples, the same each time; and what looks for faults, with --hypothesis-profile long.
PROFILE = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("default", max_examples=50, derandomize=True, **PROFILE)
hypothesis.settings.register_profile("long", max_examples=5_000, **PROFILE)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="of test_resume.py: so many SIGKILLs")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache() -> None:
    compilation_cache.enable_cache()


@pytest.fixture(scope="session")
def tiny() -> Task:
    """`digits` with a student and batches so small that a trial takes a second."""
    return make_tiny()


def make_tiny() -> Task:
    """The same, for other processes."""
    return dataclasses.replace(
        TASKS["digits"],
        name="tiny",
        student=MLP(widths=(16,), classes=10),
        batch_size=32,
        measure_every=10,
        views_per_input=1,
        mixed_per_input=4,
    )


@pytest.fixture(scope="session")
def true_formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and the checkpoint of `stand_ins`."""
    folder = tmp_path_factory.mktemp("true_formats")
    stand_ins.write_flowers(folder / "data")
    stand_ins.write_teacher(folder / "checkpoints")
    return folder


@pytest.fixture
def tiny_task(tiny, monkeypatch):
    """Registers the tiny task under its name."""
    task = dataclasses.replace(tiny, horizons=MappingProxyType({"short": 20, "medium": 20}))
    monkeypatch.setattr("testbed.tasks.TASKS", {**TASKS, "tiny": task})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder for a user's files."""
    return tmp_path / "files"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command's main in this process: exit status, stdout, stderr."""

    def call(module, *words):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__.split('.')[-1]}.py", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            serve(module.main)
        return (caught.value.code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return call
