"""Migration operations that do not stop work on a table with millions of rows."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState


class AddIndexOnline(migrations.AddIndex):
    """Builds the index while rows are written, where the database can (PostgreSQL); in a migration that is not atomic.

    A build that was interrupted leaves an invalid index behind, which is dropped first: the migration can be repeated.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not hasattr(schema_editor, "sql_create_index_concurrently"):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        editor: Any = schema_editor
        if self.allow_migrate_model(editor.connection.alias, model):
            name = editor.quote_name(self.index.name)
            editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            editor.add_index(model, self.index, concurrently=True)


class RemoveIndexOnline(migrations.RemoveIndex):
    """Drops the index without waiting for, or stopping, anybody who uses it, where the database can (PostgreSQL)."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not hasattr(schema_editor, "sql_create_index_concurrently"):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = from_state.apps.get_model(app_label, self.model_name)
        editor: Any = schema_editor
        if self.allow_migrate_model(editor.connection.alias, model):
            editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {editor.quote_name(self.name)}")


class AddCheckOnline(migrations.AddConstraint):
    """Adds a check without reading the rows that are there, where the database can (PostgreSQL): it holds from
    now on.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if not hasattr(schema_editor, "sql_create_index_concurrently"):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        editor: Any = schema_editor
        if self.allow_migrate_model(editor.connection.alias, model):
            sql = self.constraint.create_sql(model, editor)
            editor.execute(f"{sql} NOT VALID", params=None)
