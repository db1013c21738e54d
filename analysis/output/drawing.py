"""Draws figures, in several processes where there are many."""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from analysis import figures
from testbed.errors import describe

MOST_PROCESSES = 8
FIGURES_PER_PROCESS = 12  # each process has to import all this

Job = tuple[str, Callable[[], Figure]]  # the name of a figure's files, and what draws it


def draw(jobs: Sequence[Job], folder: Path) -> None:
    """Draws figures and saves them in a folder.

    Raises:
      OSError: the folder cannot be written.
      RuntimeError: a figure cannot be drawn.
    """
    workers = min(os.cpu_count() or 1, MOST_PROCESSES, math.ceil(len(jobs) / FIGURES_PER_PROCESS))
    with tqdm(total=len(jobs), desc="figures", disable=None) as bar:  # silent in a pipe
        if workers < 2:
            for name, figure in jobs:
                figures.save(figure(), folder, name)
                bar.update()
            return
        left = len(jobs)
        with _processes([jobs[i::workers] for i in range(workers)], folder) as pipes:
            while pipes:
                for pipe in wait(pipes):
                    assert isinstance(pipe, Connection)
                    try:
                        error = pipe.recv()
                    except EOFError:
                        pipes.remove(pipe)
                        continue
                    if error is not None:
                        raise error
                    left -= 1
                    bar.update()
    if left:
        raise RuntimeError("a process that draws figures ended before its time")


@contextmanager
def _processes(parts: Sequence[Sequence[Job]], folder: Path) -> Iterator[list[Connection]]:
    """Processes that draw, each its part; yields where each says how a figure went."""
    context, pipes, started = multiprocessing.get_context("spawn"), [], []
    resource_tracker.ensure_running()  # which would undo what follows
    # A terminal sends its signals to all processes. Ours ends the others, and they say nothing.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        for part in parts:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_draw_part, args=(part, folder, there), daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            started.append(process)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield pipes
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for process in started:
            process.kill()
            process.join()


def _draw_part(part: Sequence[Job], folder: Path, pipe: Connection) -> None:
    """Draws in a process of its own, which ends quietly when the one that started it is gone."""
    for name, figure in part:
        error: Exception | None = None
        try:
            figures.save(figure(), folder, name)
        except OSError as failed:
            error = failed
        except Exception as failed:
            error = RuntimeError(describe(failed))
        try:
            pipe.send(error)
        except OSError:
            return
