"""Longer names, and without the single-column indexes that every change of state had to keep up."""

import django.utils.timezone
from django.db import migrations, models

import django_dbq.uuids

from ._operations import AddCheckOnline

STATES = [
    ("NEW", "New"),
    ("READY", "Ready"),
    ("PROCESSING", "Processing"),
    ("STOPPING", "Stopping"),
    ("WAITING", "Waiting"),
    ("BLOCKED", "Blocked"),
    ("PAUSED", "Paused"),
    ("COMPLETE", "Complete"),
    ("FAILED", "Failed"),
    ("CANCELLED", "Cancelled"),
]


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0008_claim_indexes")]

    operations = [
        migrations.AlterField(
            model_name="job",
            name="id",
            field=models.UUIDField(
                default=django_dbq.uuids.uuid7, editable=False, primary_key=True, serialize=False
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="created",
            field=models.DateTimeField(
                db_index=True,
                default=django.utils.timezone.now,
                editable=False,
                verbose_name="created",
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="modified",
            field=models.DateTimeField(auto_now=True, verbose_name="modified"),
        ),
        migrations.AlterField(
            model_name="job",
            name="name",
            field=models.CharField(max_length=200, verbose_name="name"),
        ),
        migrations.AlterField(
            model_name="job",
            name="state",
            field=models.CharField(
                choices=STATES, default="NEW", max_length=20, verbose_name="state"
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="next_task",
            field=models.CharField(blank=True, max_length=255, verbose_name="next task"),
        ),
        migrations.AlterField(
            model_name="job",
            name="workspace",
            field=models.JSONField(blank=True, default=dict, null=True, verbose_name="workspace"),
        ),
        migrations.AlterField(
            model_name="job",
            name="queue_name",
            field=models.CharField(default="default", max_length=63, verbose_name="queue"),
        ),
        migrations.AlterField(
            model_name="job",
            name="priority",
            field=models.SmallIntegerField(default=0, verbose_name="priority"),
        ),
        migrations.AlterField(
            model_name="job",
            name="run_after",
            field=models.DateTimeField(blank=True, null=True, verbose_name="run after"),
        ),
        AddCheckOnline(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", [state for state, _ in STATES])),
                name="dbq_job_state",
            ),
        ),
    ]
