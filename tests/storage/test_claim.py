"""What a claim takes, in which order, and that no two claims take the same."""

import datetime
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import F
from django.utils import timezone

from django_dbq import conf
from django_dbq.models import Job, Worker, urgency_of
from django_dbq.storage import Position, Queues, Storage
from tests.outcomes import outcome

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = datetime.timedelta(hours=1)
MICROSECOND = datetime.timedelta(microseconds=1)

Claim = Callable[..., list[str]]


def create(*keys: str, name: str = "quick", **fields: Any) -> None:
    """Create jobs that are known by these keys, in this order."""
    for key in keys:
        Job.objects.create(name=name, workspace={"key": key}, **fields)


def keys(jobs: list[Job]) -> list[str]:
    return [job.workspace["key"] for job in jobs]


@pytest.fixture
def claim(storage: Storage, worker: Worker, known: tuple[str, ...]) -> Claim:
    """Claim for our worker; returns the keys of the jobs."""

    def take(
        *queues: str, limit: int = 100, exclude: bool = False, now: Any = None, **more: Any
    ) -> list[str]:
        served = Queues(queues or (("default",) if not exclude else ()), exclude)
        return keys(storage.claim(worker.pk, served, limit, now or timezone.now(), known, **more))

    return take


# -- order and choice --


def test_higher_priority_first_then_older(claim: Claim) -> None:
    create("a", "b")
    create("urgent 1", priority=5)
    create("late", priority=-5)
    create("urgent 2", priority=5)
    create("c")
    assert claim(limit=1) == ["urgent 1"]
    assert claim(limit=2) == ["urgent 2", "a"]
    assert claim() == ["b", "c", "late"]


def test_jobs_that_are_ready_stand_in_the_same_order_as_new_ones(claim: Claim) -> None:
    create("a", "b", "c")
    Job.objects.filter(workspace__key="b").update(state="READY")
    assert claim(limit=2) == ["a", "b"]
    assert claim(limit=2) == ["c"]


def test_the_limit_is_kept_and_the_next_claim_goes_on(claim: Claim) -> None:
    create(*"abcde")
    assert [claim(limit=2) for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], []]


def test_one_order_over_several_queues(claim: Claim) -> None:
    create("x1", queue_name="x")
    create("y1", queue_name="y")
    create("elsewhere", queue_name="z", priority=9)
    create("x2", queue_name="x")
    create("y2 urgent", queue_name="y", priority=1)
    create("x3 urgent", queue_name="x", priority=1)
    assert claim("x", "y", limit=1) == ["y2 urgent"]
    assert claim("x", "y", limit=2) == ["x3 urgent", "x1"]
    assert claim("y", "x", limit=9) == ["y1", "x2"]
    assert claim("x", "y", "no such queue") == []


def test_earlier_deadlines_first_within_a_priority(claim: Claim) -> None:
    soon = timezone.now() + HOUR
    create("no deadline")
    create("later", deadline=soon + HOUR)
    create("soon", deadline=soon)
    create("missed", deadline=soon - 2 * HOUR)
    create("soon too", deadline=soon)
    create("no deadline either")
    create("unimportant", deadline=soon - 2 * HOUR, priority=-1)
    create("important", priority=1)
    create("important and soon", deadline=soon, priority=1)
    create("far away", deadline=soon + 10_000 * HOUR)
    assert claim(limit=1) == ["important and soon"]
    assert claim(limit=3) == ["important", "missed", "soon"]
    assert claim() == [
        *("soon too", "later", "far away", "no deadline", "no deadline either", "unimportant")
    ]


def test_deadlines_are_told_apart_to_the_millisecond(claim: Claim) -> None:
    soon = timezone.now().replace(microsecond=0) + HOUR
    create("b", deadline=soon + 2000 * MICROSECOND)
    create("a", deadline=soon + 1000 * MICROSECOND)
    create("same as a", deadline=soon + 1001 * MICROSECOND)
    assert claim() == ["a", "same as a", "b"]


def test_ready_jobs_stand_among_new_ones_by_their_deadlines(claim: Claim) -> None:
    soon = timezone.now() + HOUR
    create("a", deadline=soon)
    create("b", deadline=soon + HOUR)
    create("c")
    create("urgent", deadline=soon - HOUR)
    Job.objects.filter(workspace__key__in=["b", "urgent"]).update(state="READY")
    assert claim(limit=2) == ["urgent", "a"]
    assert claim() == ["b", "c"]


def test_one_order_of_deadlines_over_several_queues(claim: Claim) -> None:
    soon = timezone.now() + HOUR
    create("x none", queue_name="x")
    create("y later", queue_name="y", deadline=soon + HOUR)
    create("x soon", queue_name="x", deadline=soon)
    create("z missed", queue_name="z", deadline=soon - HOUR)
    create("y none", queue_name="y")
    create("y soon", queue_name="y", deadline=soon)
    create("x important", queue_name="x", priority=1)
    assert claim("x", "y", limit=2) == ["x important", "x soon"]
    assert claim("y", "z", exclude=True, limit=1) == ["x none"]
    assert claim("z", exclude=True) == ["y soon", "y later", "y none"]
    assert claim("y", "z") == ["z missed"]


def test_what_a_job_waits_for_is_claimed_by_its_deadline(claim: Claim) -> None:
    """Also what that waits for in turn."""
    soon = timezone.now() + HOUR
    create("other", deadline=soon + HOUR)
    create("first", "second")
    first, second = Job.objects.filter(workspace__key__in=["first", "second"]).order_by("created")
    middle = Job.objects.create(name="quick", workspace={"key": "middle"}, depends_on=[first])
    create("last", deadline=soon, depends_on=[middle, second])
    assert claim() == ["first", "second", "other"]


def test_excluded_queues_are_left_alone(claim: Claim) -> None:
    create("a", queue_name="a")
    create("b", queue_name="b")
    create("c", queue_name="c")
    create("urgent", queue_name="a", priority=1)
    assert claim("b", exclude=True) == ["urgent", "a", "c"]
    assert claim("b", "a", exclude=True) == []
    assert claim(exclude=True) == ["b"]


def test_only_new_and_ready_jobs_are_claimed(claim: Claim) -> None:
    create(*(str(state) for state in Job.STATES))
    for state in Job.STATES:
        Job.objects.filter(workspace__key=str(state)).update(state=state)
    assert claim() == ["NEW", "READY"]


def test_jobs_that_were_written_after_a_time_can_be_left(claim: Claim) -> None:
    create("before")
    started = timezone.now()
    create("after")
    assert claim(pass_began=started) == ["before"]
    assert claim() == ["after"]


def test_a_claim_marks_the_row_and_the_instance_alike(
    storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    create("first claim")
    create("third claim")
    Job.objects.filter(workspace__key="third claim").update(state="READY", attempt=2)
    now = timezone.now() + HOUR
    jobs = storage.claim(worker.pk, Queues(), 10, now, known)
    assert [(job.claimed_from, job.attempt) for job in jobs] == [("NEW", 1), ("READY", 3)]
    for job in jobs:
        row = Job.objects.get(pk=job.pk)
        assert (row.state, row.worker_id, row.modified) == ("PROCESSING", worker.pk, now)
        for field in Job._meta.concrete_fields:
            assert getattr(job, field.attname) == getattr(row, field.attname), field.attname


def test_a_null_workspace_is_an_empty_one(
    storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    create("a")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_dbq_job SET workspace = NULL")
    (job,) = storage.claim(worker.pk, Queues(), 10, timezone.now(), known)
    assert job.workspace == {}


# -- jobs that nobody here knows --


def test_unknown_names_and_steps_are_left_and_hold_up_nobody(
    claim: Claim, storage: Storage, worker: Worker
) -> None:
    create("removed job", "renamed step", "no step", "known")
    Job.objects.filter(workspace__key="removed job").update(name="removed", priority=2)
    Job.objects.filter(workspace__key="renamed step").update(next_task="gone.task", priority=2)
    Job.objects.filter(workspace__key="no step").update(next_task="", priority=2)
    before = list(Job.objects.exclude(workspace__key="known").order_by("pk").values())
    assert claim(limit=1) == ["known"]
    assert claim() == []
    assert list(Job.objects.exclude(workspace__key="known").order_by("pk").values()) == before
    assert storage.claim(worker.pk, Queues(), 10, timezone.now(), []) == []


# -- jobs whose time has not come --


def test_staging_is_exact(claim: Claim, storage: Storage) -> None:
    at = timezone.now() + HOUR
    create("later", run_after=at)
    assert storage.stage_due(at - MICROSECOND) == 0
    assert claim(now=at - MICROSECOND) == []
    assert storage.stage_due(at) == 1
    assert claim(now=at - MICROSECOND) == [], "a staged job was claimed before its time"
    assert claim(now=at) == ["later"]


def test_a_future_job_waits_until_it_is_staged(claim: Claim, storage: Storage) -> None:
    """So that no number of future jobs stands in the claim's way."""
    at = timezone.now() + HOUR
    create("later", run_after=at)
    create("now")
    assert claim(now=at) == ["now"]
    assert storage.stage_due(at) == 1
    assert claim(now=at) == ["later"]


def test_staging_is_bounded_and_takes_the_earliest(
    claim: Claim, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_dbq.storage.base.PEEK", 2)
    start = timezone.now() + HOUR
    for place, key in enumerate("edcba"):
        create(key, run_after=start - place * MICROSECOND)
    assert storage.stage_due(start) == 2
    assert sorted(claim(now=start)) == ["a", "b"]
    assert [storage.stage_due(start) for _ in range(3)] == [2, 1, 0]
    assert sorted(claim(now=start)) == ["c", "d", "e"]


def test_the_next_due_job_of_the_served_queues(storage: Storage) -> None:
    now = timezone.now()
    create("now")
    assert storage.next_due(Queues(), now) is None
    create("later", run_after=now + 2 * HOUR)
    create("sooner", run_after=now + HOUR)
    create("other", run_after=now + HOUR / 2, queue_name="other")
    assert storage.next_due(Queues(), now) == now + HOUR
    assert storage.next_due(Queues(("default",), exclude=True), now) == now + HOUR / 2


def stage_and_claim(storage: Storage, claim: Claim, now: datetime.datetime) -> list[str]:
    storage.stage_due(now)
    return claim(now=now)


@pytest.mark.parametrize("was_ahead", [True, False])
def test_run_after_moved_by_a_plain_update(claim: Claim, storage: Storage, was_ahead: bool) -> None:
    now = timezone.now()
    create("a", run_after=now + 2 * HOUR if was_ahead else None)
    assert Job.objects.update(run_after=now + HOUR) == 1
    assert stage_and_claim(storage, claim, now + HOUR - MICROSECOND) == []
    assert stage_and_claim(storage, claim, now + HOUR) == ["a"]


@pytest.mark.parametrize("moved_to", [None, timezone.now() - HOUR])
def test_run_after_lifted_by_a_plain_update(
    claim: Claim, moved_to: datetime.datetime | None
) -> None:
    create("a", run_after=timezone.now() + HOUR)
    assert claim() == []
    Job.objects.update(run_after=moved_to)
    assert claim() == ["a"]


def test_run_after_moved_by_an_expression(claim: Claim, storage: Storage) -> None:
    at = timezone.now() + HOUR
    create("ahead", run_after=at)
    create("due", run_after=at - 2 * HOUR)
    Job.objects.update(run_after=F("run_after") + 2 * HOUR)
    assert stage_and_claim(storage, claim, at - MICROSECOND) == []
    assert stage_and_claim(storage, claim, at) == ["due"]
    assert stage_and_claim(storage, claim, at + 2 * HOUR - MICROSECOND) == []
    assert stage_and_claim(storage, claim, at + 2 * HOUR) == ["ahead"]


def test_run_after_moved_by_save_and_bulk_update(claim: Claim, storage: Storage) -> None:
    at = timezone.now() + HOUR
    create("saved", "bulk")
    for job in Job.objects.all():
        job.run_after = at
        if job.workspace["key"] == "saved":
            job.save()
        else:
            Job.objects.bulk_update([job], ["run_after"])
    assert stage_and_claim(storage, claim, at - MICROSECOND) == []
    assert sorted(stage_and_claim(storage, claim, at)) == ["bulk", "saved"]


def test_saving_only_run_after_is_enough(claim: Claim, storage: Storage) -> None:
    create("a", run_after=timezone.now() + HOUR)
    job = Job.objects.get()
    job.run_after = None
    job.save(update_fields=["run_after"])
    assert stage_and_claim(storage, claim, timezone.now()) == ["a"]


class OldRelease:
    """Writes rows as a process of django-db-queue does, which does not know our columns."""

    COLUMNS = (
        "id, created, modified, name, state, next_task, workspace, queue_name, priority, run_after"
    )

    def create(self, key: str, run_after: datetime.datetime | None) -> None:
        now = self._time(timezone.now())
        pk = Job._meta.pk.get_db_prep_value(uuid.uuid4(), connection)
        task = "tests.process_jobs.quick"
        values = [pk, now, now, "quick", "NEW", task, f'{{"key": "{key}"}}', "default", 0]
        with connection.cursor() as cursor:
            marks = ", ".join(["%s"] * 10)
            cursor.execute(
                f"INSERT INTO django_dbq_job ({self.COLUMNS}) VALUES ({marks})",
                [*values, self._time(run_after)],
            )

    def move(self, key: str, run_after: datetime.datetime | None) -> None:
        job = Job.objects.get(workspace__key=key)
        pk = Job._meta.pk.get_db_prep_value(job.pk, connection)
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE django_dbq_job SET run_after = %s WHERE id = %s",
                [self._time(run_after), pk],
            )

    def _time(self, value: datetime.datetime | None) -> Any:
        return None if value is None else connection.ops.adapt_datetimefield_value(value)


def test_rows_of_an_old_process_beside_us(claim: Claim, storage: Storage) -> None:
    at = timezone.now() + HOUR
    old = OldRelease()
    old.create("at once", None)
    old.create("later", at)
    assert stage_and_claim(storage, claim, at - MICROSECOND) == ["at once"]
    assert stage_and_claim(storage, claim, at) == ["later"]


@pytest.mark.parametrize("moved_to", [None, timezone.now()])
def test_an_old_process_lifts_our_run_after(
    claim: Claim, storage: Storage, moved_to: datetime.datetime | None
) -> None:
    create("a", run_after=timezone.now() + HOUR)
    OldRelease().move("a", moved_to)
    assert stage_and_claim(storage, claim, timezone.now()) == ["a"]


# -- two claims at once --


def test_the_second_claim_takes_what_the_first_has_left(
    storage: Storage, worker: Worker, other_worker: Worker, known: tuple[str, ...]
) -> None:
    """In the worst order: the second comes while the first has claimed and not yet committed."""
    create(*"abcdef")
    begun = threading.Event()

    def second() -> list[str]:
        try:
            begun.set()
            return keys(storage.claim(other_worker.pk, Queues(), 10, timezone.now(), known))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            ours = keys(storage.claim(worker.pk, Queues(), 3, timezone.now(), known))
            claimed = pool.submit(second)
            if connection.features.has_select_for_update_skip_locked:
                theirs = claimed.result(30)  # it does not wait for us
            else:
                begun.wait(30)
        theirs = claimed.result(30)
    assert (ours, theirs) == (["a", "b", "c"], ["d", "e", "f"])
    for job in Job.objects.all():
        mine = job.workspace["key"] in ours
        assert (job.worker_id, job.attempt) == (worker.pk if mine else other_worker.pk, 1)


def test_a_claim_that_is_rolled_back_leaves_the_jobs(
    claim: Claim, storage: Storage, worker: Worker
) -> None:
    create(*"ab")
    with transaction.atomic():
        assert claim() == ["a", "b"]
        transaction.set_rollback(True)
    assert {(job.state, job.attempt) for job in Job.objects.all()} == {("NEW", 0)}
    assert claim() == ["a", "b"]


@pytest.mark.parametrize("served", [Queues(), Queues(("nobody's",), exclude=True)], ids=str)
def test_many_claims_at_once_share_all_jobs(
    storage: Storage,
    new_worker: Callable[[str], Worker],
    known: tuple[str, ...],
    served: Queues,
) -> None:
    names = ["default", "other"] if served.exclude else ["default"]
    Job.objects.bulk_create(
        Job(
            name="quick",
            workspace={"key": str(n)},
            queue_name=names[n % len(names)],
            priority=n % 3,
        )
        for n in range(300)
    )
    count = 4
    workers = [new_worker(str(n)) for n in range(count)]
    together = threading.Barrier(count)

    def work(worker: Worker) -> list[str]:
        mine: list[str] = []
        try:
            together.wait(30)
            while len(taken) < 300:
                jobs = storage.claim(worker.pk, served, 7, timezone.now(), known)
                mine += keys(jobs)
                taken.extend(keys(jobs))
        finally:
            connections.close_all()
        return mine

    taken: list[str] = []
    with ThreadPoolExecutor(count) as pool:
        claimed = [future.result(60) for future in [pool.submit(work, w) for w in workers]]
    assert sorted(key for mine in claimed for key in mine) == sorted(map(str, range(300)))
    assert set(Job.objects.values_list("attempt", flat=True)) == {1}
    for worker, mine in zip(workers, claimed, strict=True):
        assert sorted(mine) == sorted(keys(list(Job.objects.filter(worker=worker))))


# -- where a claim starts --


def test_a_claim_may_go_on_from_where_the_last_one_was(
    storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    """From a position no job of its queues and priority is missed, also none that comes back; without, nothing is."""
    create(*"abcdef")
    create("other", queue_name="other")
    position = Position()

    def take(limit: int, *queues: str) -> list[Job]:
        served = Queues(queues or ("default",))
        return storage.claim(worker.pk, served, limit, timezone.now(), known, None, position)

    jobs = take(2)
    position.remember(jobs)
    assert position.heads == {"default": (0, 0, jobs[0].created)}
    assert storage.hand_back(worker.pk, jobs[1:], timezone.now()) == 1
    create("urgent", priority=1)
    got = keys(take(3))
    if connection.vendor == "postgresql":
        assert got == ["b", "c", "d"]
        position.forget()
        assert keys(take(9, "default", "other")) == ["urgent", "e", "f", "other"]
    else:
        assert got == ["urgent", "b", "c"], "a position changes nothing here"


def test_a_position_among_deadlines(
    storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    soon = timezone.now() + HOUR
    create("none")
    create("soon 1", "soon 2", "soon 3", "soon 4", deadline=soon)
    create("later", deadline=soon + HOUR)
    position = Position()

    def take(limit: int) -> list[Job]:
        return storage.claim(worker.pk, Queues(), limit, timezone.now(), known, None, position)

    jobs = take(2)
    assert keys(jobs) == ["soon 1", "soon 2"]
    position.remember(jobs)
    assert position.heads == {"default": (0, urgency_of(soon), jobs[0].created)}
    assert storage.hand_back(worker.pk, jobs[1:], timezone.now()) == 1
    create("soonest", deadline=soon - HOUR)
    got = keys(take(2))
    if connection.vendor == "postgresql":
        assert got == ["soon 2", "soon 3"]
        position.forget()
        assert keys(take(9)) == ["soonest", "soon 4", "later", "none"]
    else:
        assert got == ["soonest", "soon 2"], "a position changes nothing here"
        assert keys(take(9)) == ["soon 3", "soon 4", "later", "none"]


# -- as many as there may be --


def test_the_largest_claim_and_finish(storage: Storage, worker: Worker, settings: Any) -> None:
    task = "tests.process_jobs.quick"
    settings.JOBS = {f"job {n}": [task, f"tests.process_jobs.no_such_task_{n}"] for n in range(100)}
    known = conf.configuration().known_steps
    assert len(known) == 200
    Job.objects.bulk_create(Job(name=f"job {n % 100}", workspace={"key": n}) for n in range(600))
    now = timezone.now()
    jobs = storage.claim(worker.pk, Queues(), 500, now, known)
    assert keys(jobs) == list(range(500))
    outcomes = [outcome(job) for job in jobs]
    for execution in outcomes[::2]:
        execution.workspace = '{"key": "changed"}'
    assert storage.finish(worker, outcomes, now) == {job.pk for job in jobs}
    assert Job.objects.filter(state="READY", step=1, attempts__number=1).count() == 500
    assert Job.objects.filter(state="NEW", attempts=None).count() == 100
    assert Job.objects.filter(workspace={"key": "changed"}).count() == 250
    again = storage.claim(worker.pk, Queues(), 500, now + HOUR, known)
    assert storage.hand_back(worker.pk, again, now + HOUR) == 500
