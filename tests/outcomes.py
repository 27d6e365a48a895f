"""Outcomes of claimed jobs as the runner would report them, for tests that write them without running anything."""

import datetime
from typing import Any

from django_dbq import conf
from django_dbq.models import Job
from django_dbq.outcomes import Tries, decide, decide_failure
from django_dbq.runner import standing
from django_dbq.storage import Execution

STARTED = datetime.datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
ENDED = STARTED + datetime.timedelta(seconds=1.5)


def outcome(job: Job, error: BaseException | None = None, **fields: Any) -> Execution:
    """What an execution of the step that ``job`` stands at came to: success, or ``error``."""
    pipeline, step = standing(job, conf.catalogue())
    tries = Tries(job.attempt, job.failures, job.lost, step.retries or 0)
    values: dict[str, Any] = {
        "started": STARTED,
        "finished": ENDED,
        "decision": decide_failure(step, tries, error, ENDED) if error else decide(pipeline, step),
        "report": f"the report of {error!r}" if error else "",
    }
    return Execution(job=job, step=step, **{**values, **fields})
