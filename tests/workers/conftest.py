"""What the tests of workers share: the jobs of the worker processes, known here as well, and a folder for events."""

from pathlib import Path
from typing import Any

import pytest

from tests import process_jobs


@pytest.fixture(autouse=True)
def jobs_setting(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.JOBS = process_jobs.JOBS
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
