"""The tasks: what `JOBS` in the settings names. A task takes the job; what it leaves in the workspace, the next reads.

The workspace carries small facts: counts, names of files. The rows themselves go through a file or the database. A task
may run twice, if its worker dies at the wrong moment, and then does the same again.
"""

import json
from collections import Counter
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

from django.conf import settings
from django.db.models import Avg, Count, Max

from django_dbq.models import Job

from . import reports, source
from .models import Airport, Country, JournalEntry
from .neighbours import nearest

# Rows per statement and transaction: other writers get their turn in between, which counts on SQLite.
CHUNK = 2000

AIRPORT_FIELDS = [
    "iata",
    "name",
    "city",
    "region",
    "country",
    "latitude",
    "longitude",
    "elevation_m",
    "timezone",
]


# --- import_airports ---------------------------------------------------------------------------


def read(job: Job) -> None:
    """Fetch the source and keep it in a file, so that the next tasks all see the same rows."""
    rows = source.rows()
    job.workspace.update(
        folder=f"imports/{job.id}", source=f"airportsdata {source.version()}", rows=len(rows)
    )
    _save(_folder(job) / "rows.json", rows)


def validate(job: Job) -> None:
    """Part the usable rows from the others; count and name what is wrong with those."""
    rows = _load(_folder(job) / "rows.json")
    problems = [source.problem(row) for row in rows]
    usable = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    rejected = [
        {"icao": row["icao"], "name": row["name"], "country": row["country"], "problem": problem}
        for row, problem in zip(rows, problems, strict=True)
        if problem is not None
    ]
    _save(_folder(job) / "usable.json", usable)
    _save(_folder(job) / "rejected.json", rejected)
    job.workspace.update(
        usable=len(usable),
        rejected=len(rejected),
        problems=Counter(row["problem"] for row in rejected),
    )


def upsert(job: Job) -> None:
    """Bring the database up to the source: add new airports, update known ones, remove those that it has no more."""
    rows = _load(_folder(job) / "usable.json")
    names = source.country_names()
    before = set(Airport.objects.values_list("icao", flat=True))
    after = {row["icao"] for row in rows}
    Country.objects.bulk_create(
        [Country(code=code, name=names[code]) for code in sorted({row["country"] for row in rows})],
        update_conflicts=True,
        unique_fields=["code"],
        update_fields=["name"],
    )
    for start in range(0, len(rows), CHUNK):
        Airport.objects.bulk_create(
            [_airport(row) for row in rows[start : start + CHUNK]],
            update_conflicts=True,
            unique_fields=["icao"],
            update_fields=AIRPORT_FIELDS,
        )
    gone = sorted(before - after)
    for start in range(0, len(gone), CHUNK):
        Airport.objects.filter(icao__in=gone[start : start + CHUNK]).delete()
    job.workspace.update(added=len(after - before), removed=len(gone))


def compute(job: Job) -> None:
    """Find each airport's nearest neighbour, then the figures of each country."""
    airports = list(Airport.objects.all())
    found = nearest([(airport.latitude, airport.longitude) for airport in airports])
    for airport, (other, km) in zip(airports, found, strict=True):
        airport.nearest_id, airport.nearest_km = airports[other].icao, km
    for start in range(0, len(airports), CHUNK):
        Airport.objects.bulk_create(
            airports[start : start + CHUNK],
            update_conflicts=True,
            unique_fields=["icao"],
            update_fields=["nearest", "nearest_km"],
        )
    countries = Country.objects.annotate(
        counted=Count("airports"),
        elevation=Avg("airports__elevation_m"),
        highest=Max("airports__elevation_m"),
        nearest=Avg("airports__nearest_km"),
    )
    for country in countries:
        country.airports_count = country.counted
        country.mean_elevation_m = country.elevation
        country.highest_m = country.highest
        country.mean_nearest_km = country.nearest
    Country.objects.bulk_update(
        countries, ["airports_count", "mean_elevation_m", "highest_m", "mean_nearest_km"]
    )
    job.workspace["countries"] = sum(country.counted > 0 for country in countries)


def report(job: Job) -> None:
    """One branch: draft the report on the world and its picture."""
    rejected = _load(_folder(job) / "rejected.json")
    page, _ = reports.write_world(_drafts(job), job.workspace["source"], rejected)
    job.workspace["draft"] = _name(page)


def choose_countries(job: Job) -> None:
    """The other branch: name the countries that get a page, for the map that follows."""
    job.workspace["codes"] = [country.code for country in reports.large_countries()]


def country_page(job: Job) -> str:
    """The map's task, run for each code: draft the page of that country and its map; the map collects the names."""
    reports.draw_country(_drafts(job), job.workspace["item"])
    return reports.write_country(_drafts(job), job.workspace["item"]).name


def publish(job: Job) -> None:
    """Once it is approved: put the drafts where the site shows them."""
    copytree(_drafts(job), reports.PUBLISHED, dirs_exist_ok=True)
    said = job.workspace["approval"] or {}
    job.workspace.update(
        approved_by=said.get("by", "somebody"),
        report=_name(reports.PUBLISHED / "airports.html"),
        picture=_name(reports.PUBLISHED / "airports.png"),
    )
    job.workspace.pop("draft")


def tidy(job: Job) -> None:
    """Remove the files of this import: a step of its own, as `publish` needs them when it is run once more."""
    rmtree(_folder(job), ignore_errors=True)


# --- country_report ----------------------------------------------------------------------------


def gather(job: Job) -> None:
    """Look the country up; a code that no country has makes the job fail here."""
    code = job.workspace["country"]
    country = Country.objects.filter(code=code, airports_count__gt=0).first()
    if country is None:
        raise LookupError(f"No country with airports has the code {code!r}.")
    job.workspace.update(name=country.name, airports=country.airports_count)


def draw(job: Job) -> None:
    """Draw the country's map."""
    picture = reports.draw_country(reports.PUBLISHED, job.workspace["country"])
    job.workspace["picture"] = _name(picture)


def write(job: Job) -> None:
    """Write the country's page."""
    page = reports.write_country(reports.PUBLISHED, job.workspace["country"])
    job.workspace["report"] = _name(page)


# --- digest ------------------------------------------------------------------------------------


def digest(job: Job) -> None:
    """Count the journal's lines by event."""
    events = JournalEntry.objects.order_by().values_list("event").annotate(Count("pk"))
    job.workspace["journal"] = dict(sorted(events))


# --- What the tasks share ----------------------------------------------------------------------


def _airport(row: source.Row) -> Airport:
    return Airport(
        icao=row["icao"],
        iata=row["iata"],
        name=row["name"],
        city=row["city"],
        region=row["subd"],
        country_id=row["country"],
        latitude=row["lat"],
        longitude=row["lon"],
        elevation_m=round(row["elevation"] * source.METRES_PER_FOOT, 1),
        timezone=row["tz"],
    )


def _folder(job: Job) -> Path:
    """Where an import keeps its files between tasks; with workers on several machines, a place that all of them see.

    Its name is in the workspace, because branches and members of the map are jobs with ids of their own.
    """
    folder: Path = settings.VAR / job.workspace["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drafts(job: Job) -> Path:
    return _folder(job) / "drafts"


def _save(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _name(path: Path) -> str:
    """A file's name as workspaces carry it: below `var/`."""
    return path.relative_to(settings.VAR).as_posix()
