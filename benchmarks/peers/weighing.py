"""A task that weighs its worker."""

from typing import Any

import psutil
from harness import report

EVERY = 20_000

_jobs = 0


def weigh(job: Any) -> None:
    """Report this process's resident memory, in bytes, after every 20,000 jobs."""
    global _jobs
    _jobs += 1
    if _jobs % EVERY == 0:
        report(jobs=_jobs, memory=psutil.Process().memory_info().rss)
