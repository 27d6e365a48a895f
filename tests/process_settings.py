"""Settings of a worker process that a test starts: the test's own database, and jobs that wait for the test."""

import json
import os
from typing import Any

from . import process_jobs
from .settings import *  # noqa: F403
from .settings import DATABASE

# Where the running test keeps its rows, as JSON: the keys of DATABASES["default"] that differ from the suite's.
DATABASES: Any = {"default": {**DATABASE, **json.loads(os.environ["TEST_DATABASE"])}}
JOBS = process_jobs.JOBS
DBQ = json.loads(os.environ.get("TEST_DBQ", "{}"))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"django_dbq": {"handlers": ["stderr"], "level": "INFO"}},
}
