"""Commands as processes of their own, which the tests send signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def launch(*words: object, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Starts `python WORDS` in the clone, with stdout and stderr in pipes; `before`: such as nohup."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([*before, sys.executable, *map(str, words)], **(pipes | options))


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    """Until a command has arranged for signals, some hundredths of a second after its launch.

    Before that they do what they do to any Python that starts. Linux says what a process handles.
    """
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) & 1 << (signal.SIGHUP - 1):
                return
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    """The processes that it has started and that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        found += [int(folder.name)] if parent == pid else []
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
