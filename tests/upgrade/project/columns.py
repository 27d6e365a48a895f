"""Print how the database describes the table of jobs; runs with django-db-queue and with django-dbq."""

import json

import django

django.setup()

from django.db import connection

TABLE = "django_dbq_job"

with connection.cursor() as cursor:
    columns = connection.introspection.get_table_description(cursor, TABLE)
    constraints = connection.introspection.get_constraints(cursor, TABLE)
print(
    json.dumps(
        {"columns": [column._asdict() for column in columns], "constraints": constraints},
        default=str,
    )
)
