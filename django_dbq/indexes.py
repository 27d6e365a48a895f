"""Indexes of a part of a table, also where the database has none (MySQL, MariaDB)."""

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Q


class PartialIndex(models.Index):
    """An index of the rows where ``where`` holds; on databases without partial indexes (MySQL, MariaDB) one
    over ``whole``.

    Django would make such an index there without its condition and in its order, which serves no query of ours.
    """

    unique = False

    def __init__(self, *, where: Q, whole: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.whole = where, list(whole)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "where": self.where, "whole": self.whole}

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **kwargs: Any,
    ) -> Any:
        if not schema_editor.connection.features.supports_partial_indexes:
            made = models.Index(fields=self.whole, name=self.name)
            return made.create_sql(model, schema_editor, using=using, **kwargs)
        made = models.Index(fields=self.fields, name=self.name, condition=self.where)
        if self.unique:
            editor: Any = schema_editor
            online = kwargs.pop("concurrently", False)
            sql = editor.sql_create_index_concurrently if online else editor.sql_create_index
            kwargs["sql"] = sql.replace("CREATE INDEX", "CREATE UNIQUE INDEX", 1)
        return made.create_sql(model, schema_editor, using=using, **kwargs)


class PartialUnique(PartialIndex):
    """A unique index of the rows where ``where`` holds.

    Without partial indexes, of a column that the database itself computes: the one field, or NULL where ``where`` does
    not hold, as ``only`` says in SQL.
    """

    unique = True

    def __init__(self, *, only: str, **kwargs: Any) -> None:
        super().__init__(whole=[], **kwargs)
        self.only = only

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        del kwargs["whole"]
        return path, args, {**kwargs, "only": self.only}

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **kwargs: Any,
    ) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using, **kwargs)
        quote = schema_editor.quote_name
        field = model._meta.get_field(self.fields[0])
        table, kind = quote(model._meta.db_table), field.db_type(schema_editor.connection)
        # Two statements: together, MariaDB would copy the table.
        schema_editor.execute(
            f"ALTER TABLE {table} ADD COLUMN {quote(self.name)} {kind} "
            f"GENERATED ALWAYS AS ({self.only}) VIRTUAL"
        )
        return f"ALTER TABLE {table} ADD UNIQUE INDEX {quote(self.name)} ({quote(self.name)})"

    def remove_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, **kwargs: Any
    ) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().remove_sql(model, schema_editor, **kwargs)
        quote = schema_editor.quote_name
        return (
            f"ALTER TABLE {quote(model._meta.db_table)} DROP INDEX {quote(self.name)}, "
            f"DROP COLUMN {quote(self.name)}"
        )
