"""Members, dependencies, events, deadlines; columns with defaults in the database: older processes can go on."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

from django_dbq.fields import ExactField

OUTCOMES = [
    ("succeeded", "Succeeded"),
    ("failed", "Failed"),
    ("timed_out", "Timed out"),
    ("lost", "Lost"),
    ("retried", "Retried"),
    ("waited", "Waited"),
    ("skipped", "Skipped"),
    ("cancelled", "Cancelled"),
]


def to_job(
    name: str, related_name: str, null: bool = False, cascade: bool = True
) -> "models.Field[Any, Any]":
    options: dict[str, Any] = {"null": True, "editable": False} if null else {}
    deletion = django.db.models.deletion
    return models.ForeignKey(
        db_constraint=False,
        db_index=False,
        on_delete=deletion.CASCADE if cascade else deletion.DO_NOTHING,
        related_name=related_name,
        to="django_dbq.job",
        verbose_name=name,
        **options,
    )


def added(name: str, field: "models.Field[Any, Any]") -> migrations.AddField:
    return migrations.AddField(model_name="job", name=name, field=field)


def key() -> tuple[str, "models.Field[Any, Any]"]:
    field = models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )
    return "id", field


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0011_held_index")]

    operations = [
        migrations.AlterModelOptions(
            name="job",
            options={
                "ordering": ["-priority", "-urgency", "created"],
                "verbose_name": "job",
                "verbose_name_plural": "jobs",
            },
        ),
        added("deadline", models.DateTimeField(blank=True, null=True, verbose_name="deadline")),
        added(
            "urgency",
            models.BigIntegerField(db_default=0, default=0, editable=False, verbose_name="urgency"),
        ),
        added(
            "home_queue",
            models.CharField(
                db_default="",
                default="",
                editable=False,
                max_length=63,
                verbose_name="home queue",
            ),
        ),
        added("parent", to_job("parent", "children", null=True)),
        added(
            "position",
            models.PositiveIntegerField(editable=False, null=True, verbose_name="position"),
        ),
        added(
            "parent_round",
            models.PositiveIntegerField(editable=False, null=True, verbose_name="parent's round"),
        ),
        added(
            "round", models.PositiveIntegerField(editable=False, null=True, verbose_name="round")
        ),
        added(
            "waiting_for",
            models.PositiveIntegerField(
                db_default=0, default=0, editable=False, verbose_name="waiting for"
            ),
        ),
        added(
            "watched",
            models.BooleanField(
                db_default=False, default=False, editable=False, verbose_name="watched"
            ),
        ),
        added(
            "pausing",
            models.BooleanField(
                db_default=False, default=False, editable=False, verbose_name="pausing"
            ),
        ),
        added("result", models.JSONField(editable=False, null=True, verbose_name="result")),
        added("forked_from", to_job("forked from", "forks", null=True, cascade=False)),
        migrations.AlterField(
            model_name="attempt",
            name="outcome",
            field=models.CharField(choices=OUTCOMES, max_length=20, verbose_name="outcome"),
        ),
        migrations.CreateModel(
            name="Dependency",
            fields=[
                key(),
                ("mode", models.CharField(default="all", max_length=10, verbose_name="mode")),
                (
                    "on_failure",
                    models.CharField(default="block", max_length=10, verbose_name="on failure"),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("done", "Done"),
                            ("failed", "Failed"),
                            ("left", "No longer waited for"),
                        ],
                        default="open",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("job", to_job("job", "dependencies")),
                ("on", to_job("on", "dependents", cascade=False)),
            ],
            options={
                "verbose_name": "dependency",
                "verbose_name_plural": "dependencies",
                "constraints": [
                    models.UniqueConstraint(fields=["job", "on"], name="dbq_dependency")
                ],
                "indexes": [models.Index(fields=["state", "on"], name="dbq_dependency_on")],
            },
        ),
        migrations.CreateModel(
            name="JobEvent",
            fields=[
                key(),
                ("name", ExactField(max_length=200, verbose_name="name")),
                ("payload", models.JSONField(null=True, verbose_name="payload")),
                ("sent", models.DateTimeField(verbose_name="sent")),
                ("taken", models.PositiveIntegerField(default=0, verbose_name="taken")),
                ("job", to_job("job", "events")),
            ],
            options={
                "verbose_name": "event",
                "verbose_name_plural": "events",
                "constraints": [
                    models.UniqueConstraint(fields=["job", "name", "taken"], name="dbq_event")
                ],
            },
        ),
    ]
