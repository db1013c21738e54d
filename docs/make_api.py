"""Makes docs/api.md of the docstrings of what a notebook imports.

python -m docs.make_api
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

PAGE = Path(__file__).with_name("api.md")
INTRODUCTION = """\
# The API

Made of the docstrings by `python -m docs.make_api`. Everything of `testbed` is imported by
`from testbed import ...`; that alone loads no JAX. [examples/compare.ipynb](../examples/compare.ipynb)
and [examples/compare.py](../examples/compare.py) use it; [examples/tokens.py](../examples/tokens.py) and
[examples/autoencoder.py](../examples/autoencoder.py) are tasks in a file each.
"""
SECTIONS = MappingProxyType(
    {
        "Problems and trials": (
            "testbed",
            (
                "TASKS",
                "open_problem",
                "Problem",
                "Lesson",
                "PROTOCOLS",
                "Trial",
                "train",
                "Result",
                "run",
            ),
        ),
        "What a task is made of": (
            "testbed",
            (
                *("Task", "Target", "Data", "Part", "Generated", "InputSpec"),
                *("NetworkTeacher", "ExactTeacher", "CATEGORICAL", "BERNOULLI"),
                *("Score", "Outputs", "Metric", "RequestError"),
            ),
        ),
        "Records as frames": ("analysis.frames", ("load", "read", "Folder")),
        "Statistics": ("analysis.statistics.trials", ("trials", "best_per_optimizer")),
        "Speed-ups": ("analysis.statistics.speedups", ("speedups",)),
        "Matched quality": ("analysis.statistics.matched_quality", ("matched_quality",)),
        "Figures": (
            "analysis.figures",
            (
                "time_to_accuracy",
                "speedups",
                "overfitting",
                "patience",
                "tuning_curve",
                "profile",
                "save",
            ),
        ),
    }
)
CONSTANTS = MappingProxyType(
    {
        "TASKS": "Registered tasks by name: ",
        "PROTOCOLS": "The protocols by name: ",
        "CATEGORICAL": "The distance of classes, over the last axis: the default of a task.",
        "BERNOULLI": "The distance of independent Bernoulli variables, one for each output.",
    }
)


def page() -> str:
    """The text of docs/api.md."""
    return "\n".join([INTRODUCTION, *(line for part in SECTIONS for line in section(part))])


def section(title: str) -> Iterator[str]:
    """The lines of one section."""
    module, names = SECTIONS[title]
    yield f"## {title}\n\n`{module}`\n"
    for name in names:
        value = getattr(importlib.import_module(module), name)
        if name in CONSTANTS:
            listed = ", ".join(f"`{key}`" for key in value) + "." if hasattr(value, "keys") else ""
            yield f"### {name}\n\n{CONSTANTS[name]}{listed}\n"
        else:
            yield from entry(name, value)


def entry(name: str, value: Any) -> Iterator[str]:
    """A function, or a class with its public methods."""
    yield f"### {name}\n\n{block(name, value)}\n"
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"#### {name}.{method}\n\n{block(method, function)}\n"


def block(name: str, value: Any) -> str:
    """Signature and docstring."""
    return f"```\n{signature(name, value)}\n\n{inspect.getdoc(value)}\n```"


def signature(name: str, value: Any) -> str:
    """The signature with names and defaults; types stand in the docstrings and the source."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return name
    plain = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    text = str(inspect.Signature(plain))
    # What a default looks like must not depend on the process.
    return name + re.sub(
        r"<(?:function|factory|class|mappingproxy)[^>]*>|<[^>]+ at 0x[0-9a-f]+>", "...", text
    )


if __name__ == "__main__":
    PAGE.write_text(page())
