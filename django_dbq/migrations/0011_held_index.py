"""The index of what each worker holds, built while jobs are created and run."""

from django.db import migrations, models

from django_dbq.indexes import PartialIndex

from ._operations import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False  # for a concurrent build; it can be repeated

    dependencies = [("django_dbq", "0010_failures_losses_and_heartbeats")]

    operations = [
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["worker"],
                name="dbq_job_held",
                where=models.Q(("state__in", ["PROCESSING", "STOPPING"])),
                whole=["state", "worker"],
            ),
        ),
    ]
