"""New tables, and new columns of the job that have defaults in the database: older processes can go on writing rows."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0006_alter_job_state")]

    operations = [
        migrations.CreateModel(
            name="Worker",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("label", models.CharField(max_length=255, verbose_name="label")),
                ("hostname", models.CharField(max_length=255, verbose_name="host")),
                ("pid", models.PositiveIntegerField(verbose_name="process id")),
                ("queues", models.CharField(max_length=1000, verbose_name="queues")),
                ("started", models.DateTimeField(verbose_name="started")),
                ("stopped", models.DateTimeField(null=True, verbose_name="stopped")),
            ],
            options={"verbose_name": "worker", "verbose_name_plural": "workers"},
        ),
        migrations.AlterModelOptions(
            name="job",
            options={
                "ordering": ["-priority", "created"],
                "verbose_name": "job",
                "verbose_name_plural": "jobs",
            },
        ),
        migrations.AddField(
            model_name="job",
            name="due",
            field=models.BooleanField(
                db_default=True, default=True, editable=False, verbose_name="due"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="step",
            field=models.PositiveSmallIntegerField(
                db_default=0, default=0, editable=False, verbose_name="step"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="attempt",
            field=models.PositiveIntegerField(
                db_default=0, default=0, editable=False, verbose_name="attempt"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="worker",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="jobs",
                to="django_dbq.worker",
                verbose_name="worker",
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="finished",
            field=models.DateTimeField(editable=False, null=True, verbose_name="finished"),
        ),
        # Before 0008: an index with a condition is built anew when the type of one of its columns changes.
        migrations.AlterField(
            model_name="job",
            name="queue_name",
            field=models.CharField(
                db_index=True, default="default", max_length=63, verbose_name="queue"
            ),
        ),
        migrations.CreateModel(
            name="Attempt",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("number", models.PositiveIntegerField(verbose_name="number")),
                ("step", models.PositiveSmallIntegerField(verbose_name="step")),
                ("task", models.CharField(max_length=255, verbose_name="task")),
                (
                    "outcome",
                    models.CharField(
                        choices=[("succeeded", "Succeeded"), ("failed", "Failed")],
                        max_length=20,
                        verbose_name="outcome",
                    ),
                ),
                ("worker", models.CharField(max_length=255, verbose_name="worker")),
                ("started", models.DateTimeField(verbose_name="started")),
                ("finished", models.DateTimeField(verbose_name="finished")),
                ("error", models.TextField(blank=True, verbose_name="error")),
                (
                    "job",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="attempts",
                        to="django_dbq.job",
                        verbose_name="job",
                    ),
                ),
            ],
            options={
                "verbose_name": "attempt",
                "verbose_name_plural": "attempts",
                "ordering": ["job", "number"],
                "indexes": [models.Index(fields=["job", "number"], name="dbq_attempt_number")],
            },
        ),
    ]
