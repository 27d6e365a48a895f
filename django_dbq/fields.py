"""Columns of kinds that Django does not have."""

from typing import Any

from django.db import models


class ExactField(models.CharField):  # type: ignore[type-arg]
    """Text that is equal to nothing but itself.

    MySQL and MariaDB compare text by the rules of a language, which take different cases, accents or spaces at the end
    for the same; there, the column holds bytes.
    """

    def db_type(self, connection: Any) -> str | None:
        if connection.vendor != "mysql":
            return super().db_type(connection)
        return f"varbinary({4 * (self.max_length or 0)})"  # of UTF-8

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value
