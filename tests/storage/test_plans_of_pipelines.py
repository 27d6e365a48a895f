"""How the databases carry out what one job's outcome means to others, and what they are asked while many jobs wait.

As in `test_plans`: what it costs must not grow with jobs, members and dependencies that it does not concern.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from django.db import connection

from django_dbq import conf, engine
from django_dbq.models import Job, Worker
from django_dbq.storage import Queues, Storage
from tests.outcomes import outcome
from tests.storage.plans import (
    FUTURE,
    HOUR,
    NOW,
    PAUSED,
    PRIMARY_KEY,
    Plan,
    fill,
    literal,
    new_key,
    plans,
    query_plans,
)

pytestmark = pytest.mark.django_db(transaction=True)

MEMBERS = 5_000  # of a map; as many have ended
KINDS, EACH = 6, 2_000  # kinds of jobs that wait, and how many there are of each
BATCH, FEW = 100, 20
LATER, WAITS, BY_PARENT = "dbq_job_later", "dbq_job_waiting", "dbq_job_member"
LIMITED = "dbq_job_limited"
EDGES = {"django_dbq_dependency_pkey", "dbq_dependency", "dbq_dependency_on"}
EVENTS = {"django_dbq_jobevent", "dbq_event"}  # there are next to none


# -- the table --


@pytest.fixture
def parent(statistics: str) -> Job:
    """A map whose members are NEW, in a table with as many members that have ended, and many jobs that wait."""
    ended, parent = (Job.objects.create(name="quick", queue_name="a map") for _ in range(2))
    Job.objects.filter(pk=ended.pk).update(state="COMPLETE", attempt=2, round=1)
    waits = {"state": "WAITING", "attempt": 1, "round": 1, "waiting_for": MEMBERS}
    Job.objects.filter(pk=parent.pk).update(**waits)
    with connection.cursor() as cursor:
        for job, state in ((ended, "COMPLETE"), (parent, "NEW")):
            of = {"parent_id": literal(job.pk), "parent_round": "1", "position": "n - 1"}
            fill(cursor, MEMBERS, state, queue_name="'members'", **of)
        fill_waits(cursor)
        chain(cursor, "state = 'COMPLETE' AND parent_id IS NULL", "done")
        chain(cursor, "state = 'WAITING' AND round IS NULL", "open")
        if statistics == "full":
            cursor.execute("ANALYZE")
    parent.refresh_from_db()
    return parent


def fill_waits(cursor: Any) -> None:
    """Jobs that wait for members, for events, with and without a time limit, and for jobs, also with a time."""
    event = {"next_task": "'wait_for go'", "round": "1", "step": "0"}
    fill(cursor, EACH, "WAITING", **{**event, "next_task": "'group'", "waiting_for": "1"})
    fill(cursor, EACH, "WAITING", **event)
    fill(cursor, EACH, "WAITING", due=False, run_after=NOW + 2 * HOUR, **event)
    fill(cursor, EACH, "WAITING", waiting_for="1")
    fill(cursor, EACH, "WAITING", run_after=NOW - HOUR, waiting_for="1")
    fill(cursor, EACH, "WAITING", due=False, run_after=NOW + HOUR, waiting_for="1")
    member = {
        "id": new_key(),
        "state": "'NEW'",
        "next_task": "'tests.process_jobs.quick'",
        "queue_name": "'others'",
        "parent_id": "id",
        "parent_round": "1",
        "position": "0",
    }
    same = "created, modified, name, workspace, priority, due, step, attempt"
    cursor.execute(
        f"INSERT INTO django_dbq_job ({', '.join(member)}, {same})"
        f" SELECT {', '.join(member.values())}, {same}"
        " FROM django_dbq_job WHERE state = 'WAITING' AND next_task = 'group'"
    )


def chain(cursor: Any, which: str, state: str) -> None:
    """Have each of these jobs wait, or have waited, for the one before."""
    jobs = f"SELECT id, lag(id) OVER (ORDER BY id) AS earlier FROM django_dbq_job WHERE {which}"
    cursor.execute(
        "INSERT INTO django_dbq_dependency (job_id, on_id, mode, on_failure, state)"
        f" SELECT id, earlier, 'all', 'block', '{state}' FROM ({jobs}) AS pairs"
        " WHERE earlier IS NOT NULL"
    )


def claimed(storage: Storage, worker: Worker, queue: str, count: int) -> list[Job]:
    known = conf.configuration().known_steps
    jobs = storage.claim(worker.pk, Queues((queue,)), count, NOW, known)
    assert len(jobs) == count
    return jobs


def end(worker: Worker, jobs: Sequence[Job]) -> None:
    executions = [outcome(job) for job in jobs]
    assert engine.finish(worker, executions, NOW, "default") == executions


def gates(storage: Storage, worker: Worker, count: int) -> list[Job]:
    """Claimed jobs for which others wait: three for each, and one for all of them."""
    gates = [Job(name="quick", queue_name="gates") for _ in range(count)]
    others = [Job(name="quick", depends_on=[gate]) for gate in gates for _ in range(3)]
    Job.objects.bulk_create([*gates, *others, Job(name="quick", depends_on=gates)])
    return claimed(storage, worker, "gates", count)


def lone(next_task: str, **fields: Any) -> Job:
    """One of the jobs that wait."""
    waiting = Job.objects.filter(state="WAITING", next_task=next_task, **fields)
    return waiting.order_by("pk")[0]


# -- PostgreSQL --


def looked_up(
    found: Sequence[Plan], sources: Iterable[str], most: int, statements: int = 9
) -> None:
    """Nothing else was read than these indexes, of none more than so many rows, by so many statements at most."""
    for plan in found:
        assert plan.sources <= set(sources), (plan.sql, plan.sources)
        assert plan.read <= most, (plan.sql, plan.read)
    assert len(found) <= statements, [plan.sql for plan in found]


def test_plans_on_postgresql(
    parent: Job, storage: Storage, worker: Worker, statistics: str, subtests: Any
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("about PostgreSQL's plans")
    with subtests.test("claim"):
        with plans() as found:
            jobs = claimed(storage, worker, "members", BATCH)
        looked_up(found, {"dbq_job_next", PRIMARY_KEY, PAUSED}, 2 * BATCH, statements=1)
        assert not found[0].sorts
    with subtests.test("members end"):
        with plans() as found:
            end(worker, jobs)
        looked_up(found, {PRIMARY_KEY, *EDGES}, BATCH)
    with subtests.test("the last members end"):
        jobs = claimed(storage, worker, "members", BATCH)
        Job.objects.filter(pk=parent.pk).update(waiting_for=BATCH)
        with plans() as found:
            end(worker, jobs)
        looked_up(found, {PRIMARY_KEY, *EDGES}, BATCH)
        parent.refresh_from_db()
        assert parent.state == "READY"
        Job.objects.filter(pk=parent.pk).update(state="WAITING", waiting_for=MEMBERS - 2 * BATCH)
    with subtests.test("what others wait for ends"):
        jobs = gates(storage, worker, BATCH)
        with plans() as found:
            end(worker, jobs)
        freed = Job.objects.filter(dependencies__on__in=jobs, state="NEW").distinct()
        assert freed.count() == 3 * BATCH + 1
        # What it has updated it finds in its dead versions as well.
        looked_up(found, {PRIMARY_KEY, *EDGES}, 3 * 4 * BATCH, statements=12)
    with subtests.test("stage, nothing due"):
        with plans() as found:
            assert engine.stage_due(NOW, "default") == 0
        looked_up(found, {LATER, WAITS}, 1)
    with subtests.test("next due"):
        with plans() as found:
            assert engine.next_due(Queues(), NOW, "default") == NOW + HOUR
        # Without any statistics PostgreSQL takes a few rows for granted and sorts them: only an idle worker asks this.
        looked_up(found, {LATER, WAITS}, FUTURE if statistics == "empty" else 2)
    with subtests.test("mend"):
        with plans() as found:
            assert engine.mend(NOW, "default") == 0
        looked_up(found, {WAITS, BY_PARENT, PRIMARY_KEY, LIMITED, *EDGES}, KINDS * EACH)
    for verb, act in one_by_one().items():
        with subtests.test(verb):
            with plans() as found:
                assert act()
            looked_up(found, {PRIMARY_KEY, BY_PARENT, *EDGES, *EVENTS}, 2, statements=12)
    if statistics == "full":  # else PostgreSQL would rather read all: once, for what a person does
        for verb, act in all_at_once(parent).items():
            with subtests.test(f"{verb}, with members"):
                with plans() as found:
                    assert act()
                looked_up(found, {PRIMARY_KEY, BY_PARENT, *EDGES}, 8 * MEMBERS, statements=50)


def one_by_one() -> dict[str, Callable[[], Any]]:
    """What people do to single jobs among many that wait."""
    waiter, dependent = lone("wait_for go"), lone("tests.process_jobs.quick", run_after=None)
    return {
        "pause": waiter.pause,
        "resume": waiter.resume,
        "send": lambda: waiter.send("go"),
        "cancel": dependent.cancel,
        "retry": dependent.retry,
    }


def all_at_once(parent: Job) -> dict[str, Callable[[], Any]]:
    return {verb: getattr(parent, verb) for verb in ("pause", "resume", "cancel", "retry")}


# -- SQLite --

BY_KEY = "SEARCH django_dbq_job USING INDEX sqlite_autoindex_django_dbq_job_1 (id=?)"
LOCK = "SEARCH django_dbq_job USING COVERING INDEX sqlite_autoindex_django_dbq_job_1 (id=?)"
MEMBERS_OF = "SEARCH django_dbq_job USING INDEX dbq_job_member (parent_id=?)"
OF_A_JOB = tuple(
    f"SEARCH django_dbq_dependency USING {way} sqlite_autoindex_django_dbq_dependency_1"
    for way in ("INDEX", "COVERING INDEX")
)
ON_A_JOB = "SEARCH django_dbq_dependency USING INDEX dbq_dependency_on (state=? AND on_id=?)"
EDGE_BY_KEY = "SEARCH django_dbq_dependency USING INTEGER PRIMARY KEY (rowid=?)"
EVENT = "SEARCH django_dbq_jobevent USING"
ROUGHLY = ("USE TEMP B-TREE FOR ORDER BY", "CORRELATED SCALAR SUBQUERY")  # of what was found


def only(found: Sequence[str], *known: str) -> None:
    """Nothing is read in another way than these."""
    unknown = {line for line in found if not line.startswith((*known, *ROUGHLY))}
    assert not unknown


def test_plans_on_sqlite(
    parent: Job, storage: Storage, worker: Worker, statistics: str, subtests: Any
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("about SQLite's plans")
    with query_plans() as found:
        with subtests.test("claim"):
            jobs = claimed(storage, worker, "members", FEW)
            by_queue = "SEARCH django_dbq_job USING INDEX dbq_job_next (queue_name=?)"
            assert found == [f"SCAN {PAUSED}", by_queue, BY_KEY]
        with subtests.test("members end"):
            found.clear()
            end(worker, jobs)
            only(found, BY_KEY, LOCK, ON_A_JOB)
        with subtests.test("the last members end"):
            jobs = claimed(storage, worker, "members", FEW)
            Job.objects.filter(pk=parent.pk).update(waiting_for=FEW)
            found.clear()
            end(worker, jobs)
            only(found, BY_KEY, LOCK, *OF_A_JOB, ON_A_JOB)
            Job.objects.filter(pk=parent.pk).update(state="WAITING", waiting_for=MEMBERS - 2 * FEW)
        with subtests.test("what others wait for ends"):
            jobs = gates(storage, worker, FEW)
            found.clear()
            end(worker, jobs)
            only(found, BY_KEY, LOCK, *OF_A_JOB, ON_A_JOB, EDGE_BY_KEY)
            assert len(found) <= 20
        with subtests.test("stage"):
            found.clear()
            assert engine.stage_due(NOW, "default") == 0
            by_time = "SEARCH django_dbq_job USING INDEX dbq_job_later (run_after"
            by_wait = "SEARCH django_dbq_job USING INDEX dbq_job_waiting (run_after<?)"
            assert found == [f"{by_time}<?)", f"{by_time}=?)", by_wait]
        with subtests.test("mend"):
            found.clear()
            assert engine.mend(NOW, "default") == 0
            only(
                found,
                "SCAN django_dbq_job USING INDEX dbq_job_waiting",
                f"SEARCH django_dbq_job USING INDEX {LIMITED} (name>?)",
                "SEARCH U0 USING INDEX dbq_job_member (parent_id=?)",
                "SEARCH django_dbq_dependency USING INDEX dbq_dependency_on (state=?)",
                "SEARCH U0 USING INDEX sqlite_autoindex_django_dbq_job_1 (id=?)",
            )
        verbs = [
            *one_by_one().items(),
            *(all_at_once(parent).items() if statistics == "full" else ()),
        ]
        for verb, act in verbs:
            with subtests.test(verb):
                found.clear()
                assert act()
                only(found, BY_KEY, LOCK, MEMBERS_OF, *OF_A_JOB, ON_A_JOB, EDGE_BY_KEY, EVENT)
                assert len(found) <= 50
