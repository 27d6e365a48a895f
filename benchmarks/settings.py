"""Settings for this package and for django-db-queue 3.3.0: the same jobs on the same database."""

import os

SECRET_KEY = "benchmark"
USE_TZ = True
INSTALLED_APPS = ["django_dbq"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
    }
}
JOBS = {
    "earlier": {"tasks": ["tasks.noop"]},
    "noop": {"tasks": ["tasks.noop"]},
    "three_steps": {"tasks": ["tasks.one", "tasks.two", "tasks.three"]},
    "map": {"tasks": ["tasks.noop", {"map": "tasks.noop", "over": "items"}]},
    "stamp": {"tasks": ["tasks.stamp"]},
    "weigh": {"tasks": ["weighing.weigh"]},
}
