"""What every test may ask for."""

import os
import shutil
from collections.abc import Callable

import pytest


@pytest.fixture
def program() -> Callable[[str], str]:
    """The path of a system program; without it the test is skipped, or fails where REQUIRE names the program."""

    def find(name: str) -> str:
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
        if path is None and name in os.environ.get("REQUIRE", "").split(","):
            pytest.fail(f"{name} is required here and not installed")
        return path or pytest.skip(f"{name} is not installed")

    return find
