"""The key of ``unique`` jobs, paused queues, jobs under a limit and the rows that limits are counted in."""

import django.db.models.deletion
from django.db import migrations, models

from django_dbq.fields import ExactField


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0013_claims_by_deadline")]

    operations = [
        migrations.CreateModel(
            name="Queue",
            fields=[
                (
                    "name",
                    ExactField(
                        max_length=63, primary_key=True, serialize=False, verbose_name="name"
                    ),
                ),
                ("paused", models.DateTimeField(null=True, verbose_name="paused")),
            ],
            options={"verbose_name": "queue", "verbose_name_plural": "queues"},
        ),
        migrations.AddField(
            model_name="job",
            name="unique_key",
            field=models.CharField(
                editable=False, max_length=64, null=True, verbose_name="unique key"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="limited",
            field=models.BooleanField(
                db_default=False, default=False, editable=False, verbose_name="limited"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="concurrency_key",
            field=ExactField(
                db_default="",
                default="",
                editable=False,
                max_length=200,
                verbose_name="concurrency key",
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="rate_key",
            field=ExactField(
                db_default="", default="", editable=False, max_length=200, verbose_name="rate key"
            ),
        ),
        migrations.CreateModel(
            name="Limit",
            fields=[
                (
                    "name",
                    ExactField(
                        max_length=200, primary_key=True, serialize=False, verbose_name="name"
                    ),
                ),
                (
                    "concurrency_key",
                    ExactField(default="", max_length=200, verbose_name="concurrency key"),
                ),
                ("rate_key", ExactField(default="", max_length=200, verbose_name="rate key")),
            ],
            options={"verbose_name": "limit", "verbose_name_plural": "limits"},
        ),
        migrations.CreateModel(
            name="Start",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", ExactField(max_length=200, verbose_name="name")),
                ("key", ExactField(max_length=200, verbose_name="key")),
                ("admitted", models.DateTimeField(verbose_name="admitted")),
                ("at", models.DateTimeField(null=True, verbose_name="at")),
                ("attempt", models.PositiveIntegerField(verbose_name="attempt")),
                (
                    "job",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="starts",
                        to="django_dbq.job",
                        verbose_name="job",
                    ),
                ),
            ],
            options={
                "verbose_name": "start",
                "verbose_name_plural": "starts",
                "indexes": [models.Index(fields=["name", "at"], name="dbq_start_at")],
            },
        ),
    ]
