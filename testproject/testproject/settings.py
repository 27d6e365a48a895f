"""Settings of the test project: an ordinary Django site; what is special about it is `JOBS`, further down."""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = BASE_DIR / "var"  # everything that this site writes
VAR.mkdir(exist_ok=True)

SECRET_KEY = "for-demonstration-only"
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_dbq",
    "airports",
]

# --- The background work: each entry is a pipeline, whose steps follow in this order. -----------

JOURNAL = {  # hooks that every pipeline here has: they write down what happens, see airports/journal.py
    "creation_hook": "airports.journal.created",
    "pre_task_hook": "airports.journal.begins",
    "post_task_hook": "airports.journal.ended",
    "failure_hook": "airports.journal.failed",
    "completion_hook": "airports.journal.complete",
}

JOBS = {
    "import_airports": {
        **JOURNAL,
        "description": "Bring the database up to date with all airports of the world",
        "tasks": [
            "airports.jobs.read",
            "airports.jobs.validate",
            "airports.jobs.upsert",
            "airports.jobs.compute",
            # Two branches at once: the report on the world; and the countries that get a page, with a job for each.
            [
                "airports.jobs.report",
                [
                    "airports.jobs.choose_countries",
                    {
                        "map": "airports.jobs.country_page",
                        "over": "codes",
                        "into": "pages",
                        "queue": "reports",
                    },
                ],
            ],
            # All of it is a draft until somebody has said yes, within a week.
            {"wait_for": "approval", "timeout": 7 * 24 * 3600},
            "airports.jobs.publish",
            "airports.jobs.tidy",
        ],
        "priority": 10,
    },
    "country_report": {
        **JOURNAL,
        "description": "Write a page with a map about one country",
        "tasks": ["airports.jobs.gather", "airports.jobs.draw", "airports.jobs.write"],
        "queue": "reports",
    },
    "digest": {
        **JOURNAL,
        "description": "Sum up what the journal holds",
        "tasks": ["airports.jobs.digest"],
        "queue": "reports",
    },
}

# --- The database is the queue. `DB=postgres` takes PostgreSQL, which manage.py starts itself. --

DB = os.environ.get("DB") or "sqlite"
if DB not in ("sqlite", "postgres"):
    raise ImproperlyConfigured(f"DB is {DB!r}; this site knows sqlite and postgres")
if DB == "postgres":
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ.get("PGHOST", ""),
            "PORT": os.environ.get("PGPORT", ""),
            "NAME": "postgres",
            "USER": "postgres",
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": VAR / "db.sqlite3",
            "OPTIONS": {
                # Take the write lock when a transaction begins: one that takes it halfway cannot wait its turn.
                "transaction_mode": "IMMEDIATE",
                # Readers and a writer do not block each other; NORMAL is safe with a write-ahead log.
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
                "timeout": 30,  # seconds to wait for the write lock
            },
        }
    }

# --- The rest is what every Django site has. ---------------------------------------------------

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

USE_TZ = True
TIME_ZONE = "UTC"
USE_THOUSAND_SEPARATOR = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "django_dbq": {"handlers": ["console"], "level": "INFO"},
        "airports": {"handlers": ["console"], "level": "INFO"},
    },
}
