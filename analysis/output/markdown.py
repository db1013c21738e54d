"""Tables as Markdown."""

import re
from typing import Any

import pandas as pd

from testbed.errors import printable

LONGEST = 3_000  # characters of a sentence or a cell


def table(frame: pd.DataFrame) -> str:
    """A table whose columns are aligned in plain text too; floats to four digits, NaN as a dash."""
    cells = [[_cell(name) for name in frame.columns]]
    cells += [[_cell(value) for value in row] for row in frame.astype(object).to_numpy()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in cells]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def escape(text: str) -> str:
    """Text that Markdown shows as it is, and no markup: names may hold anything, at any length."""
    plain = printable(text, LONGEST)
    return re.sub(r"[\\`*|]|<(?=[A-Za-z/!?])|(?<=\])\(", r"\\\g<0>", plain)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4g}"
    return escape(str(value))
