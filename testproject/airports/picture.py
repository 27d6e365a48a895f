"""Maps of airports as pictures: a dot for each, the lonelier the larger and warmer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import asin, cos, log, radians, sin, sqrt
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

BACKGROUND = (9, 13, 28)
SEA = (14, 20, 40)
GRID = (34, 44, 74)
INK = (232, 236, 248)
FAINT = (138, 150, 184)

# Colours from crowded to lonely, evenly spaced on a logarithmic scale of kilometres to the nearest airport.
NEAREST_KM, LONELIEST_KM = 3.0, 1000.0
RAMP = [
    (46, 108, 190),
    (38, 168, 196),
    (120, 210, 160),
    (250, 216, 96),
    (250, 132, 66),
    (240, 66, 110),
]

FINER = 2  # everything is drawn so many times larger and then shrunk: smooth edges

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Dot:
    """One airport on a map."""

    latitude: float
    longitude: float
    nearest_km: float
    label: str = ""


def draw_world(dots: Sequence[Dot], path: Path, title: str, subtitle: str) -> None:
    """Draw the whole earth (Equal Earth projection) to a PNG file; dots with a label get it written beside them."""
    width, margin, top = 1800, 40, 118
    x_end, _ = equal_earth(0, 180)
    _, y_end = equal_earth(90, 0)
    scale = (width - 2 * margin) / (2 * x_end)
    height = round(top + 2 * y_end * scale + 90)

    def place(latitude: float, longitude: float) -> Point:
        x, y = equal_earth(latitude, longitude)
        return margin + (x_end + x) * scale, top + (y_end - y) * scale

    canvas = Canvas(width, height)
    edge = [place(lat, 180) for lat in range(-90, 91)]
    edge += [place(lat, -180) for lat in range(90, -91, -1)]
    canvas.area(edge, SEA)
    for lon in range(-180, 181, 30):
        canvas.line([place(lat, lon) for lat in range(-90, 91, 2)], GRID)
    for lat in range(-60, 61, 30):
        canvas.line([place(lat, lon) for lon in range(-180, 181, 4)], GRID)
    canvas.dots(dots, place, radius=0.75)
    canvas.text((margin, 34), title, 38, INK)
    canvas.text((margin, 82), subtitle, 20, FAINT)
    _legend(canvas, (margin, height - 58), 420)
    canvas.save(path)


def draw_country(dots: Sequence[Dot], path: Path) -> None:
    """Draw the dots of one country to a PNG file that fits them; it may lie across the date line."""
    width, margin, least_degrees = 1200, 50, 1.0
    middle = _middle_longitude([dot.longitude for dot in dots])
    latitudes = [dot.latitude for dot in dots]
    low, high = min(latitudes), max(latitudes)
    squeeze = cos(radians((low + high) / 2))

    def flat(longitude: float) -> float:
        return ((longitude - middle + 180) % 360 - 180) * squeeze

    sides = [flat(dot.longitude) for dot in dots]
    span_x = max(max(sides) - min(sides), least_degrees)
    span_y = max(high - low, least_degrees)
    centre_x, centre_y = (max(sides) + min(sides)) / 2, (high + low) / 2
    scale = min((width - 2 * margin) / span_x, (900 - 2 * margin) / span_y)
    height = round(span_y * scale + 2 * margin + 60)

    def place(latitude: float, longitude: float) -> Point:
        x = width / 2 + (flat(longitude) - centre_x) * scale
        return x, (height - 60) / 2 + (centre_y - latitude) * scale

    canvas = Canvas(width, height)
    canvas.dots(dots, place, radius=1.0 if len(dots) > 2000 else 1.8)
    _legend(canvas, (margin, height - 58), 300)
    canvas.save(path)


def equal_earth(latitude: float, longitude: float) -> Point:
    """Degrees to the plane of the Equal Earth projection (Šavrič, Patterson and Jenny, 2018); y points north."""
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    theta = asin(sqrt(3) / 2 * sin(radians(latitude)))
    t2 = theta * theta
    t6 = t2**3
    slope = 9 * a4 * t6 * t2 + 7 * a3 * t6 + 3 * a2 * t2 + a1
    x = 2 * sqrt(3) * radians(longitude) * cos(theta) / (3 * slope)
    return x, theta * (a1 + a2 * t2 + t6 * (a3 + a4 * t2))


def loneliness(km: float) -> float:
    """From 0, crowded, to 1, lonely."""
    if km <= NEAREST_KM:
        return 0.0
    return min(1.0, log(km / NEAREST_KM) / log(LONELIEST_KM / NEAREST_KM))


def colour(share: float) -> Colour:
    """The ramp's colour at ``share`` of its length."""
    place = share * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    between = place - index
    low, high = RAMP[index], RAMP[index + 1]
    red, green, blue = (round(a + (b - a) * between) for a, b in zip(low, high, strict=True))
    return red, green, blue


class Canvas:
    """A picture in the making; lengths are in pixels of the finished one."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * FINER, height * FINER), BACKGROUND)
        self.pen = ImageDraw.Draw(self.image)

    def area(self, points: Iterable[Point], fill: Colour) -> None:
        self.pen.polygon(list(_finer(points)), fill=fill)

    def line(self, points: Iterable[Point], fill: Colour) -> None:
        self.pen.line(list(_finer(points)), fill=fill, width=FINER)

    def text(self, at: Point, text: str, size: int, fill: Colour, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * FINER)
        self.pen.text((at[0] * FINER, at[1] * FINER), text, fill=fill, font=font, anchor=anchor)

    def dots(
        self, dots: Sequence[Dot], place: Callable[[float, float], Point], radius: float
    ) -> None:
        """Dots on a layer of their own, which is added to the picture sharp and, as a glow, blurred."""
        layer = Image.new("RGB", self.image.size)
        pen = ImageDraw.Draw(layer)
        for dot in sorted(dots, key=lambda dot: dot.nearest_km):
            share = loneliness(dot.nearest_km)
            x, y = place(dot.latitude, dot.longitude)
            size = radius * (1 + 2.6 * share**2)
            box = [(c + s * size) * FINER for s in (-1, 1) for c in (x, y)]
            pen.ellipse(box, fill=colour(share))
        glow = layer.reduce(4).filter(ImageFilter.GaussianBlur(1.5 * FINER))
        glow = glow.point(lambda value: value * 0.7)
        self.image = ImageChops.add(self.image, glow.resize(self.image.size))
        self.image = ImageChops.lighter(self.image, layer)
        self.pen = ImageDraw.Draw(self.image)
        for dot in dots:
            if dot.label:
                self._label(place(dot.latitude, dot.longitude), dot.label)

    def _label(self, at: Point, text: str) -> None:
        """A name to the right of a dot, or to the left if it would run out of the picture."""
        font = ImageFont.load_default(15 * FINER)
        x, y = (c * FINER for c in at)
        gap, outline = 8 * FINER, 2 * FINER
        fits = x + gap + font.getlength(text) < self.image.width
        self.pen.text(
            (x + gap if fits else x - gap, y),
            text,
            fill=INK,
            font=font,
            anchor="lm" if fits else "rm",
            stroke_width=outline,
            stroke_fill=SEA,
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.reduce(FINER).save(path, optimize=True)


def _legend(canvas: Canvas, at: Point, length: int) -> None:
    x, y = at
    for step in range(length):
        share = step / length
        canvas.area(
            [(x + step, y), (x + step + 2, y), (x + step + 2, y + 8), (x + step, y + 8)],
            colour(share),
        )
    for km in (3, 10, 30, 100, 300, 1000):
        canvas.text((x + loneliness(km) * length, y + 22), f"{km:,}", 14, FAINT, anchor="mm")
    canvas.text((x + length + 24, y + 4), "km to the nearest other airport", 15, FAINT)


def _middle_longitude(longitudes: Sequence[float]) -> float:
    """The middle of the shortest arc that holds all longitudes: the one opposite the widest gap."""
    ring = sorted(longitudes)
    gaps = [
        (after - before, after)
        for before, after in zip(ring, [*ring[1:], ring[0] + 360], strict=True)
    ]
    widest, first = max(gaps)
    return first + (360 - widest) / 2


def _finer(points: Iterable[Point]) -> Iterator[Point]:
    return ((x * FINER, y * FINER) for x, y in points)
