"""The claim's indexes, built while jobs are created and run; the ones they replace go in 0009.

Jobs whose time has not come are marked first, so that the claim's index never holds them.
"""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

from django_dbq.indexes import PartialIndex

from ._operations import AddIndexOnline


def mark_future_jobs(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    jobs = apps.get_model("django_dbq", "Job").objects.using(schema_editor.connection.alias)
    jobs.filter(run_after__gt=timezone.now(), state__in=["NEW", "READY"]).update(due=False)


class Migration(migrations.Migration):
    atomic = False  # for concurrent builds; every operation can be repeated

    dependencies = [("django_dbq", "0007_attempts_and_workers")]

    operations = [
        migrations.RunPython(mark_future_jobs, migrations.RunPython.noop),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["queue_name", "-priority", "created"],
                name="dbq_job_claim",
                where=models.Q(("due", True), ("state__in", ["NEW", "READY"])),
                whole=["state", "due", "queue_name", "-priority", "created"],
            ),
        ),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["run_after"],
                name="dbq_job_future",
                where=models.Q(("due", False), ("state__in", ["NEW", "READY"])),
                whole=["state", "due", "run_after"],
            ),
        ),
    ]
