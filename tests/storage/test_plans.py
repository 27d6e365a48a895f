"""How the databases carry out our statements: what they cost must not grow with jobs that they do not concern.

In a table that has been in use for a while and looks far ahead, with good statistics and with some that were taken
when it was empty: that is how a table stands which has filled up a minute ago.
"""

from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_dbq import conf, engine
from django_dbq.models import Job, Worker
from django_dbq.states import HELD
from django_dbq.storage import Overdue, Position, Queues, Storage, Suspects
from tests.outcomes import outcome
from tests.storage.plans import (
    ATTEMPTS,
    FUTURE,
    HOUR,
    NOW,
    PAUSED,
    PRIMARY_KEY,
    QUEUES,
    READY,
    WORKERS,
    fill,
    plans,
    query_plans,
    source,
)

pytestmark = pytest.mark.django_db(transaction=True)

CLAIMED = {"dbq_job_next", PRIMARY_KEY, PAUSED}


# -- the tests: filling the table is most of the work, so all look at one --


def test_plans_on_postgresql(
    statistics: str, storage: Storage, worker: Worker, other_worker: Worker, subtests: Any
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("about PostgreSQL's plans")
    for limit in (1, 10, 300):
        for served in (
            Queues(("queue 1",)),
            Queues(("queue 1", "queue 2")),
            Queues(("queue 1",), exclude=True),
        ):
            with subtests.test("claim", queues=str(served), limit=limit):
                a_claim_reads_what_it_takes(storage, worker, served, limit)
        with subtests.test("claim from a position", limit=limit):
            a_claim_starts_at_its_position(storage, worker, limit, statistics)
        with subtests.test("finish", count=limit):
            a_finish_looks_its_jobs_up(storage, worker, limit)
    for suspects in Suspects:
        with subtests.test("claim beside suspects", suspects=suspects):
            a_claim_passes_few_suspects(storage, worker, suspects)
    with subtests.test("hand back"):
        handing_back_looks_its_jobs_up(storage, worker)
    with subtests.test("held"):
        what_is_held_is_looked_up(storage, worker, other_worker)
    with subtests.test("next due"):
        the_next_due_job_stands_first(storage, statistics)
    with subtests.test("stage, nothing due"):
        staging_costs_next_to_nothing_while_nothing_is_due(storage)
    with subtests.test("stage"):
        staging_reads_the_head_of_the_future(storage, statistics)


@pytest.mark.parametrize("analysed", [False, True])
def test_plans_of_large_batches_in_a_fresh_backlog(
    storage: Storage, worker: Worker, analysed: bool
) -> None:
    """A table of nothing but ready jobs, a minute old: there PostgreSQL would rather read all than look up a few."""
    if connection.vendor != "postgresql":
        pytest.skip("about PostgreSQL's plans")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'django_dbq_job'::regclass")
        cursor.execute("TRUNCATE django_dbq_job")  # as the fixture `statistics` does
        cursor.execute("ANALYZE django_dbq_job")
        fill(cursor, 5_000, "NEW")
        if analysed:
            cursor.execute("ANALYZE django_dbq_job")
    for _ in range(3):
        with plans() as found:
            known = conf.configuration().known_steps
            jobs = storage.claim(worker.pk, Queues(("queue 1",)), 100, NOW, known)
            storage.finish(worker, [outcome(job) for job in jobs], NOW)
        claim, finish = found
        assert claim.sources == CLAIMED
        assert finish.sources == {PRIMARY_KEY}
        assert (claim.read, finish.read) == (200, 100)
        assert not claim.sorts


def a_claim_reads_what_it_takes(
    storage: Storage, worker: Worker, served: Queues, limit: int
) -> None:
    with plans() as found:
        jobs = storage.claim(worker.pk, served, limit, NOW, conf.configuration().known_steps)
    storage.hand_back(worker.pk, jobs, NOW)
    names, plan = found[:-1], found[-1]
    count = len(QUEUES) - 1 if served.exclude else len(served.names)
    head = min(limit, READY // len(QUEUES))  # looked at in each queue
    assert len(jobs) == min(limit, READY // len(QUEUES) * count)
    assert plan.sources == CLAIMED
    assert plan.read <= head * count + len(jobs)
    assert count > 1 or not plan.sorts
    if served.exclude:
        assert names[0].sources == {"dbq_job_next"}
        assert names[0].read <= len(QUEUES) + 1


def a_claim_starts_at_its_position(
    storage: Storage, worker: Worker, limit: int, statistics: str
) -> None:
    served, known = Queues(("queue 1", "queue 2")), conf.configuration().known_steps
    position = Position()
    first = storage.claim(worker.pk, served, 1, NOW, known)
    storage.hand_back(worker.pk, first, NOW)
    position.remember(first)
    with plans() as found:
        jobs = storage.claim(worker.pk, served, limit, NOW, known, None, position)
    storage.hand_back(worker.pk, jobs, NOW)
    (plan,) = found
    assert jobs
    # Where all that was known were ready jobs, the index on created is as good a way: what counts is where it starts.
    (way,) = plan.sources - {PRIMARY_KEY, PAUSED}
    assert way in {"dbq_job_next", "django_dbq_job_created_b4866f59"}
    assert way == "dbq_job_next" or statistics == "young"
    (scan,) = (node for node in plan.reading if source(node) == way)
    assert "created >=" in scan["Index Cond"]
    assert statistics == "young" or plan.read <= READY // len(QUEUES) + limit, "more than there is"


def a_finish_looks_its_jobs_up(storage: Storage, worker: Worker, count: int) -> None:
    known = conf.configuration().known_steps
    jobs = storage.claim(worker.pk, Queues(tuple(QUEUES)), count, NOW, known)
    with plans() as found:
        written = storage.finish(worker, [outcome(job) for job in jobs], NOW)
    Job.objects.filter(pk__in=written).update(
        state="NEW", attempt=0, worker=None, next_task="tests.process_jobs.quick"
    )
    assert len(written) == count
    (plan,) = found
    assert plan.sources == {PRIMARY_KEY}
    assert plan.read == count


def handing_back_looks_its_jobs_up(storage: Storage, worker: Worker) -> None:
    known = conf.configuration().known_steps
    jobs = storage.claim(worker.pk, Queues(tuple(QUEUES)), 100, NOW, known)
    with plans() as found:
        assert storage.hand_back(worker.pk, jobs, NOW) == 100
    # One way is as good as the other: all that the worker holds are these.
    assert set.union(*(plan.sources for plan in found)) <= {PRIMARY_KEY, "dbq_job_held"}
    assert sum(plan.read for plan in found) == 100


def a_claim_passes_few_suspects(storage: Storage, worker: Worker, suspects: Suspects) -> None:
    """Modes of claiming differ in what they take, and not in how they read."""
    first = Job.objects.filter(queue_name="queue 3", state="NEW").order_by("-priority", "created")
    pks = [job.pk for job in first[:3]]
    Job.objects.filter(pk__in=pks).update(lost=1)
    known = conf.configuration().known_steps
    with plans() as found:
        jobs = storage.claim(worker.pk, Queues(("queue 3",)), 10, NOW, known, None, None, suspects)
    storage.hand_back(worker.pk, jobs, NOW)
    Job.objects.filter(pk__in=pks).update(lost=0)
    (plan,) = found
    assert plan.sources == CLAIMED
    assert plan.read <= 10 + 3 + len(jobs)
    assert not plan.sorts


def what_is_held_is_looked_up(storage: Storage, worker: Worker, other_worker: Worker) -> None:
    """However many jobs there are, and others hold, what a rescue reads is what it takes."""
    served, known = Queues(tuple(QUEUES)), conf.configuration().known_steps
    theirs = storage.claim(other_worker.pk, served, 100, NOW, known)
    ours = storage.claim(worker.pk, served, 50, NOW, known)
    overdue = [Overdue(job.pk, job.attempt, NOW, "") for job in ours[:3]]
    with plans() as found:
        assert len(engine.record_timeouts(worker.pk, overdue, NOW, "default")) == 3
    for plan in found:
        assert plan.sources <= {"dbq_job_held", PRIMARY_KEY, *ATTEMPTS, *WORKERS}, plan.sql
        assert plan.read <= 50, plan.sql
    with plans() as found:
        assert storage.abandoned() == []
    held = Job.objects.filter(state__in=HELD).count()
    for plan in found:
        assert plan.sources <= {"dbq_job_held", *WORKERS}, plan.sql
        assert plan.read <= held, plan.sql
    keep = [job.pk for job in ours[:20]]
    for take, expected in (
        (lambda: engine.release(worker.pk, keep, NOW, "default"), 30),
        (lambda: engine.bury(worker.pk, "It was shot.", NOW, "default"), 20),
    ):
        with plans() as found:
            count = take()
        looks = [plan for plan in found if 'FROM "django_dbq_job"' in plan.sql]
        assert looks
        for plan in looks:
            assert plan.sources == {"dbq_job_held"}, plan.sql
            assert plan.read <= 50, plan.sql
        for plan in found:
            assert plan.sources <= {"dbq_job_held", PRIMARY_KEY, *ATTEMPTS, *WORKERS}, plan.sql
        assert count == expected
    storage.hand_back(other_worker.pk, theirs, NOW)
    Job.objects.filter(pk__in=[job.pk for job in ours]).update(
        state="NEW", attempt=0, lost=0, failures=0
    )


def the_next_due_job_stands_first(storage: Storage, statistics: str) -> None:
    with plans() as found:
        assert storage.next_due(Queues(), NOW) == NOW + HOUR
    future, waits = found
    assert future.sources == {"dbq_job_later"}
    # Without any statistics PostgreSQL takes a few rows for granted and sorts them: only an idle worker asks this.
    assert statistics == "empty" or future.read <= 2
    assert waits.sources == {"dbq_job_waiting"}
    assert waits.read == 0


def staging_costs_next_to_nothing_while_nothing_is_due(storage: Storage) -> None:
    """Every worker asks this every second."""
    with plans() as found:
        assert engine.stage_due(NOW, "default") == 0
    *looks, waits = found
    for plan in looks:
        assert plan.sources == {"dbq_job_later"}, plan.sql
        assert plan.read <= 1, plan.sql
    assert waits.sources == {"dbq_job_waiting"}
    assert waits.read == 0


def staging_reads_the_head_of_the_future(storage: Storage, statistics: str) -> None:
    with plans() as found:
        count = storage.stage_due(NOW + HOUR)
    assert 0 < count < FUTURE
    *looks, marks = found
    for plan in looks:
        assert plan.sources == {"dbq_job_later"}, plan.sql
        assert statistics == "empty" or plan.read <= count, plan.sql
    assert marks.sources == {PRIMARY_KEY}


QUEUES_PAUSED = "SCAN django_dbq_queue"  # a few rows at most
BY_KEY = "SEARCH django_dbq_job USING INDEX sqlite_autoindex_django_dbq_job_1 (id=?)"
BY_QUEUE = "SEARCH django_dbq_job USING INDEX dbq_job_next (queue_name=?)"
BY_TIME = "SEARCH django_dbq_job USING INDEX dbq_job_later"
BY_WAIT = "SEARCH django_dbq_job USING INDEX dbq_job_waiting"
WORKER_BY_KEY = "SEARCH django_dbq_worker USING INTEGER PRIMARY KEY (rowid=?)"
BY_WORKER = "SEARCH django_dbq_job USING INDEX dbq_job_held (worker_id=?)"


@pytest.mark.usefixtures("statistics")
def test_plans_on_sqlite(
    storage: Storage, worker: Worker, other_worker: Worker, subtests: Any
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("about SQLite's plans")
    known = conf.configuration().known_steps
    with query_plans() as found:
        with subtests.test("claim"):
            jobs = storage.claim(worker.pk, Queues(("queue 1",)), 20, NOW, known)
            assert len(jobs) == 20
            assert found == [QUEUES_PAUSED, BY_QUEUE, BY_KEY]
        with subtests.test("claim beside suspects"):
            Job.objects.filter(queue_name="queue 3", priority=2).update(lost=1)
            for suspects in Suspects:
                found.clear()
                some = storage.claim(
                    worker.pk, Queues(("queue 3",)), 5, NOW, known, None, None, suspects
                )
                assert found[:2] == [QUEUES_PAUSED, BY_QUEUE]
                assert found[2:] in ([BY_KEY], [])
                storage.hand_back(worker.pk, some, NOW)
        with subtests.test("held"):
            overdue = [Overdue(job.pk, job.attempt, NOW, "") for job in jobs[:3]]
            for duty in (
                lambda: engine.record_timeouts(worker.pk, overdue, NOW, "default"),
                lambda: engine.release(worker.pk, [job.pk for job in jobs], NOW, "default"),
                lambda: engine.bury(other_worker.pk, "It was shot.", NOW, "default"),
            ):
                found.clear()
                duty()
                jobs_read = [line for line in found if " django_dbq_job " in line]
                assert set(jobs_read) <= {BY_WORKER, BY_KEY}, found
            found.clear()
            assert storage.abandoned() == []
            jobs_line, workers_line = (line for line in found if " django_dbq_" in line)
            assert jobs_line == BY_WORKER.replace("=", ">")
            assert workers_line == WORKER_BY_KEY
        with subtests.test("finish"):
            found.clear()
            storage.finish(worker, [outcome(job) for job in jobs], NOW)
            assert {line for line in found if "ORDER BY" not in line} == {BY_KEY}
        with subtests.test("stage"):
            found.clear()
            assert engine.stage_due(NOW, "default") == 0
            assert [line.partition(" (")[0] for line in found] == [BY_TIME, BY_TIME, BY_WAIT]
        with subtests.test("next due"):
            found.clear()
            assert storage.next_due(Queues(), NOW) == NOW + HOUR
            assert [line.partition(" (")[0] for line in found] == [BY_TIME, BY_WAIT]


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize(("due", "ahead"), [('"due"', 'NOT "due"'), ('"due" = 1', '"due" = 0')])
def test_sqlite_reads_the_indexes_of_any_django(storage: Storage, due: str, ahead: str) -> None:
    """They are made by the Django that runs the migration, whose versions write the condition in different ways."""
    if connection.vendor != "sqlite":
        pytest.skip("about SQLite's indexes")
    with connection.cursor() as cursor:
        for name, columns, condition in (
            ("dbq_job_next", "queue_name, priority DESC, urgency DESC, created", due),
            ("dbq_job_later", "run_after", ahead),
        ):
            cursor.execute(f"DROP INDEX {name}")
            cursor.execute(
                f"CREATE INDEX {name} ON django_dbq_job ({columns})"
                f" WHERE ({condition} AND \"state\" IN ('NEW', 'READY'))"
            )
    with query_plans() as found:
        storage.claim(1, Queues(), 20, NOW, conf.configuration().known_steps)
        storage.stage_due(NOW)
    assert found[:2] == [QUEUES_PAUSED, BY_QUEUE]
    assert {line.partition(" (")[0] for line in found[2:]} == {BY_TIME}


def test_what_is_held_is_looked_up_on_mysql(storage: Storage, worker: Worker) -> None:
    """Of its plans only this one: the index has to be the way, or a rescue would lock the whole table."""
    if connection.vendor != "mysql":
        pytest.skip("about MySQL's and MariaDB's plans")
    Job.objects.bulk_create(Job(name="quick") for _ in range(500))
    Job.objects.update(state="COMPLETE")
    columns = [field.column for field in Job._meta.concrete_fields]
    rest = ", ".join(f"`{column}`" for column in columns if column != "id")
    with connection.cursor() as cursor:
        for _ in range(6):  # doubles them
            cursor.execute(
                f"INSERT INTO django_dbq_job (id, {rest})"
                f" SELECT REPLACE(UUID(), '-', ''), {rest} FROM django_dbq_job"
            )
    Job.objects.bulk_create(Job(name="quick") for _ in range(30))
    storage.claim(worker.pk, Queues(), 20, timezone.now(), conf.configuration().known_steps)
    found: list[dict[str, Any]] = []

    def explain(execute: Any, sql: str, params: Any, *rest: Any) -> Any:
        if sql.startswith("SELECT") and "FROM `django_dbq_job`" in sql:
            with connection.cursor() as cursor:  # the driver's own: Django's would explain again
                cursor.cursor.execute(f"EXPLAIN {sql}", params)
                names = [about[0].lower() for about in cursor.description]
                found.extend(dict(zip(names, row, strict=True)) for row in cursor.cursor)
        return execute(sql, params, *rest)

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE TABLE django_dbq_job")
        cursor.fetchall()
    with connection.execute_wrapper(explain):
        storage.abandoned()
        engine.bury(worker.pk, "It was shot.", timezone.now(), "default")
    about_jobs = [line for line in found if line["table"] == "django_dbq_job"]
    assert len(about_jobs) == 2
    for line in about_jobs:
        assert line["key"] == "dbq_job_held", found
        assert int(line["rows"]) < 1000, found  # an estimate, of over 30,000
    assert Job.objects.filter(lost=1).count() == 20
