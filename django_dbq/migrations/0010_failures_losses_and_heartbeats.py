"""What retries, rescue and progress are counted in; with defaults in the database: older processes can go on."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0009_longer_names")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="failures",
            field=models.PositiveIntegerField(
                db_default=0, default=0, editable=False, verbose_name="failures"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="lost",
            field=models.PositiveSmallIntegerField(
                db_default=0, default=0, editable=False, verbose_name="lost"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="progress",
            field=models.FloatField(editable=False, null=True, verbose_name="progress"),
        ),
        migrations.AddField(
            model_name="job",
            name="progress_message",
            field=models.CharField(
                db_default="",
                default="",
                editable=False,
                max_length=255,
                verbose_name="progress message",
            ),
        ),
        migrations.AddField(
            model_name="worker",
            name="heartbeat",
            field=models.DateTimeField(null=True, verbose_name="heartbeat"),
        ),
        migrations.AddField(
            model_name="worker",
            name="timeout",
            field=models.FloatField(
                db_default=60.0, default=60.0, verbose_name="timeout in seconds"
            ),
        ),
        migrations.AddField(
            model_name="worker",
            name="reason",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=255,
                verbose_name="reason of its end",
            ),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="outcome",
            field=models.CharField(
                choices=[
                    ("succeeded", "Succeeded"),
                    ("failed", "Failed"),
                    ("timed_out", "Timed out"),
                    ("lost", "Lost"),
                    ("retried", "Retried"),
                ],
                max_length=20,
                verbose_name="outcome",
            ),
        ),
    ]
