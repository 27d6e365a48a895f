"""How many jobs a second one call enqueues: `bulk_create` beside the others' batches."""

from collections.abc import Iterator
from functools import partial
from statistics import median

from benchmarks.lab import Lab
from benchmarks.queues import DBQ33, OURS, PGQUEUER, PROCRASTINATE, Queue
from benchmarks.results import Figure

BATCH = 10_000
TIMES = 5


def enqueued(lab: Lab, queue: Queue, batch: int) -> float:
    """Jobs per second of the median of some batches, one after the other in one process."""
    with lab.stand(queue) as stand:
        return batch / median(each["seconds"] for each in stand.do("fill", "noop", batch, TIMES))


def measure(lab: Lab) -> Iterator[Figure]:
    batch = min(BATCH, lab.jobs)
    what = f"batches of {batch:,}"
    queues = [OURS, PROCRASTINATE, PGQUEUER, DBQ33] if lab.peers else [OURS]
    ours, *others = lab.rounds_of(*(partial(enqueued, lab, queue, batch) for queue in queues))
    if not others:
        yield Figure("enqueue", what, "/s", ours)
    for queue, theirs in zip(queues[1:], others, strict=True):
        wanted = 1.0 if queue is PROCRASTINATE else None
        yield Figure("enqueue", what, "/s", ours, queue.name, theirs, at_least=wanted)
