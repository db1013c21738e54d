"""Where a result comes from: versions, device, commit."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    *("funmatch", "jax", "jaxlib", "optax", "flax", "numpy"),
    *("pillow", "grain", "tensorflow-datasets", "array_record"),
)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the software that computes a trial."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def device() -> dict[str, Any]:
    """The device that computes, and its host."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processor": _processor(),
        "host": platform.node(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


@functools.cache
def git() -> dict[str, Any] | None:
    """Commit of the code and whether it was changed since; None outside a checkout.

    A package that is installed below somebody else's checkout is not part of it.
    """
    folder = Path(__file__).parent

    def ask(*words: str) -> str:
        call = ["git", "-C", str(folder), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
