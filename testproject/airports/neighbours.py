"""Who is nearest to whom on a sphere: exact, for tens of thousands of points, in about a second of plain Python."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from math import asin, cos, floor, inf, radians, sin, sqrt

EARTH_RADIUS_KM = 6371.0088
FIRST_CELL = 0.004  # width of the first grid's cubes, in earth radii: about 25 km

Vector = tuple[float, float, float]
Cube = tuple[int, int, int]


def nearest(places: Sequence[tuple[float, float]]) -> list[tuple[int, float]]:
    """For each place the index of the nearest other one and the great-circle distance to it, in kilometres.

    The places are put on a unit sphere and into a grid of cubes. Whatever lies within one cube's width of a place is in
    its cube or in one of the 26 round it, so a neighbour found that close is the nearest. For places that have none,
    the cubes double in width, and so on. Most places are settled at once; those that need wide cubes are few.

    Args:
        places: latitude and longitude, in degrees; at least two.
    """
    if len(places) < 2:
        raise ValueError("a nearest neighbour takes at least two places")
    points = [_on_unit_sphere(*place) for place in places]
    found = [(-1, inf)] * len(points)
    unsettled: Iterable[int] = range(len(points))
    width = FIRST_CELL
    while unsettled:
        grid: dict[Cube, list[int]] = defaultdict(list)
        for index, point in enumerate(points):
            grid[_cube(point, width)].append(index)
        lonely = []
        for index in unsettled:
            other, chord = _nearest_around(index, points, grid, width)
            if chord <= width:
                found[index] = other, 2 * EARTH_RADIUS_KM * asin(min(1.0, chord / 2))
            else:
                lonely.append(index)
        unsettled, width = lonely, width * 2
    return found


def _nearest_around(
    index: int, points: list[Vector], grid: dict[Cube, list[int]], width: float
) -> tuple[int, float]:
    """The nearest other point in the 27 cubes round a point, and the length of the chord between them."""
    x, y, z = points[index]
    i, j, k = _cube(points[index], width)
    best, best_squared = -1, inf
    for di, dj, dk in product((-1, 0, 1), repeat=3):
        for other in grid.get((i + di, j + dj, k + dk), ()):
            ox, oy, oz = points[other]
            squared = (x - ox) ** 2 + (y - oy) ** 2 + (z - oz) ** 2
            if squared < best_squared and other != index:
                best, best_squared = other, squared
    return best, sqrt(best_squared)


def _cube(point: Vector, width: float) -> Cube:
    x, y, z = point
    return floor(x / width), floor(y / width), floor(z / width)


def _on_unit_sphere(latitude: float, longitude: float) -> Vector:
    phi, lam = radians(latitude), radians(longitude)
    return cos(phi) * cos(lam), cos(phi) * sin(lam), sin(phi)
