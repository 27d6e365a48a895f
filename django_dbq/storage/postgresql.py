"""PostgreSQL: one statement claims a batch, one finishes it, and NOTIFY wakes the workers.

The statements are written by hand because the ORM has no SKIP LOCKED update with RETURNING and no arrays of
rows. Numbers that shape the plan (LIMIT) are literals: a parameter could get a generic plan that joins the
whole table.
"""

import contextlib
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from .. import workspaces
from ..models import SELDOM_READ, Attempt, Job, Queue, QueuePlace, Worker, turn
from ..states import CLAIMABLE, HELD, Event, State, target
from .base import Execution, Position, Queues, Storage, Suspects

CHANNEL = "django_dbq"


def _literals(states: Iterable[State]) -> str:
    """For the WHERE of a partial index, which the planner only matches with literals."""
    return ", ".join(f"'{state.value}'" for state in states)


JOB = Job._meta.db_table
ATTEMPT = Attempt._meta.db_table
FIELDS = Job._meta.concrete_fields
COLUMNS = [str(field.column) for field in FIELDS]
ATTNAMES = [field.attname for field in FIELDS]
# What a claim reads: neither what it writes itself, nor columns that are fetched when somebody asks for them.
CLAIMED = ("state", "worker_id", "modified", "finished")
READ = [field for field in FIELDS if field.attname not in {*SELDOM_READ, *CLAIMED}]
READ_ATTNAMES = [field.attname for field in READ]
WORKSPACE, RESULT = ATTNAMES.index("workspace"), ATTNAMES.index("result")
# The primary key is looked up once more for the update: with ctid instead, a row that moved would be missed.
CLAIM = f"""
WITH head AS MATERIALIZED ({{pick}}),
suspect AS (
  SELECT id FROM (SELECT id, lost FROM head ORDER BY priority DESC, urgency DESC, created LIMIT 1) AS first
  WHERE lost > 0),
picked AS MATERIALIZED (SELECT * FROM head WHERE {{fit}})
UPDATE {JOB} AS job
SET state = '{target(Event.CLAIMED).value}', worker_id = %s, attempt = attempt + 1, modified = %s,
  finished = NULL
FROM picked WHERE job.id = picked.id
RETURNING picked.claimed_from, {", ".join(f"job.{field.column}" for field in READ)}
"""
# A suspect is taken as the first or not at all, and then alone.
FIT = {
    Suspects.ALONE: "CASE WHEN EXISTS (SELECT FROM suspect) THEN id = (SELECT id FROM suspect) ELSE lost = 0 END",
    Suspects.AWAITED: "lost = 0 AND NOT EXISTS (SELECT FROM suspect)",
    Suspects.PASSED: "true",  # they are not in the head at all
}
# Asked once in a statement: of a constant, it is no condition on the rows.
PAUSED = f"SELECT name FROM {Queue._meta.db_table} WHERE paused IS NOT NULL"
PICK = f"""
SELECT id, state AS claimed_from, priority, urgency, created, lost FROM {JOB}
WHERE queue_name = {{queue}} AND {{queue}} <> ALL(ARRAY({PAUSED})) AND due AND state IN ({_literals(CLAIMABLE)})
AND (run_after IS NULL OR run_after <= %s) AND name || ' ' || next_task = ANY(%s::text[]){{more}}
ORDER BY priority DESC, urgency DESC, created LIMIT {{limit}} FOR UPDATE SKIP LOCKED
"""
ONE_PASS = f"""
AND created <= %s
AND NOT EXISTS (SELECT FROM {ATTEMPT} AS run WHERE run.job_id = {JOB}.id AND run.finished > %s)"""
# Several queues: the head of each, then the best of the heads. What is locked and not taken is free at the end.
PICK_QUEUES = f"""
SELECT head.* FROM {{served}} CROSS JOIN LATERAL ({PICK}) AS head
ORDER BY head.priority DESC, head.urgency DESC, head.created LIMIT {{limit}}
"""
SERVED = "unnest(%s::text[]) AS served(queue_name)"
SERVED_FROM = (
    "unnest(%s::text[], %s::int[], %s::bigint[], %s::timestamptz[])"
    " AS served(queue_name, priority, urgency, created)"
)
FROM_HEAD = (
    " AND priority = served.priority AND urgency = served.urgency AND created >= served.created"
)
# Each deadline may be one job's own: from there, to the later ones.
FROM_DEADLINE = " AND priority = served.priority AND urgency <= served.urgency"
# One index lookup per queue instead of a scan of the backlog.
QUEUE_NAMES = f"""
WITH RECURSIVE held AS (
  (SELECT queue_name FROM {JOB} WHERE due AND state IN ({_literals(CLAIMABLE)})
   ORDER BY queue_name LIMIT 1)
  UNION ALL
  SELECT (SELECT queue_name FROM {JOB} WHERE due AND state IN ({_literals(CLAIMABLE)})
          AND queue_name > held.queue_name ORDER BY queue_name LIMIT 1)
  FROM held WHERE held.queue_name IS NOT NULL)
SELECT queue_name FROM held WHERE queue_name IS NOT NULL
"""
# One row of JSON per outcome: arrays of text cost psycopg more to write than JSON costs PostgreSQL to read.
# The fence is compared with columns of the outcome, not with constants: as a filter on the job it would be
# taken to leave one row, and that estimate makes the planner walk all outcomes for each job.
FINISH = f"""
WITH outcome AS MATERIALIZED (
  SELECT o.*, %s::bigint AS worker_id, %s::boolean AS watched, ARRAY[{_literals(HELD)}] AS held
  FROM json_to_recordset(%s::json) AS o(id uuid, attempt int, state text, next_task text, step int, ended bool,
    workspace text, moved bool, queue_name text, priority int, run_after timestamptz, ran_step int, ran_task text,
    outcome text, started timestamptz, finished timestamptz, error text, failures int, lost int, progress float,
    progress_message text, home_queue text, round int, result text)),
won AS (
  UPDATE {JOB} AS job SET state = o.state, next_task = o.next_task, step = o.step, modified = %s,
    finished = CASE WHEN o.ended THEN o.finished END, workspace = COALESCE(o.workspace::jsonb, job.workspace),
    queue_name = COALESCE(o.queue_name, job.queue_name), priority = COALESCE(o.priority, job.priority),
    run_after = CASE WHEN o.moved THEN o.run_after ELSE job.run_after END,
    due = CASE WHEN o.moved THEN o.run_after IS NULL OR o.run_after <= %s ELSE job.due END AND NOT job.limited,
    limited = job.limited AND NOT COALESCE(o.moved AND o.run_after > %s, false),
    failures = COALESCE(o.failures, 0), lost = COALESCE(o.lost, 0), progress = COALESCE(o.progress, job.progress),
    progress_message = COALESCE(o.progress_message, job.progress_message),
    home_queue = COALESCE(o.home_queue, job.home_queue), round = o.round,
    result = COALESCE(o.result::jsonb, job.result)
  FROM outcome AS o
  WHERE job.id = o.id AND job.attempt = o.attempt AND job.worker_id = o.worker_id AND job.state = ANY(o.held)
    AND (o.watched OR NOT job.watched)
  RETURNING o.*),
recorded AS (
  INSERT INTO {ATTEMPT} (job_id, number, step, task, outcome, worker, started, finished, error)
  SELECT id, attempt, ran_step, ran_task, outcome, %s, started, finished, error FROM won)
SELECT id FROM won
"""
# A batch is found through indexes, one row after the other. With a large backlog, a small table or stale statistics the
# planner would rather read more and sort it. Only for the one transaction, and only where it is worth its round trips.
STEER = "; ".join(
    f"SET LOCAL enable_{way} = off"
    for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort")
)
STEER_FROM = 50  # rows
# A transaction that notifies has to be flushed like any other, for the time of a whole commit; a hint need not be.
NOTIFY = "SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, unnest(%s::text[]))"
INSERT_JOB = re.compile(f'INSERT INTO "?{JOB}"? ')
COPY = f"COPY {JOB} ({', '.join(COLUMNS)}) FROM STDIN"
COPY_FROM = 50  # jobs: below, one INSERT is as fast


def _moved(place: QueuePlace | None) -> dict[str, Any]:
    """The columns of an outcome that are absent, and so null, where the task has left them alone."""
    if place is None:
        return {}
    run_after = place.run_after and place.run_after.isoformat()
    return {**place._asdict(), "run_after": run_after, "moved": True}


def _counted(execution: Execution) -> dict[str, Any]:
    """The same: what most outcomes leave at 0 or NULL, and what the task may have told of its progress."""
    decision, job = execution.decision, execution.job
    values: dict[str, Any] = {}
    if decision.failures or decision.lost:
        values.update(failures=decision.failures, lost=decision.lost)
    if job.progress_told:
        values.update(progress=job.progress, progress_message=job.progress_message)
    if execution.round is not None:
        values["round"] = execution.round
    if execution.result is not None:
        values["result"] = execution.result
    return values


class UtcNow(Now):
    """`Now`, also where there are no time zones (``USE_TZ = False``): it would be local then."""

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        zone = "" if settings.USE_TZ else " AT TIME ZONE 'UTC'"
        template = f"STATEMENT_TIMESTAMP(){zone}"
        return self.as_sql(compiler, connection, template=template, **context)


class PostgreSQLStorage(Storage):
    clock = UtcNow()

    def insert(self, jobs: Sequence[Job], batch_size: int | None = None) -> None:
        """COPY, where the driver is psycopg 3 and there are enough rows for it to pay."""
        expressions = any(hasattr(job.run_after, "resolve_expression") for job in jobs)
        if len(jobs) < COPY_FROM or expressions or not self._is_psycopg3():
            super().insert(jobs, batch_size)
            return
        with (
            transaction.atomic(using=self.alias),
            self.connection.cursor() as cursor,
            self.connection.wrap_database_errors,
            cursor.copy(COPY) as copy,
        ):
            for job in jobs:
                values = job.__dict__
                row = [values[name] for name in ATTNAMES]
                row[WORKSPACE] = job.stored_workspace
                if row[RESULT] is not None:
                    row[RESULT] = json.dumps(row[RESULT])
                copy.write_row(row)
        for job in jobs:
            job._state.adding = False
            job._state.db = self.alias

    def is_refusal(self, error: Exception) -> bool:
        # Class 54, "program limit exceeded" (a jsonb value too large), comes as an operational error.
        state = getattr(error.__cause__, "sqlstate", None) or ""
        return super().is_refusal(error) or state.startswith("54")

    def is_transient(self, error: Exception) -> bool:
        # Serialization failure, deadlock, lock not available.
        return getattr(error.__cause__, "sqlstate", None) in ("40001", "40P01", "55P03")

    def _is_psycopg3(self) -> bool:
        return hasattr(self.connection.Database, "AsyncConnection")

    def claim(
        self,
        worker: int,
        queues: Queues,
        limit: int,
        now: datetime.datetime,
        known_steps: Sequence[str],
        pass_began: datetime.datetime | None = None,
        position: Position | None = None,
        suspects: Suspects = Suspects.ALONE,
    ) -> list[Job]:
        names = self.names(queues)
        if not names or not known_steps:
            return []
        more, filters = "", [now, list(known_steps)]
        if pass_began is not None:
            more = ONE_PASS
            filters += [pass_began, pass_began]
        if suspects is Suspects.PASSED:
            more += " AND lost = 0"
        served: list[Any]
        if position is not None and position.heads:
            served = [list(position.heads), *map(list, zip(*position.heads.values(), strict=True))]
            deadlines = any(urgency for _, urgency, _ in position.heads.values())
            start = FROM_DEADLINE if deadlines else FROM_HEAD
            pick = PICK_QUEUES.format(
                served=SERVED_FROM, queue="served.queue_name", more=start + more, limit=limit
            )
        elif len(names) > 1:
            served = [list(names)]
            pick = PICK_QUEUES.format(
                served=SERVED, queue="served.queue_name", more=more, limit=limit
            )
        else:
            served = [names[0], names[0]]
            pick = PICK.format(queue="%s", more=more, limit=limit)
        with self._batch(limit) as cursor:
            claim = CLAIM.format(pick=pick, fit=FIT[suspects])
            cursor.execute(claim, [*served, *filters, worker, now])
            rows = cursor.fetchall()
        claimed = dict(zip(CLAIMED, (target(Event.CLAIMED), worker, now, None), strict=True))
        jobs = [self._claimed(row, claimed) for row in rows]
        jobs.sort(key=turn)
        return jobs

    def _claimed(self, row: tuple[Any, ...], claimed: dict[str, Any]) -> Job:
        job = Job.made(zip(READ_ATTNAMES, row[1:], strict=True), self.alias)
        job.__dict__.update(claimed)
        text = job.workspace
        job.workspace = workspaces.load(text)
        job.claimed_from, job.claimed_at = State(row[0]), job.place
        job.stored_workspace = text
        return job

    def finish(
        self,
        worker: Worker,
        executions: Sequence[Execution],
        now: datetime.datetime,
        watched: bool = True,
    ) -> set[UUID]:
        rows = [
            {
                "id": str(e.job.pk),
                "attempt": e.attempt,
                "state": e.decision.state,
                "next_task": e.next_task,
                "step": e.next_place,
                "ended": e.job_finished is not None,
                "workspace": e.workspace,
                "ran_step": e.step.place,
                "ran_task": e.step.path,
                "outcome": e.outcome,
                "started": e.started.isoformat(),
                "finished": e.finished.isoformat(),
                "error": e.report,
                **_moved(e.moved_to),
                **_counted(e),
            }
            for e in executions
        ]
        with self._batch(len(rows)) as cursor:
            cursor.execute(
                FINISH, [worker.pk, watched, json.dumps(rows), now, now, now, worker.label]
            )
            return {key for (key,) in cursor.fetchall()}

    @contextlib.contextmanager
    def _batch(self, rows: int) -> Iterator[Any]:
        """A cursor for one statement over so many rows."""
        # Within a caller's transaction a refused statement must leave that transaction usable.
        nested = self.connection.in_atomic_block
        transactional: Any = contextlib.nullcontext()
        if nested:
            transactional = transaction.atomic(using=self.alias)
        elif rows >= STEER_FROM:
            transactional = self.looking_up()
        with transactional, self.connection.cursor() as cursor:
            yield cursor

    @contextlib.contextmanager
    def looking_up(self) -> Iterator[None]:
        with transaction.atomic(using=self.alias):
            with self.connection.cursor() as cursor:
                cursor.execute(STEER)
            yield

    def names(self, queues: Queues) -> Sequence[str]:
        if not queues.exclude:
            return queues.names
        with self.connection.cursor() as cursor:
            cursor.execute(QUEUE_NAMES)
            return [name for (name,) in cursor.fetchall() if name not in queues.names]

    @contextlib.contextmanager
    def announcing(self, job: Job) -> Iterator[list[str]]:
        announced: list[str] = []

        def announce(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if not (INSERT_JOB.match(sql) and job.pk in params):
                return execute(sql, params, many, context)
            # Some versions of Django ask for columns back, and count those that they get.
            returned = " RETURNING " in sql
            answer = (
                "created.* FROM created, pg_notify(%s, %s)" if returned else "pg_notify(%s, %s)"
            )
            announced.append(job.queue_name)
            return execute(
                f"WITH created AS ({sql}) SELECT {answer}",
                (*params, CHANNEL, job.queue_name),
                many,
                context,
            )

        with self.connection.execute_wrapper(announce):
            yield announced

    def notify(self, queues: Iterable[str]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(NOTIFY, [CHANNEL, list(queues)])

    def give_up_after(self, seconds: float) -> None:
        """As far as the project has not chosen otherwise. By default, TCP takes a quarter of an hour, or for ever."""
        options = self.connection.settings_dict.setdefault("OPTIONS", {})
        options.setdefault("tcp_user_timeout", int(1000 * seconds))
        probe = max(1, int(seconds / 4))
        for option, value in (("idle", probe), ("interval", probe), ("count", 3)):
            options.setdefault(f"keepalives_{option}", value)

    def listen(self) -> Any:
        """A psycopg connection that has said LISTEN, or None with psycopg2."""
        if not self._is_psycopg3():
            return None
        wrapper = self.connection
        params = {**wrapper.get_connection_params(), "autocommit": True}
        params.pop("pool", None)
        connection = wrapper.Database.connect(**params)
        connection.execute(f"LISTEN {CHANNEL}")
        return connection
