"""Helpers for the tests of projects that declare jobs."""

from django.db import router

from .models import Job
from .storage import Queues
from .workers.worker import Worker


def drain(*queues: str) -> int:
    """Run everything that is ready now, step by step and in order, in this thread; returns how many tasks were run.

    Works within ``TestCase``'s transaction. Hooks run as in a worker; a task that raises fails its job, as there.

    Args:
        queues: the queues to drain; all without any.
    """
    served = Queues(queues) if queues else Queues((), exclude=True)
    worker = Worker(served, until_done=True, using=router.db_for_write(Job))
    worker.run()
    return worker.done
