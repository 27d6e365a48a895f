"""The constraint of ``unique`` and the indexes of limits, built while jobs are created and run."""

from django.db import migrations, models

from django_dbq.indexes import PartialIndex, PartialUnique

from ._operations import AddIndexOnline, RemoveIndexOnline

UNFINISHED = ["NEW", "READY", "PROCESSING", "STOPPING", "WAITING", "BLOCKED", "PAUSED"]


class Migration(migrations.Migration):
    atomic = False  # for concurrent builds; every operation can be repeated

    dependencies = [("django_dbq", "0014_unique_jobs_limits_and_queues")]

    operations = [
        AddIndexOnline(
            model_name="job",
            index=PartialUnique(
                fields=["unique_key"],
                name="dbq_job_unique",
                where=models.Q(("state__in", UNFINISHED), ("unique_key__isnull", False)),
                only="CASE WHEN state IN ("
                + ", ".join(f"'{state}'" for state in UNFINISHED)
                + ") THEN unique_key END",
            ),
        ),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=["run_after"],
                name="dbq_job_later",
                where=models.Q(("due", False), ("limited", False), ("state__in", ["NEW", "READY"])),
                whole=["state", "due", "limited", "run_after"],
            ),
        ),
        AddIndexOnline(
            model_name="job",
            index=PartialIndex(
                fields=[
                    "name",
                    "state",
                    "due",
                    "concurrency_key",
                    "rate_key",
                    "-priority",
                    "-urgency",
                    "created",
                ],
                name="dbq_job_limited",
                where=models.Q(
                    ("limited", True), ("state__in", ["NEW", "READY", "PROCESSING", "STOPPING"])
                ),
                whole=[
                    *("limited", "name", "state", "due", "concurrency_key", "rate_key"),
                    *("-priority", "-urgency", "created"),
                ],
            ),
        ),
        RemoveIndexOnline(model_name="job", name="dbq_job_future"),
    ]
