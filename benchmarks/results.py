"""Figures and how they are shown."""

from dataclasses import asdict, dataclass, field
from statistics import median


@dataclass
class Figure:
    """Ours beside another value, round by round; `wanted` judges the ratio of ours to theirs."""

    measure: str
    what: str
    unit: str
    ours: list[float]
    against: str = ""
    theirs: list[float] = field(default_factory=list)
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios: what disturbs a round disturbs both of its sides.

        None without another value, or with one that is 0.
        """
        if not self.theirs or not all(self.theirs):
            return None
        return median(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return ""
        if self.at_least is not None:
            return "ok" if self.ratio >= self.at_least else "MISSED"
        if self.at_most is not None:
            return "ok" if self.ratio <= self.at_most else "MISSED"
        return ""

    def __str__(self) -> str:
        """A line of the table under `HEADINGS`."""
        cells = [self.measure, self.what, f"{shown(median(self.ours))} {self.unit}"]
        if self.theirs:
            wanted = f"≥ {self.at_least:g}" if self.at_least is not None else ""
            wanted = f"≤ {self.at_most:g}" if self.at_most is not None else wanted
            theirs = f"{shown(median(self.theirs))} {self.unit}"
            cells += [
                self.against,
                theirs,
                "" if self.ratio is None else shown(self.ratio),
                wanted,
                self.verdict,
            ]
        return line(cells)

    def data(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(cells: list[str]) -> str:
    """The cells in columns; the figures, not the words, are aligned to the right."""
    columns = (f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=False))
    return "  ".join(columns).rstrip()


WIDTHS = ("<9", "<36", ">12", "<36", ">12", ">6", ">6", "<6")
HEADINGS = line(["measure", "what", "ours", "against", "theirs", "ratio", "wanted"])
