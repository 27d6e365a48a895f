"""Settings of the test suite; DATABASE_URL names the database, without it SQLite in a temporary file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import dj_database_url

DATABASE: Any = dj_database_url.parse(os.environ.get("DATABASE_URL") or "sqlite://:memory:")
if DATABASE["ENGINE"] == "django.db.backends.sqlite3":
    # A file, for tests that start worker processes: those have to open the same database. One for each run.
    file = Path(tempfile.gettempdir(), f"django-dbq-test-{os.getpid()}.sqlite3")
    DATABASE["TEST"] = {"NAME": str(file)}
    DATABASE["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        "timeout": 20,
    }
DATABASES = {"default": DATABASE}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_dbq",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
SECRET_KEY = "only for tests"
USE_TZ = True

JOBS: dict[str, Any] = {}  # each test declares its own
