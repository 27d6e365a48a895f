"""The application: airports of the world, imported and reported on by background jobs."""

from django.apps import AppConfig


class AirportsConfig(AppConfig):
    name = "airports"
    default_auto_field = "django.db.models.BigAutoField"
