"""The browser that tests the report's page; `python -m tests.browser` prints which, or exits with 1."""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MISSING = (
    "No Chromium for the tests of the page: `make browser` installs one, FUNMATCH_CHROMIUM names one"
)


def find() -> str | None:
    """The path of a Chromium: FUNMATCH_CHROMIUM, one on PATH, or Playwright's own."""
    named = os.environ.get("FUNMATCH_CHROMIUM")
    found = [named] if named else [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        with sync_playwright() as playwright:
            found = [playwright.chromium.executable_path]
    return next((path for path in found if Path(path).exists()), None)


if __name__ == "__main__":
    sys.exit(print(find()) if find() else MISSING)
