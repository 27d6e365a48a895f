"""The claim's index with the deadline in its order, and those of members and waits, built while jobs are run."""

from django.db import migrations, models

from django_dbq.indexes import PartialIndex

from ._operations import AddIndexOnline, RemoveIndexOnline


class Migration(migrations.Migration):
    atomic = False  # for concurrent builds; every operation can be repeated

    dependencies = [("django_dbq", "0012_pipelines")]

    operations = [
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["queue_name", "-priority", "-urgency", "created"],
                name="dbq_job_next",
                where=models.Q(("due", True), ("state__in", ["NEW", "READY"])),
                whole=["state", "due", "queue_name", "-priority", "-urgency", "created"],
            ),
        ),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["parent", "position"],
                name="dbq_job_member",
                where=models.Q(("parent__isnull", False)),
                whole=["parent", "position"],
            ),
        ),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["run_after"],
                name="dbq_job_waiting",
                where=models.Q(("round__isnull", False), ("state", "WAITING")),
                whole=["state", "run_after"],
            ),
        ),
        RemoveIndexOnline(model_name="job", name="dbq_job_claim"),
    ]
