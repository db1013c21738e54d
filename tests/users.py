"""What users bring to the tests: files with optimizers, requests that are refused, all of optax."""

import functools
from pathlib import Path
from typing import Any

from optimizers import registry
from optimizers.spec import Spec
from testbed import RequestError, plugins, records

HEAD = "import enum, math\nimport optax\nfrom typing import *\nfrom optimizers.spec import *\n"
PLAIN = f"{HEAD}def build(total_steps, *, learning_rate=0.05):\n    return optax.sgd(learning_rate)\n"
SPACE = 'space={"learning_rate": Range(0.01, 0.1)}'


def write(folder: Path, text: str, path: str = "mine.py") -> str:
    """Writes a user's file below a folder; returns its path."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def refusal(command: Any, module: Any, *words: str) -> str:
    """The one line with which a command refuses a request; it writes nothing."""
    before = {*Path().rglob("*")}
    status, stdout, stderr = command(module, *words, "--task", "tiny")
    assert (status, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert not {path for path in {*Path().rglob("*")} - before if path.is_file()}
    return stderr


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of an optimizer -> the header of its record."""
    return {record.header["optimizer"]: record.header for record in records.read_folder(folder)}


EXPORTED = [
    f"{place}.{name}"
    for place, of in registry.PLACES.items()
    for name in dir(of)
    if not name.startswith("_")
]


def needed(spec: Spec) -> dict[str, str]:
    """A text for each hyperparameter that has no default."""
    known = plugins.hyperparameters(spec.build).values()
    return {p.name: "1" for p in known if p.default is p.empty}


@functools.cache
def optimizers_of_optax() -> list[str]:
    """The names under which optax exports optimizers; each other one is refused by its name."""
    return [opt for opt in EXPORTED if is_found(opt)]


def is_found(opt: str) -> bool:
    """Whether a word names an optimizer; True also where a refusal does not begin with the word."""
    try:
        return registry.find(opt).name == opt
    except RequestError as error:
        return not str(error).startswith(f"--opt {opt}: ")
