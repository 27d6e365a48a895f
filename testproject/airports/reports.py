"""The pages and pictures that jobs write: what stands in them, and where."""

from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.db.models import Count, QuerySet
from django.template.loader import render_to_string
from django.utils import timezone

from .models import Airport, Country
from .picture import Dot, draw_world
from .picture import draw_country as draw_country_map

PUBLISHED: Path = settings.VAR / "reports"  # what the site shows
LARGE = 50  # airports; countries with so many get a page of their own with every import
ROWS = 12  # rows of each list in a report


def large_countries() -> QuerySet[Country]:
    """The countries that get a page with every import, the largest first."""
    return Country.objects.filter(airports_count__gte=LARGE).order_by("-airports_count")


def write_world(folder: Path, source: str, rejected: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Write the report on all airports into a folder; returns where the page and its picture are."""
    airports = Airport.objects.select_related("country", "nearest")
    countries = list(Country.objects.filter(airports_count__gt=0).order_by("-airports_count"))
    total = sum(country.airports_count for country in countries)
    loneliest = list(airports.order_by("-nearest_km")[:ROWS])
    page, picture = _path(folder, "airports.html"), _path(folder, "airports.png")
    draw_world(
        _dots(Airport.objects.all(), labelled={airport.icao for airport in loneliest[:7]}),
        picture,
        f"{total:,} airports of the world",
        f"In {len(countries)} countries and territories. "
        "The lonelier an airport, the larger and warmer its dot.",
    )
    facts = [
        (f"{total:,}", "airports"),
        (f"{len(countries)}", "countries and territories"),
        (f"{Airport.objects.exclude(iata='').count():,}", "with an IATA code"),
        (f"{_median_nearest_km():.1f} km", "median way to the nearest other airport"),
        (f"{loneliest[0].nearest_km:,.0f} km", f"at the loneliest: {loneliest[0].name}"),
    ]
    _render(
        page,
        "airports/report.html",
        source=source,
        facts=facts,
        picture=picture.name,
        countries=_country_rows(countries[: ROWS + 3]),
        loneliest=loneliest,
        closest=_closest_pairs(),
        highest=airports.order_by("-elevation_m")[: ROWS // 2],
        lowest=airports.order_by("elevation_m")[: ROWS // 2],
        zones=Airport.objects.values("timezone")
        .annotate(airports=Count("pk"))
        .order_by("-airports")[:ROWS],
        rejected=rejected,
    )
    return page, picture


def draw_country(folder: Path, code: str) -> Path:
    """Draw the map of one country's airports; returns where it is."""
    path = _path(folder, f"country-{code.lower()}.png")
    draw_country_map(_dots(Airport.objects.filter(country=code)), path)
    return path


def write_country(folder: Path, code: str) -> Path:
    """Write the page about one country beside its map; returns where it is."""
    country = Country.objects.get(code=code)
    airports = country.airports.select_related("nearest")
    page = _path(folder, _page(code))
    _render(
        page,
        "airports/country.html",
        country=country,
        facts=[
            (f"{country.airports_count:,}", "airports"),
            (f"{country.mean_nearest_km:,.1f} km", "mean way to the nearest other airport"),
            (f"{country.mean_elevation_m:,.0f} m", "mean elevation"),
            (f"{country.highest_m:,.0f} m", "highest"),
        ],
        picture=f"country-{code.lower()}.png",
        loneliest=airports.order_by("-nearest_km")[:ROWS],
        highest=airports.order_by("-elevation_m")[:ROWS],
    )
    return page


def _dots(airports: QuerySet[Airport], labelled: Collection[str] = ()) -> list[Dot]:
    rows = airports.values_list("icao", "name", "latitude", "longitude", "nearest_km")
    return [
        Dot(latitude, longitude, nearest_km, name if icao in labelled else "")
        for icao, name, latitude, longitude, nearest_km in rows
        if nearest_km is not None  # a new airport, which the running import has not come to yet
    ]


def _closest_pairs() -> list[Airport]:
    """One airport of each of the closest pairs; where both are each other's nearest, the table has the pair twice."""
    airports = Airport.objects.select_related("country", "nearest").order_by("nearest_km")
    pairs = {
        frozenset((airport.icao, airport.nearest_id)): airport for airport in airports[: 2 * ROWS]
    }
    return list(pairs.values())[:ROWS]


def _median_nearest_km() -> float:
    return median(
        km for km in Airport.objects.values_list("nearest_km", flat=True) if km is not None
    )


def _country_rows(countries: list[Country]) -> list[tuple[Country, float, str]]:
    """Each country, its airports in per cent of the first one's, and its page if it gets one."""
    return [
        (
            country,
            100 * country.airports_count / countries[0].airports_count,
            _page(country.code) if country.airports_count >= LARGE else "",
        )
        for country in countries
    ]


def _page(code: str) -> str:
    return f"country-{code.lower()}.html"


def _path(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _render(page: Path, template: str, **context: Any) -> None:
    html = render_to_string(template, {"written": timezone.now(), **context})
    page.write_text(html, encoding="utf-8")
