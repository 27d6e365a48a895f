"""The table as django-db-queue made it. Migrations 0001 to 0006 carry its names and leave its columns."""

import uuid

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("created", models.DateTimeField(auto_now_add=True, db_index=True)),
                ("modified", models.DateTimeField(auto_now=True)),
                ("name", models.CharField(max_length=100)),
                ("state", models.CharField(db_index=True, default="NEW", max_length=20)),
                ("next_task", models.CharField(blank=True, max_length=100)),
                ("workspace", models.TextField(null=True)),
                (
                    "queue_name",
                    models.CharField(db_index=True, default="default", max_length=20),
                ),
            ],
            options={"ordering": ["-created"]},
        ),
    ]
