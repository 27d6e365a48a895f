"""The site's admin: airports, countries, the journal, and for now the jobs."""

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from django_dbq.models import Attempt, Job

from .models import Airport, Country, JournalEntry

admin.site.site_header = "django-dbq test project"


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Jobs write these tables; a person looks."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Country)
class CountryAdmin(ReadOnlyAdmin):
    list_display = [
        "name",
        "code",
        "airports_count",
        "mean_nearest_km",
        "mean_elevation_m",
        "highest_m",
    ]
    search_fields = ["name", "code"]
    ordering = ["-airports_count"]


@admin.register(Airport)
class AirportAdmin(ReadOnlyAdmin):
    list_display = ["icao", "iata", "name", "country", "elevation_m", "nearest_km", "nearest"]
    list_select_related = ["country", "nearest"]
    search_fields = ["icao", "iata", "name", "city"]
    ordering = ["-nearest_km"]


@admin.register(JournalEntry)
class JournalEntryAdmin(ReadOnlyAdmin):
    list_display = ["time", "job_name", "event", "text"]
    list_filter = ["job_name", "event"]


# The package's own admin will replace the rest of this file.


class AttemptInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Attempt
    fields = ("number", "task", "outcome", "started", "finished", "worker", "error")
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = ["name", "state", "queue_name", "priority", "created", "run_after", "finished"]
    list_filter = ["name", "state", "queue_name"]
    ordering = ["-created"]
    inlines = [AttemptInline]


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    list_display = ["job", "number", "task", "outcome", "started", "duration", "worker"]
    list_select_related = ["job"]
    list_filter = ["outcome"]
    ordering = ["-started"]
