"""Whether a worker's memory stays flat while it runs many jobs."""

from collections.abc import Iterator

from benchmarks.lab import Lab
from benchmarks.queues import OURS
from benchmarks.results import Figure

MIB = 2**20
EVERY = 20_000  # the task reports its process's memory so often


def measure(lab: Lab) -> Iterator[Figure]:
    # 200,000 jobs at the usual --jobs; at least two reports in a small round.
    jobs = max(2, lab.jobs * 10 // EVERY) * EVERY
    with lab.stand(OURS) as stand:
        stand.do("fill", "weigh", EVERY, jobs // EVERY)
        weights = [each["memory"] / MIB for each in stand.do("drain")]
    what = f"RSS after {jobs:,} jobs"
    yield Figure("memory", what, "MiB", weights[-1:], "after 20,000", weights[:1], at_most=1.05)
