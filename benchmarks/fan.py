"""What it costs that jobs concern each other: a map, a diamond of dependencies, and jobs that wait beside."""

from collections.abc import Iterator
from functools import partial

from benchmarks.lab import Lab
from benchmarks.queues import OURS
from benchmarks.results import Figure

WAITING = 10_000


def rate(lab: Lab, name: str, jobs: int, *fill: object) -> float:
    """Jobs per second of a worker that drains what `fill` makes: `jobs` jobs of a name, in the end."""
    verb, *arguments = fill
    with lab.stand(OURS) as stand:
        stand.do(str(verb), *arguments)
        return stand.drain(name, jobs)


def measure(lab: Lab) -> Iterator[Figure]:
    jobs, waiting = lab.jobs // 2, min(WAITING, lab.jobs)
    plain, mapped, diamond, beside = lab.rounds_of(
        partial(rate, lab, "noop", jobs, "fill", "noop", jobs),
        # From the start of the step before to the join: its members are made within that time.
        partial(rate, lab, "map", jobs + 1, "fill_map", jobs),
        partial(rate, lab, "noop", jobs, "fill_diamond", jobs),
        partial(rate, lab, "noop", jobs, "fill_beside", jobs, waiting),
    )
    against = f"{jobs:,} plain jobs"
    yield Figure("fan", f"map of {jobs:,} items", "/s", mapped, against, plain, at_least=0.5)
    yield Figure("fan", f"diamond of {jobs:,} jobs", "/s", diamond, against, plain)
    what = f"beside {waiting:,} waiting jobs"
    yield Figure("fan", what, "/s", beside, against, plain, at_least=0.9)
