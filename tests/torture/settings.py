"""Settings of torture's worker processes, and of ``python -m tests.torture``."""

import json
import os
from typing import Any

from tests.settings import *  # noqa: F403
from tests.settings import DATABASE, INSTALLED_APPS

from . import kinds

INSTALLED_APPS = [*INSTALLED_APPS, "tests.torture"]
# What the round has, as JSON; without it, this is the round, on the database that DATABASE_URL names.
DATABASES: Any = {"default": {**DATABASE, **json.loads(os.environ.get("TORTURE_DATABASE", "{}"))}}
if DATABASE["ENGINE"] != "django.db.backends.sqlite3":  # which has a file of its own already
    DATABASES["default"]["TEST"] = {"NAME": f"dbq_torture_{os.getpid()}"}  # nobody else's
JOBS = {
    **kinds.JOBS,
    "hold": ["tests.torture.tasks.hold"],
    "hold atomic": [{"task": "tests.torture.tasks.hold_atomic", "atomic": True}],
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(process)d %(threadName)s %(levelname)s %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"django_dbq": {"handlers": ["stderr"], "level": "INFO"}},
}
