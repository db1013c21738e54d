"""`funmatch`: the commands of `benchmarks/`, and the report, as subcommands.

funmatch run --opt shampoo
"""

import sys
from collections.abc import Mapping

from testbed.start import start

COMMANDS: Mapping[str, str] = {  # subcommand -> its module, which has main()
    "compare": "benchmarks.compare",
    "run": "benchmarks.run",
    "sweep": "benchmarks.sweep",
    "race": "benchmarks.race",
    "report": "analysis.report",
    "resolution": "benchmarks.resolution",
    "calibrate": "benchmarks.calibrate",
    "study": "benchmarks.study",
    "prepare": "benchmarks.prepare",
    "throughput": "benchmarks.throughput",
    "overhead": "benchmarks.overhead",
    "optimizer-cost": "benchmarks.optimizer_cost",
    "make-teacher": "benchmarks.make_teacher",
}


def main() -> None:
    """Runs a subcommand, as its script would, and exits with its status."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        sys.argv = [f"funmatch {words[0]}", *words[1:]]
        start(COMMANDS[words[0]])  # before anything else is imported
    sys.argv = ["funmatch", *words]  # what an error in the subcommand's name is reported by
    start("benchmarks.__main__", "describe")


def describe() -> None:
    """Prints the version, or all subcommands.

    Raises:
      RequestError: there is no such subcommand.
    """
    import importlib.metadata

    from testbed.errors import choose

    words = sys.argv[1:]
    if words == ["--version"]:
        print(importlib.metadata.version("funmatch"))
    elif words in ([], ["-h"], ["--help"]):
        print(overview())
    else:
        choose("command", words[0], COMMANDS)


def overview() -> str:
    """All subcommands with a line each. Imports none of them."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            "usage: funmatch COMMAND [OPTIONS]",
            "",
            "FunMatch, a testbed for optimizers. Commands:",
            *lines,
            "",
            "funmatch COMMAND --help shows a command's options, funmatch --version the version.",
        ]
    )


def summary(module: str) -> str:
    """The first line of a module's docstring, from its source."""
    import ast
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


if __name__ == "__main__":
    main()
