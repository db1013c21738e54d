"""JAX's persistent compilation cache, and the count of what it saved."""

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from testbed import paths
from testbed.errors import notify, printable

_ERROR = "Error (reading|writing) persistent compilation cache entry"  # as JAX warns

_EVENTS = {
    "/jax/compilation_cache/cache_hits": "hits",
    "/jax/compilation_cache/cache_misses": "misses",
}
_counts = {"hits": 0, "misses": 0}


def _count(event: str, **_: object) -> None:
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


jax.monitoring.register_event_listener(_count)


def enable_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(paths.cache("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", _ERROR)  # of programs that nobody counts


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the cache's hits and misses inside; both stay 0 where the cache is off.

    What is damaged is compiled again; one Notice says so, in place of JAX's warning for each program.
    """
    before = dict(_counts)
    counts = {"hits": 0, "misses": 0}
    try:
        with _one_notice():
            yield counts
    finally:
        counts.update({key: _counts[key] - before[key] for key in counts})


@contextmanager
def _one_notice() -> Iterator[None]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", _ERROR)
            yield
    finally:
        errors = [str(w.message) for w in caught if re.match(_ERROR, str(w.message))]
        if errors:
            folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
            _say(folder, printable(errors[0], 200))
        for other in caught:
            if not re.match(_ERROR, str(other.message)):
                warnings.showwarning(other.message, other.category, other.filename, other.lineno)


@functools.cache  # once for a folder
def _say(folder: str, error: str) -> None:
    notify(
        f"compilation cache {folder}: it cannot be used for every program ({error}); they are compiled "
        "again. If this stays so, delete that folder"
    )
