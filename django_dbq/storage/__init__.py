"""What differs from database to database, behind one contract (`base.Storage`)."""

from functools import cache

from django.db import connections
from django.utils.module_loading import import_string

from .base import Execution, Living, Overdue, Position, Queues, Storage, Suspects

__all__ = [
    "Execution",
    "Living",
    "Overdue",
    "Position",
    "Queues",
    "Storage",
    "Suspects",
    "storage_for",
]

_STORAGES = {
    "postgresql": "django_dbq.storage.postgresql.PostgreSQLStorage",
    "mysql": "django_dbq.storage.mysql.MySQLStorage",  # MariaDB as well
    "sqlite": "django_dbq.storage.sqlite.SQLiteStorage",
}


@cache
def storage_for(alias: str) -> Storage:
    """The storage of a database alias.

    Raises:
        NotImplementedError: its vendor is not supported.
    """
    vendor = connections[alias].vendor
    if vendor not in _STORAGES:
        raise NotImplementedError(
            f"django_dbq runs on {', '.join(_STORAGES)}; the database {alias!r} is {vendor}."
        )
    storage: Storage = import_string(_STORAGES[vendor])(alias)
    return storage
