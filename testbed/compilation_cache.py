"""JAX's persistent compilation cache, and the count of what it saved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from testbed import paths

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


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the cache's hits and misses inside; both stay 0 where the cache is off."""
    before = dict(_counts)
    counts = {"hits": 0, "misses": 0}
    try:
        yield counts
    finally:
        counts.update({key: _counts[key] - before[key] for key in counts})
