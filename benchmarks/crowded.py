"""Whether the drain keeps its rate: in a full table, and behind another session's snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.lab import Lab
from benchmarks.queues import OURS
from benchmarks.results import Figure
from benchmarks.server import Server

FINISHED, FUTURE = 1_000_000, 200_000


def rate(lab: Lab, template: str = "", snapshot: bool = False) -> float:
    with lab.stand(OURS, template) as stand:
        stand.do("fill", "noop", lab.jobs)
        if not snapshot:
            return stand.drain("noop", lab.jobs)
        with held_snapshot(lab.server, stand.database):
            return stand.drain("noop", lab.jobs)


@contextmanager
def held_snapshot(server: Server, database: str) -> Iterator[None]:
    """Another session that still sees the table as it was: nothing dead can be cleaned away."""
    with server.connect(database) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM django_dbq_job")
        yield


def full(lab: Lab) -> tuple[str, str]:
    """The name of a template with finished and future jobs, vacuumed; and what is in it."""
    # All of them from 20,000 jobs on, proportionally fewer in a small round.
    scale = min(1.0, lab.jobs / 20_000)
    finished, future = int(FINISHED * scale), int(FUTURE * scale)
    template = "ours_full"
    lab.server.copy(lab.installed(OURS), template)
    with lab.on(OURS, template) as stand:
        stand.do("crowd", finished, future)
    lab.server.run("VACUUM ANALYZE", database=template)
    return template, f"{finished:,} finished, {future:,} future"


def measure(lab: Lab) -> Iterator[Figure]:
    template, what = full(lab)
    plain = partial(rate, lab)
    crowded, empty = lab.rounds_of(partial(rate, lab, template), plain)
    yield Figure("crowded", what, "/s", crowded, "empty table", empty, at_least=0.9)
    behind, undisturbed = lab.rounds_of(partial(rate, lab, snapshot=True), plain)
    what = f"held snapshot, {lab.jobs:,} jobs"
    yield Figure("crowded", what, "/s", behind, "undisturbed", undisturbed, at_least=0.8)
