"""How many jobs a second one worker does: no-op jobs, and pipelines of three steps."""

from collections.abc import Iterator
from functools import partial

from benchmarks.lab import Lab
from benchmarks.queues import DBQ33, OURS, PGQUEUER, PROCRASTINATE, Queue
from benchmarks.results import Figure

CONCURRENCIES = (1, 10, 50, 100)


def drained(lab: Lab, queue: Queue, name: str, jobs: int, *arguments: object) -> float:
    """Jobs per second of a worker that drains `jobs` jobs from a table that holds nothing else."""
    with lab.stand(queue) as stand:
        stand.do("fill", name, jobs)
        return stand.drain(name, jobs, *arguments)


def noop(lab: Lab) -> Iterator[Figure]:
    ours = partial(drained, lab, OURS, "noop", lab.jobs)
    if not lab.peers:
        yield Figure("drain", "no-op", "/s", lab.rounds_of(ours)[0])
        return
    few = DBQ33.part(lab.jobs)
    procrastinate = partial(drained, lab, PROCRASTINATE, "noop", PROCRASTINATE.part(lab.jobs))
    best = max(CONCURRENCIES, key=procrastinate)
    rates, *others = lab.rounds_of(
        ours,
        partial(drained, lab, DBQ33, "noop", few, few),
        partial(procrastinate, best),
        partial(drained, lab, PGQUEUER, "noop", lab.jobs),
    )
    names = DBQ33.name, f"{PROCRASTINATE.name}, concurrency {best}", PGQUEUER.name
    for name, theirs, wanted in zip(names, others, (16, 6, 0.5), strict=True):
        yield Figure("drain", "no-op", "/s", rates, name, theirs, at_least=wanted)


def pipelines(lab: Lab) -> Iterator[Figure]:
    many = lab.jobs // 2
    few = DBQ33.part(many)
    sides = [partial(drained, lab, OURS, "three_steps", many)]
    if lab.peers:
        sides.append(partial(drained, lab, DBQ33, "three_steps", few, 3 * few))
    ours, *others = lab.rounds_of(*sides)
    theirs = others[0] if others else []
    yield Figure("pipelines", "three steps", "/s", ours, DBQ33.name, theirs, at_least=16)
