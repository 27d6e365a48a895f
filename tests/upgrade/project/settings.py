"""A project as django-db-queue's users have it; it upgrades without a change here."""

import os

import dj_database_url

DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
INSTALLED_APPS = ["django_dbq"]
SECRET_KEY = "only for tests"
USE_TZ = True

JOBS = {
    "parcel": {
        "tasks": ["parcels.weigh", "parcels.label", "parcels.ship"],
        "creation_hook": "parcels.registered",
        "failure_hook": "parcels.given_up",
    }
}
