"""The Django application."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DbqConfig(AppConfig):
    name = "django_dbq"
    label = "django_dbq"
    verbose_name = _("Job queue")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)
