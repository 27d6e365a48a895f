"""SQLite: one writer at a time, so an immediate transaction stands in for row locks."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

from django.db import transaction

from ..models import ORDER, Job, JobQuerySet, turn
from ..states import CLAIMABLE, HELD, UNFINISHED, State
from .base import Queues, Storage

_TABLE = Job._meta.db_table
BRIEF = 0.25  # seconds


def _literals(states: Iterable[State]) -> str:
    return ", ".join(f"'{state.value}'" for state in states)


class SQLiteStorage(Storage):
    @property
    def shareable(self) -> bool:  # type: ignore[override]
        return not self.connection.is_in_memory_db()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """``BEGIN IMMEDIATE``: waits for the other writer before it reads.

        A deferred transaction that reads and then writes fails with SQLITE_BUSY when another has written in between,
        whatever the busy timeout.
        """
        connection = self.connection
        if connection.in_atomic_block:
            with transaction.atomic(using=self.alias):
                yield
            return
        connection.ensure_connection()  # which sets the mode that the project has chosen
        mode, connection.transaction_mode = connection.transaction_mode, "IMMEDIATE"
        try:
            with transaction.atomic(using=self.alias):
                yield
        finally:
            connection.transaction_mode = mode

    def waiting(self, due: bool) -> JobQuerySet:
        # With literals, and in both ways in which versions of Django have written the conditions of the indexes:
        # SQLite matches neither parameters nor other words for the same against the condition of a partial index.
        states = _literals(CLAIMABLE)
        literally = f"{'due' if due else 'NOT due'} AND due = {int(due)} AND state IN ({states})"
        if not due:
            literally += " AND NOT limited AND limited = 0"
        return cast(JobQuerySet, self.jobs.extra(where=[literally]))

    @property
    def limited(self) -> JobQuerySet:
        literally = (
            f"limited AND limited = 1 AND {_TABLE}.state IN ({_literals([*CLAIMABLE, *HELD])})"
        )
        return cast(JobQuerySet, self.jobs.extra(where=[literally]))

    def be_brief(self) -> None:
        # A task with an open transaction may keep all others from writing for as long as it runs.
        connection = self.connection
        options = {**connection.settings_dict.get("OPTIONS", {}), "timeout": BRIEF}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}

    def held(self) -> JobQuerySet:
        return cast(JobQuerySet, self.jobs.extra(where=[f"{_TABLE}.state IN ({_literals(HELD)})"]))

    def unfinished(self, unique_keys: Iterable[str]) -> JobQuerySet:
        literally = f"{_TABLE}.state IN ({_literals(UNFINISHED)})"
        found = self.jobs.filter(unique_key__in=list(unique_keys)).extra(where=[literally])
        return cast(JobQuerySet, found.order_by())

    def is_transient(self, error: Exception) -> bool:
        # The low byte of the extended code: BUSY or LOCKED, of whatever kind.
        return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in (5, 6)

    def _pick(self, queues: Queues, limit: int, claimable: JobQuerySet) -> list[Job]:
        names = self.open_names(queues)
        if len(names) == 1:
            return list(claimable.filter(queue_name=names[0]).order_by(*ORDER)[:limit])
        heads = [
            job
            for name in names
            for job in claimable.filter(queue_name=name).order_by(*ORDER)[:limit]
        ]
        return sorted(heads, key=turn)[:limit]
