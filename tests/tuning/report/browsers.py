"""A real browser to look at pages with, installed for the tests where it can be."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.programs import installed

_DRIVER = ("playwright==1.65.2", "pyee==13.0.0", "greenlet==3.5.6")


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A headless Chromium, as playwright's; skips where it, or the library that drives it, cannot be had.

    Args:
        folder: takes the library where it is not installed.
    """
    program = installed(_program, "chromium")
    if program is None:
        pytest.skip("there is no Chromium, and it cannot be installed here: apt install chromium")
    driver = _driver() or _installed_driver(folder)
    if driver is None:
        pytest.skip(f"pip install {' '.join(_DRIVER)}")
    with driver.sync_playwright() as playwright:
        # Its sandbox refuses to run as root.
        options = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


def _program() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _driver() -> Any:
    try:
        return importlib.import_module("playwright.sync_api")
    except ImportError:
        return None


def _installed_driver(folder: Path) -> Any:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *_DRIVER]
    subprocess.run(command, capture_output=True)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    return _driver()
