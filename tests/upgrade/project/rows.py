"""Print django-db-queue's nine columns of every job; runs with django-db-queue and with django-dbq."""

import json

import django

django.setup()

from django_dbq.models import Job

COLUMNS = [
    "id",
    "created",
    "modified",
    "name",
    "state",
    "next_task",
    "workspace",
    "queue_name",
    "priority",
    "run_after",
]

print(json.dumps({str(row["id"]): row for row in Job.objects.values(*COLUMNS)}, default=str))
