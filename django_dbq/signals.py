"""Signals for whoever wants to watch jobs; a receiver that raises is logged and changes nothing.

Every signal has ``sender=Job``. ``job_created`` is sent within the creating transaction; the others in the worker,
``step_finished`` and ``job_finished`` after their outcome has been committed.
"""

import logging
from typing import Any

from django.dispatch import Signal

logger = logging.getLogger("django_dbq")

job_created = Signal()  # job
step_started = Signal()  # job, step (a pipelines.Step)
step_finished = (
    Signal()
)  # job, step, outcome (an outcomes.AttemptOutcome), error (an exception or None)
job_finished = Signal()  # job; its state is COMPLETE or FAILED


def send(signal: Signal, **kwargs: Any) -> None:
    """Send ``signal`` to every receiver; log the exceptions of those that fail."""
    if not signal.receivers:
        return
    for receiver, response in signal.send_robust(**kwargs):
        if isinstance(response, Exception):
            logger.error("A signal receiver failed: receiver=%r", receiver, exc_info=response)
