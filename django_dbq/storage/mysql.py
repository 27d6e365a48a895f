"""MySQL (from 8.0.11) and MariaDB (from 10.6): row locks, but no partial indexes and no UPDATE … RETURNING."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

from django.db import DatabaseError, DataError
from django.db.models import CharField, F, Func, Value
from django.db.models.functions import Concat, Now

from ..models import ORDER, Job, JobQuerySet, Worker, turn
from ..states import CLAIMABLE
from .base import Execution, Queues, Storage

TRIES = 3
UNIQUE = f"{Job._meta.db_table}.dbq_job_unique"  # which `PartialUnique` has made
LARGE = 250_000  # characters or bytes: a value, or the statement around it, that may matter for the size of a packet
# The driver calls these operational: packet or value too large, no such character, not JSON, JSON too deep.
REFUSALS = {1153, 1366, 1406, 3140, 3141, 3143, 3157}

# Lock wait timeout, deadlock, and MariaDB's "record has changed since last read".
TRANSIENT = {1205, 1213, 1020}


class UtcNow(Now):
    """`Now` goes by the session's time zone, and so does what it is compared with."""

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


class Exactly(Func):
    """Text as it is: the columns' own collation may take different cases, or accents, for the same."""

    template = "CONVERT(%(expressions)s USING utf8mb4) COLLATE utf8mb4_bin"
    output_field = CharField()


class MySQLStorage(Storage):
    clock = UtcNow()
    stands_at = Exactly(Concat(F("name"), Value(" "), F("next_task")))

    def unfinished(self, unique_keys: Iterable[str]) -> JobQuerySet:
        # By the column that the index is of: it has the key only as long as the job has not ended.
        keys = list(unique_keys)
        marks = ", ".join(["%s"] * len(keys)) or "NULL"
        found = self.jobs.extra(where=[f"{UNIQUE} IN ({marks})"], params=keys)
        return cast(JobQuerySet, found.order_by())

    def is_transient(self, error: Exception) -> bool:
        return (
            isinstance(error, DatabaseError) and error.args[:1] != () and error.args[0] in TRANSIENT
        )

    def finish(
        self,
        worker: Worker,
        executions: Sequence[Execution],
        now: datetime.datetime,
        watched: bool = True,
    ) -> set[UUID]:
        for e in executions:
            for text in (e.workspace, e.result):
                if text is not None and len(text) > LARGE:
                    self._refuse_more_than_a_packet(text)
        return super().finish(worker, executions, now, watched)

    def _refuse_more_than_a_packet(self, text: str) -> None:
        """Raise where the server would hang up without a word, which looks as if it were out of reach."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            (most,) = cursor.fetchone()
        # As the driver sends it: UTF-8, with a backslash before some characters; and the rest of the statement.
        size = len(text.encode()) + text.count('"') + text.count("\\") + text.count("'") + LARGE
        if size > most:
            raise DataError(
                f"The workspace or result takes about {size / 1e6:.1f} MB; the database's max_allowed_packet is "
                f"{most / 1e6:.1f} MB."
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
                (-priority, -urgency, created, pk)
                for name in self.open_names(queues)
                for state in CLAIMABLE
                for priority, urgency, created, pk in claimable.filter(queue_name=name, state=state)
                .order_by(*ORDER)
                .values_list("priority", "urgency", "created", "pk")[:limit]
            )[:limit]
            if not heads:
                break
            locked = claimable.filter(pk__in=[pk for *_, pk in heads]).select_for_update(
                skip_locked=True
            )
            if picked := list(locked):  # else another worker took them all: look again
                return sorted(picked, key=turn)
        return []
