"""MySQL (from 8.0.11) and MariaDB (from 10.6): row locks, but no partial indexes and no UPDATE … RETURNING."""

from typing import Any

from django.db import DatabaseError
from django.db.models.functions import Now

from ..models import Job, JobQuerySet
from ..states import CLAIMABLE
from .base import Queues, Storage

TRIES = 3
# The driver calls these operational: packet or value too large, no such character, not JSON, JSON too deep.
REFUSALS = {1153, 1366, 1406, 3140, 3141, 3143, 3157}

# Lock wait timeout, deadlock, and MariaDB's "record has changed since last read".
TRANSIENT = {1205, 1213, 1020}


class UtcNow(Now):
    """`Now` goes by the session's time zone, and so does what it is compared with."""

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


class MySQLStorage(Storage):
    clock = UtcNow()

    def is_transient(self, error: Exception) -> bool:
        return (
            isinstance(error, DatabaseError) and error.args[:1] != () and error.args[0] in TRANSIENT
        )

    def is_refusal(self, error: Exception) -> bool:
        return super().is_refusal(error) or (
            isinstance(error, DatabaseError) and error.args[:1] != () and error.args[0] in REFUSALS
        )

    def _pick(self, queues: Queues, limit: int, claimable: JobQuerySet) -> list[Job]:
        """Look without locks, then lock what was seen and skip what another worker locks.

        One locking query over both states would sort, and InnoDB locks every row that it reads for a sort:
        the first worker would hold the whole backlog. Looking per queue and state reads the index in order
        and stops at the limit.
        """
        for _ in range(TRIES):
            heads = sorted(
                (-priority, created, pk)
                for name in self.names(queues)
                for state in CLAIMABLE
                for priority, created, pk in claimable.filter(queue_name=name, state=state)
                .order_by("-priority", "created")
                .values_list("priority", "created", "pk")[:limit]
            )[:limit]
            if not heads:
                break
            locked = claimable.filter(pk__in=[pk for _, _, pk in heads]).select_for_update(
                skip_locked=True
            )
            if picked := list(locked):  # else another worker took them all: look again
                return sorted(picked, key=lambda job: (-job.priority, job.created))
        return []
