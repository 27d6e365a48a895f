"""The append-only table that torture's tasks write: what has really been done, whatever the queue believes."""

import uuid
from typing import Any

from django.db import models
from django.db.models.functions import Now


class DatabaseClock(Now):
    """The database's time in UTC, also where the session's time zone is another."""

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra)


class Effect(models.Model):
    """One thing that a task or a hook has done.

    ``step``, ``attempt`` and ``worker`` are the job's as the task saw them: together they name one execution.
    """

    class Kind(models.TextChoices):
        START = "start"  # of a task that is not atomic, written in autocommit
        END = "end"  # the same, as the last thing that it did
        ATOMIC = "atomic"  # written inside the transaction of an atomic step
        HOOK = "hook"  # of the failure hook

    # Chosen by the task, so that an INSERT whose answer was lost can be repeated.
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    job = models.UUIDField()
    step = models.PositiveSmallIntegerField()
    attempt = models.PositiveIntegerField()
    worker = models.PositiveBigIntegerField()
    kind = models.CharField(max_length=10, choices=Kind.choices)
    pid = models.PositiveIntegerField()
    at = models.DateTimeField()  # by the database's clock

    class Meta:
        app_label = "torture"  # for the test suite, whose INSTALLED_APPS does not have it

    def __str__(self) -> str:
        return f"{self.kind} of step {self.step}, attempt {self.attempt}"
