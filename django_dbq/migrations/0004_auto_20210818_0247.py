from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_dbq", "0003_auto_20180713_1000")]

    operations = [
        migrations.AlterField(
            model_name="job", name="workspace", field=models.JSONField(null=True)
        ),
    ]
