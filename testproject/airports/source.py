"""The source: some 28,000 airports from the `airportsdata` package, and what makes one of its rows usable."""

import re
from functools import cache
from importlib.resources import files
from typing import Any
from zoneinfo import available_timezones

import airportsdata

METRES_PER_FOOT = 0.3048

Row = dict[str, Any]


def rows() -> list[Row]:
    """All rows of the source, as they stand there."""
    return [dict(row) for row in airportsdata.load("ICAO").values()]


def version() -> str:
    """The release of the data."""
    return airportsdata.__version__


@cache
def country_names() -> dict[str, str]:
    """Names of countries by their two letters, from the time zone database, which Kosovo's code is not part of."""
    table = (files("tzdata") / "zoneinfo" / "iso3166.tab").read_text(encoding="utf-8")
    named = (line.split("\t") for line in table.splitlines() if line and not line.startswith("#"))
    return {"XK": "Kosovo", **dict(named)}


@cache
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())


def problem(row: Row) -> str | None:
    """What makes ``row`` unusable, or None."""
    if not re.fullmatch(r"[A-Z0-9]{4}", row["icao"]):
        return "a placeholder instead of an ICAO code"
    if not row["name"]:
        return "no name"
    if row["country"] not in country_names():
        return "an unknown country"
    if not (-90 <= row["lat"] <= 90 and -180 <= row["lon"] <= 180) or row["lat"] == row["lon"] == 0:
        return "impossible coordinates"
    if (
        not -1500 <= row["elevation"] <= 20_000
    ):  # feet; the Dead Sea lies at -1400, Everest at 29,032
        return "an impossible elevation"
    if row["tz"] not in _timezones():
        return "an unknown time zone"
    return None
