"""Here django-db-queue added a choice, STOPPING; nothing in the table changes."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0005_job_run_after")]

    operations = []
