"""Folders for files outside of `--out`."""

import os
from pathlib import Path


def cache(name: str) -> Path:
    """A folder below $XDG_CACHE_HOME/funmatch, or else ~/.cache/funmatch, for recomputable files."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "funmatch" / name


def checkpoints() -> Path:
    """Public checkpoints: $FUNMATCH_CHECKPOINTS, or else in the cache."""
    return Path(os.environ.get("FUNMATCH_CHECKPOINTS") or cache("checkpoints"))


def data_sets() -> Path:
    """Data sets, as TFDS chooses: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
