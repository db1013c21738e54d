"""How the process of a command starts, and what signals do to it.

A script begins with

    if __name__ == "__main__":
        from testbed.start import start

        start("benchmarks.run")

before it imports anything else: its imports take seconds, in which it can be interrupted too. So this
module imports next to nothing.
"""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

_started: list["_Signals"] = []  # of this process
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(module: str, function: str = "main") -> NoReturn:
    """Runs a function of a module, its `main`, as a whole process; see `cli.serve` for its status.

    The first of SIGNALS raises KeyboardInterrupt in it, unless that handles them itself. While
    modules are imported, it ends the process: an exception there would abort what C++ is doing. A second
    one ends the process at once, whatever it is doing.
    """
    signals = _Signals()
    _started.append(signals)
    import importlib

    from testbed import cli

    cli.show_plainly()

    def main() -> None:
        run = getattr(importlib.import_module(module), function)
        signals.imported = True
        run()

    try:
        cli.serve(main)
    except SystemExit as end:
        signals.status = end.code if isinstance(end.code, int) else 1
        raise


class _Signals:
    """What SIGNALS do to this process from now on."""

    def __init__(self) -> None:
        self.imported = False
        self.status: int | None = None  # once the command has ended
        self._heard, self._unheard = 0, False
        # A thread counts them: the main thread may be inside of a compilation for a minute.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handle(self._hear)
        import threading

        atexit.register(handle, signal.SIG_IGN)  # called last: Python then restores what kills
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # it would write there too
        sys.unraisablehook = self._unraisable
        threading.Thread(target=self._count, args=(reader,), daemon=True).start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.imported and self.status is None:
            raise KeyboardInterrupt
        self._unheard = True

    def _count(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                self._heard += number in SIGNALS
            if self._heard > 1 or (self._heard and (self._unheard or not self.imported)):
                _end_at_once(self.status)

    def _unraisable(self, what: Any) -> None:
        """An interrupt where Python drops exceptions, as in a destructor, is none the less one."""
        if issubclass(what.exc_type, KeyboardInterrupt):
            _end_at_once(self.status)
        sys.__unraisablehook__(what)


def handle(hear: Callable[[int, FrameType | None], None] | signal.Handlers) -> dict[int, Any]:
    """Makes a function the handler of SIGNALS, but for a SIGHUP that nohup ignores; those of before."""
    handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, hear) for number in handled}


def restore(handlers: dict[int, Any]) -> None:
    """Undoes `handle`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def hear_again() -> None:
    """What the handler of a part of a command does at a second signal: it ends the process.

    Raises:
      KeyboardInterrupt: in a process that `start` has not started.
    """
    if not _started:
        raise KeyboardInterrupt
    time.sleep(1.0)  # the thread of `_Signals` is faster, unless a library has taken its pipe away
    _end_at_once(None)


def _end_at_once(status: int | None) -> NoReturn:
    """Ends the process without more ado: with a status, or as interrupted, in one line."""
    if status is None:
        name = os.path.basename(sys.argv[0])
        with suppress(OSError):  # there may be no terminal any more
            os.write(2, f"{name}: interrupted\n".encode(errors="backslashreplace"))
    os._exit(130 if status is None else status)
