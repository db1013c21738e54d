"""`funmatch`: the commands of `benchmarks/`, and the report, as subcommands.

funmatch run --opt shampoo
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cli import INSTALLED, serve
from testbed.errors import choose

COMMANDS: Mapping[str, str] = {  # subcommand -> its module, which has main()
    "run": "benchmarks.run",
    "sweep": "benchmarks.sweep",
    "race": "benchmarks.race",
    "report": "analysis.report",
    "study": "benchmarks.study",
    "prepare": "benchmarks.prepare",
    "throughput": "benchmarks.throughput",
    "overhead": "benchmarks.overhead",
    "optimizer-cost": "benchmarks.optimizer_cost",
    "make-teacher": "benchmarks.make_teacher",
}


def main() -> None:
    """Runs a subcommand and exits with its status."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if words[0] == "--version":
        print(importlib.metadata.version("funmatch"))
        sys.exit(0)
    sys.argv = [INSTALLED, *words]  # what an error in the subcommand's name is reported by
    serve(lambda: dispatch(words))


def dispatch(words: list[str]) -> None:
    """Runs a subcommand, as its script would.

    Raises:
      RequestError: there is no such subcommand; and whatever it raises.
    """
    module = choose("command", words[0], COMMANDS)
    sys.argv = [f"{INSTALLED} {words[0]}", *words[1:]]
    importlib.import_module(module).main()


def overview() -> str:
    """All subcommands with a line each. Imports none of them."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {INSTALLED} COMMAND [OPTIONS]",
            "",
            "FunMatch, a testbed for optimizers. Commands:",
            *lines,
            "",
            f"{INSTALLED} COMMAND --help shows a command's options, {INSTALLED} --version the version.",
        ]
    )


def summary(module: str) -> str:
    """The first line of a module's docstring, from its source."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").split("\n")[0]


if __name__ == "__main__":
    main()
