"""Files of a report: their names, tables without formulas, and a folder that is replaced whole."""

import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.csv

from testbed.cli import unwritable
from testbed.errors import printable

LONGEST_NAME = 80  # characters of a part of a file's name, of which there may be two
LONGEST_CELL = 10_000
UNFINISHED = ".unfinished-"
LEFT_OVER = 3600.0  # seconds after which an unfinished folder is that of a process that was killed


def safe(name: object) -> str:
    """A part of a file's name: tasks and metrics may be called anything, at any length."""
    plain = re.sub(r"[^\w.@+-]+", "_", str(name).encode(errors="replace").decode())[:LONGEST_NAME]
    if plain == name:
        return plain
    return f"{plain}-{zlib.crc32(str(name).encode(errors='surrogatepass')):08x}"


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, as pandas would write it, but faster; missing numbers are empty.

    A spreadsheet would run a text that begins with = + - @ as a formula: it gets an apostrophe.
    """
    table = table.rename(columns=lambda name: _cell(str(name)))
    texts = table.select_dtypes(exclude=["number", "bool"])
    table = table.assign(**{str(name): texts[name].map(_cell, na_action="ignore") for name in texts})
    pyarrow.csv.write_csv(pyarrow.Table.from_pandas(table, preserve_index=False), path)


def _cell(value: object) -> object:
    """A cell's value; a text in one line, and none that a spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value, LONGEST_CELL)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    """Whether it is one, or stands for a missing one."""
    return (
        text == "-" or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?( \[[-+\d.e, ]*[\])])?", text) is not None
    )


@contextmanager
def replacing(option: str, folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files then replace those of the same names in `folder`.

    Each is replaced whole, `index.html` last. Where writing fails or is interrupted, none is.

    Args:
      option: that named the folder, for messages.
      folder: it is made, where there is none.

    Raises:
      RequestError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{UNFINISHED}*"):
            if time.time() - left.stat().st_mtime > LEFT_OVER:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as place:
            yield Path(place)
            for file in sorted(Path(place).iterdir(), key=lambda f: (f.name == "index.html", f.name)):
                file.replace(folder / file.name)
    except OSError as error:
        raise unwritable(option, folder, error) from error
