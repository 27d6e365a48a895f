"""How long a job waits while a worker is idle: from the call that creates it to its task's start."""

from collections.abc import Iterator
from functools import partial
from statistics import median, quantiles

from benchmarks.lab import Lab
from benchmarks.queues import OURS, PGQUEUER, PROCRASTINATE, Queue
from benchmarks.results import Figure

WARM_UP = 20


def waited(lab: Lab, queue: Queue, count: int) -> list[float]:
    """Milliseconds that each of `count` jobs, sent 10 to 30 ms apart, waited for an idle worker."""
    with lab.stand(queue) as stand, stand.serving():
        stand.latencies(WARM_UP)
        return [1000 * each for each in stand.latencies(count)]


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def measure(lab: Lab) -> Iterator[Figure]:
    queues = [OURS, PROCRASTINATE, PGQUEUER] if lab.peers else [OURS]
    count = max(50, min(300, lab.jobs // 50))
    waits = lab.rounds_of(*(partial(waited, lab, queue, count) for queue in queues))
    for what, of, wanted in (("p50", median, 1.0), ("p99", p99, None)):
        ours, *others = ([of(each) for each in rounds] for rounds in waits)
        if not others:
            yield Figure("latency", what, "ms", ours)
        for queue, theirs in zip(queues[1:], others, strict=True):
            judged = wanted if queue is PROCRASTINATE else None
            yield Figure("latency", what, "ms", ours, queue.name, theirs, at_most=judged)
