"""Programs of Debian that tests need, installed by them where that is permitted."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest


def needed(name: str, *packages: str) -> str:
    """The program's path; skips where it is not there and cannot be installed."""
    found = installed(lambda: shutil.which(name), *packages)
    if found is None:
        pytest.skip(f"{name} is not installed, and cannot be here: apt install {' '.join(packages)}")
    return found


def installed(find: Callable[[], str | None], *packages: str) -> str | None:
    """What `find` finds, if need be after the packages were installed; None where they cannot be."""
    commands = [["update", "-qq"], ["install", "-y", "-qq", *packages]]
    if find() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in commands:  # other tests may be at it
            waiting = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *command]
            subprocess.run(waiting, env=environment, capture_output=True)
    return find()
