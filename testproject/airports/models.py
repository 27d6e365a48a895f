"""The tables that the jobs fill: countries, airports, and a journal of what the hooks saw."""

import uuid

from django.db import models


class Country(models.Model):
    """A country or territory; the figures are computed by the import, over its airports."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    airports_count = models.PositiveIntegerField("airports", default=0)
    mean_elevation_m = models.FloatField("mean elevation, m", null=True)
    highest_m = models.FloatField("highest, m", null=True)
    mean_nearest_km = models.FloatField("mean distance to the nearest airport, km", null=True)

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.name


class Airport(models.Model):
    """An airport or landing strip; the nearest other one is computed by the import."""

    icao = models.CharField("ICAO code", max_length=4, primary_key=True)
    iata = models.CharField("IATA code", max_length=3, blank=True)
    name = models.CharField(max_length=120)
    city = models.CharField(max_length=80, blank=True)
    region = models.CharField(max_length=80, blank=True)
    country = models.ForeignKey(Country, on_delete=models.CASCADE, related_name="airports")
    latitude = models.FloatField()
    longitude = models.FloatField()
    elevation_m = models.FloatField("elevation, m")
    timezone = models.CharField(max_length=50)
    nearest = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="+")
    nearest_km = models.FloatField("distance to the nearest airport, km", null=True, db_index=True)

    class Meta:
        ordering = ["icao"]

    def __str__(self) -> str:
        return f"{self.icao} {self.name}"


class JournalEntry(models.Model):
    """One line that a hook wrote; it outlives its job, so it holds the job's id and no key to it."""

    time = models.DateTimeField(auto_now_add=True)
    job_id = models.UUIDField("job", default=uuid.uuid4, db_index=True)
    job_name = models.CharField("pipeline", max_length=100)
    event = models.CharField(max_length=20)
    text = models.TextField(blank=True)

    class Meta:
        ordering = ["-time", "-id"]
        verbose_name_plural = "journal entries"

    def __str__(self) -> str:
        return f"{self.job_name} {self.event}: {self.text}"
