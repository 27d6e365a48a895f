"""How a database carries out statements on a table of many jobs: the table, and what it says of its plans."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone

FINISHED, FUTURE, READY = 200_000, 20_000, 1_000
QUEUES = [f"queue {n}" for n in range(10)]  # hold the ready jobs, in equal parts
NOW = timezone.now()
HOUR = datetime.timedelta(hours=1)
PRIMARY_KEY = "django_dbq_job_pkey"
ATTEMPTS = ("django_dbq_attempt", "dbq_attempt_number")
PAUSED = "django_dbq_queue"  # the queues that were ever paused
WORKERS = ("django_dbq_worker", "django_dbq_worker_pkey")


def fill(
    cursor: Any,
    count: int,
    state: str,
    *,
    due: bool = True,
    run_after: datetime.datetime | None = None,
    **columns: str,
) -> None:
    """Insert so many rows without fetching them first; the ready ones are spread over `QUEUES`.

    Args:
        columns: SQL of values other than these, in which ``n`` counts from 1.
    """
    if connection.vendor == "postgresql":
        numbers = f"generate_series(1, {count}) AS numbers(n)"
    else:
        count_up = f"SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}"
        numbers = f"(WITH RECURSIVE numbers(n) AS ({count_up}) SELECT n FROM numbers)"
    created = literal(
        NOW - 2 * HOUR if state == "COMPLETE" else NOW - HOUR if due else NOW - HOUR / 2
    )
    if connection.vendor == "postgresql":
        created = f"{created}::timestamptz + n * interval '1 microsecond'"
    else:
        created = f"strftime('%Y-%m-%d %H:%M:%f', {created}, (n / 1000.0) || ' seconds')"
    values = {
        "id": new_key(),
        "created": created,
        "modified": literal(NOW),
        "name": "'quick'",
        "state": f"'{state}'",
        "next_task": "'tests.process_jobs.quick'",
        "workspace": "'{}'",
        "queue_name": "'queue ' || (n % 10)" if state == "NEW" and due else "'default'",
        "priority": "n % 3",
        "run_after": literal(run_after),
        "due": literal(due),
        "step": "0",
        "attempt": "0",
        **columns,
    }
    insert = f"INSERT INTO django_dbq_job ({', '.join(values)}) SELECT {', '.join(values.values())}"
    cursor.execute(f"{insert} FROM {numbers}")


def literal(value: Any) -> str:
    """A value as SQL."""
    if value is None or isinstance(value, bool):
        return {None: "NULL", True: "true", False: "false"}[value]
    if isinstance(value, datetime.datetime):
        value = connection.ops.adapt_datetimefield_value(value)
    elif isinstance(value, UUID) and not connection.features.has_native_uuid_field:
        value = value.hex
    return f"'{value}'"


def new_key() -> str:
    """SQL of an id that is new in each row."""
    return (
        "gen_random_uuid()" if connection.vendor == "postgresql" else "lower(hex(randomblob(16)))"
    )


class Plan:
    """The plan of one statement on PostgreSQL with what happened when it was carried out."""

    def __init__(self, sql: str, root: dict[str, Any]) -> None:
        self.sql = sql
        self.nodes = list(self._flat(root))
        self.reading = [n for n in self.nodes if n["Node Type"].endswith("Scan") and source(n)]

    def _flat(self, node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for child in node.get("Plans", ()):
            yield from self._flat(child)

    @property
    def sources(self) -> set[str]:
        """What is read: names of indexes, and of tables that are read from end to end."""
        return {source(node) for node in self.reading}

    @property
    def read(self) -> int:
        """How many rows were read there, those that were then thrown away included."""
        return round(
            sum(
                node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
                for node in self.reading
            )
        )

    @property
    def sorts(self) -> bool:
        """Whether what is read is sorted; the few rows that a claim has picked may be."""
        sorts = [node for node in self.nodes if "Sort" in node["Node Type"]]
        return any(node in self.reading for sort in sorts for node in self._flat(sort))


def source(node: dict[str, Any]) -> str:
    if node["Node Type"] == "Bitmap Heap Scan":
        return ""  # only fetches what the index scans below it have found
    return node.get("Index Name") or node.get("Relation Name") or ""


@contextmanager
def plans() -> Iterator[list[Plan]]:
    """Collect the plan of every statement on our tables that is sent within.

    Each is carried out under EXPLAIN on the same connection just before it is sent, and rolled back: a SET LOCAL that
    went before it holds for both.
    """
    found: list[Plan] = []
    explaining = False

    def explain(execute: Callable[..., Any], sql: str, params: Any, *rest: Any) -> Any:
        nonlocal explaining
        if not explaining and "django_dbq_" in sql:
            explaining = True
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
                    (answer,) = cursor.fetchone()
                    answer = json.loads(answer) if isinstance(answer, str) else answer
                    found.append(Plan(sql, answer[0]["Plan"]))
                    transaction.set_rollback(True)
            finally:
                explaining = False
        return execute(sql, params, *rest)

    with connection.execute_wrapper(explain):
        yield found


@contextmanager
def query_plans() -> Iterator[list[str]]:
    """Collect what SQLite says that it would do for each statement on our tables that is sent within."""
    found: list[str] = []

    def explain(execute: Any, sql: str, params: Any, *rest: Any) -> Any:
        if sql.startswith(("SELECT", "UPDATE")) and "django_dbq_" in sql:
            with connection.cursor() as cursor:  # the driver's own: Django's would explain again
                plan = cursor.cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
                found.extend(row[-1] for row in plan)
        return execute(sql, params, *rest)

    with connection.execute_wrapper(explain):
        yield found
