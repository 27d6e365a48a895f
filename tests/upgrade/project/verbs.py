"""What this release offers for jobs that django-db-queue has left behind: retry what failed, cancel what is not wanted.

Prints whether each was done.
"""

import json

import django

django.setup()

from django_dbq.models import Job

failed = Job.objects.get(state="FAILED")
future = Job.objects.get(state="NEW")
print(
    json.dumps({"retried": failed.retry(), "cancelled": future.cancel(), "again": future.cancel()})
)
