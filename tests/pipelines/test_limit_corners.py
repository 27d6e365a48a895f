"""Limits where something else comes in between: hand-backs, plain updates, deploys, other queues, other times."""

import datetime
from typing import Any
from unittest import mock

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils import timezone

from django_dbq import engine, limits
from django_dbq.models import Attempt, Job, Limit, Start
from django_dbq.storage import Queues, Suspects, storage_for
from django_dbq.testing import drain
from django_dbq.workers import claims
from django_dbq.workers.claims import Claims
from django_dbq.workers.inflight import InFlight
from tests.pipelines import tasks
from tests.pipelines.flow import now_is, states
from tests.pipelines.test_limits import SERVED, TASK, claim, create, declare, finish, make_worker
from tests.storage.plans import HOUR, NOW, fill, plans

pytestmark = pytest.mark.django_db(transaction=True)
TWO = "tests.pipelines.tasks.two"
MAP = {"map": "tests.pipelines.tasks.fragile_square", "over": "numbers", "into": "squares"}


def keys(jobs: list[Job]) -> list[Any]:
    return [job.pk for job in jobs]


def claims_of(queue: str) -> Claims:
    """A worker's claims, from one queue."""
    served, flags = Queues((queue,)), {"threads": 0, "one_by_one": False}
    return Claims(served, "default", InFlight(), None, pass_began=None, **flags)


# -- what is counted --


def test_what_is_handed_back_unstarted_is_no_start(settings: Any) -> None:
    declare(settings, rate_limit="3/h")
    jobs = create(5)
    first, second = make_worker(), make_worker()
    claimed = claim(first)
    assert keys(claimed) == keys(jobs[:3])
    engine.hand_back(first, claimed[1:], timezone.now(), "default")
    assert Start.objects.count() == 1
    assert keys(claim(second)) == keys(jobs[1:3])


def test_what_is_handed_back_by_somebody_else_stays_a_start(settings: Any) -> None:
    """It is not the one that holds the job."""
    declare(settings, rate_limit="3/h")
    create(1)
    holder, other = make_worker(), make_worker()
    claimed = claim(holder)
    assert engine.hand_back(other, claimed, timezone.now(), "default") == 0
    assert Start.objects.count() == 1


def test_a_task_that_was_cut_off_has_started(settings: Any) -> None:
    declare(settings, rate_limit="3/h")
    create(1)
    worker = make_worker()
    claimed = claim(worker)
    assert engine.hand_back(worker, claimed, timezone.now(), "default", started=True) == 1
    assert Start.objects.count() == 1


def test_only_the_last_start_of_an_attempt_is_forgotten(settings: Any) -> None:
    """What was cut off is handed back with its number, and was begun."""
    declare(settings, rate_limit="3/h")
    create(1)
    worker, now = make_worker(), timezone.now()
    assert engine.hand_back(worker, claim(worker), now, "default", started=True) == 1
    assert engine.hand_back(worker, claim(worker), now, "default") == 1
    assert Start.objects.count() == 1


def test_a_worker_that_hands_back_most_of_its_claims_uses_a_rate_up(settings: Any) -> None:
    """With such an ``on_lost`` it runs one job at a time, whatever it has claimed."""
    declare(settings, rate_limit="20/h", on_lost="fail")
    create(60)
    call_command("worker", "--until_done")
    assert Attempt.objects.count() == 20


def test_values_are_told_apart_as_they_are_stored(settings: Any) -> None:
    declare(settings, concurrency={"limit": 1, "key": "account"})
    create(1, lambda n: {"account": {1: 2, "b": 3}})
    create(1, lambda n: {"account": {"b": 3, "1": 2}})
    assert len(claim(make_worker())) == 1


# -- no way past a limit --


def test_a_cancelled_job_that_is_set_ready_is_let_in_like_others(settings: Any) -> None:
    declare(settings, concurrency=1)
    worker = make_worker()
    first, second = create(2)
    claim(worker)
    first.cancel()
    assert keys(claim(worker)) == [second.pk]
    Job.objects.filter(pk=first.pk).update(state="READY")
    assert claim(worker) == []


def test_a_paused_job_that_is_set_ready_is_let_in_like_others(settings: Any) -> None:
    declare(settings, concurrency=1)
    first, second = create(2)
    engine.admit(SERVED, 1, timezone.now(), "default")
    first.pause()
    worker = make_worker()
    assert keys(claim(worker)) == [second.pk]
    Job.objects.filter(pk=first.pk).update(state="READY")
    assert claim(worker) == []


def test_a_running_job_that_is_set_ready_is_no_second_start(settings: Any) -> None:
    declare(settings, rate_limit="1/m")
    worker = make_worker()
    create(1)
    (job,) = claim(worker)
    Job.objects.filter(pk=job.pk).update(state="READY")
    assert claim(worker) == []


def test_a_task_that_saves_its_job_lets_nobody_in(settings: Any) -> None:
    """Its worker was taken for dead; the job is parked, for somebody else."""
    declare(settings, concurrency=1)
    frozen, worker = make_worker(), make_worker()
    create(1)
    (held,) = claim(frozen)
    urgent = create(1, priority=1)
    engine.bury(frozen.pk, "A test.", timezone.now(), "default")
    assert keys(claim(worker)) == keys(urgent)
    held.save()
    assert claim(worker) == []


# -- times --


def test_a_job_under_a_limit_has_its_time_like_others(settings: Any) -> None:
    """An idle worker wakes for it, and until then it is in nobody's way."""
    declare(settings, concurrency=1)
    soon = timezone.now() + datetime.timedelta(seconds=1)
    (job,) = create(1, run_after=soon)
    assert not now_is(job).limited
    assert engine.next_due(SERVED, timezone.now(), "default") == now_is(job).run_after
    first, second = create(2)
    worker = make_worker()
    assert keys(claim(worker)) == [first.pk]
    later = soon + HOUR
    assert engine.stage_due(later, "default") == 1
    assert engine.claim(worker, SERVED, 10, later, "default") == []
    assert now_is(job).limited
    finish(worker, held(first))
    engine.admit(SERVED, 10, later, "default")
    assert keys(engine.claim(worker, SERVED, 10, later, "default")) == [job.pk]
    assert states(second) == ["NEW"]


def held(job: Job) -> list[Job]:
    """The job as its worker has it."""
    job = now_is(job)
    job.claimed_from = "NEW"  # type: ignore[assignment]
    return [job]


def test_a_retry_that_is_put_off_is_under_no_limit_until_then(settings: Any) -> None:
    tasks.broken.add("a")
    options = {"concurrency": 1, "retries": 3, "retry_delay": 60}
    settings.JOBS = {"it": {"tasks": ["tests.pipelines.tasks.a"], **options}}
    (job,) = create(1)
    drain()
    job = now_is(job)
    assert (job.state, job.limited, job.due) == ("READY", False, False)
    assert engine.next_due(SERVED, timezone.now(), "default") == job.run_after


def test_jobs_of_the_same_pass_leave_their_slots_to_others(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": [TASK, TWO], "concurrency": 1}}
    create(3)
    call_command("worker", "--once")
    assert list(Job.objects.values_list("attempt", flat=True)) == [1, 1, 1]


def test_a_suspect_that_is_passed_leaves_its_slot_to_others(settings: Any) -> None:
    declare(settings, concurrency=1)
    suspect, job = create(2)
    Job.objects.filter(pk=suspect.pk).update(lost=1)
    now, passed = timezone.now(), {"suspects": Suspects.PASSED}
    engine.admit(SERVED, 5, now, "default", **passed)
    assert keys(engine.claim(make_worker(), SERVED, 5, now, "default", **passed)) == [job.pk]


# -- deploys --


def test_members_that_are_retried_with_their_parent_are_under_a_limit_that_has_come(
    settings: Any,
) -> None:
    settings.JOBS = {"it": {"tasks": [MAP]}}
    numbers = [1, 2, 3, 4, 5]
    parent = Job.objects.create(name="it", workspace={"numbers": numbers, "bad": numbers})
    drain()
    settings.JOBS = {"it": {"tasks": [MAP], "concurrency": 1}}
    assert now_is(parent).retry()
    worker = make_worker()
    assert claim(worker) == []  # they only go to wait
    assert len(claim(worker)) == 1


@pytest.mark.parametrize(("accounts", "let_in"), [("aaaa", 1), ("abcd", 4)])
def test_a_second_limit_has_its_keys_from_jobs_that_wait(
    accounts: str, let_in: int, settings: Any
) -> None:
    declare(settings, concurrency=100)
    create(4, lambda n: {"account": accounts[n]})
    declare(settings, concurrency=100, rate_limit={"limit": "1/m", "key": "account"})
    assert engine.follow_limits(timezone.now(), "default") == 4
    assert engine.follow_limits(timezone.now(), "default") == 0
    assert len(claim(make_worker())) == let_in


def test_what_was_let_in_by_a_higher_limit_is_let_in_anew(settings: Any) -> None:
    """Whoever has let it in has not lived to claim it."""
    declare(settings, concurrency=5)
    create(4)
    assert engine.admit(SERVED, 10, timezone.now(), "default").count == 4
    declare(settings, concurrency=2)
    assert engine.follow_limits(timezone.now(), "default") == 4
    assert len(claim(make_worker())) == 2


def test_a_key_that_is_gone_is_one_limit_for_all(settings: Any) -> None:
    declare(settings, concurrency={"limit": 1, "key": "account"})
    create(3, lambda n: {"account": n})
    declare(settings, concurrency=1)
    assert engine.follow_limits(timezone.now(), "default") == 3
    assert len(claim(make_worker())) == 1


@pytest.mark.parametrize("duty", [engine.mend, engine.follow_limits])
def test_who_does_not_know_a_job_leaves_it_its_limit(duty: Any, settings: Any) -> None:
    """An older worker, or that of another project."""
    declare(settings, concurrency=1)
    known = settings.JOBS
    create(3)
    settings.JOBS = {"plain": [TASK]}
    assert duty(timezone.now(), "default") == 0
    settings.JOBS = known
    assert len(claim(make_worker())) == 1


def test_many_that_were_under_no_limit_are_met_in_few_claims(
    settings: Any, django_assert_max_num_queries: Any
) -> None:
    declare(settings, concurrency=1)
    create(1)
    worker = make_worker()
    assert len(claim(worker)) == 1  # and no slot is left
    declare(settings)
    create(300)
    plain = Job.objects.create(name="plain")
    declare(settings, concurrency=1)
    with django_assert_max_num_queries(400):
        assert keys(claims_of("default").take(worker, timezone.now(), 1)) == [plain.pk]
    assert Job.objects.filter(state="PROCESSING").count() == 2
    assert Job.objects.filter(name="it", state="NEW", limited=True, due=False).count() == 300


@pytest.mark.parametrize("before", ["the hand-back", "the next claim"])
def test_a_worker_that_dies_as_it_parks_leaves_nothing_past_the_limit(
    before: str, settings: Any
) -> None:
    """Killed between the claim of what was under no limit yet and that, or right after it."""
    declare(settings)
    jobs = create(3)
    declare(settings, concurrency=1)
    dies, lives = make_worker(), make_worker()
    now = timezone.now()
    claimed = engine.claim(dies, SERVED, 10, now, "default")
    assert len(claimed) == 3
    if before == "the next claim":
        assert engine.park(dies, claimed, now, "default") == []
    engine.bury(dies.pk, "A test.", now, "default")
    held: list[Any] = []
    for _ in range(4):
        held += keys(claim(lives, 1))
    assert len(held) == 1
    waits = "READY" if before == "the hand-back" else "NEW"  # there, they count as lost
    assert sorted(states(*jobs)) == sorted(["PROCESSING", waits, waits])


def test_a_deadlock_while_some_are_parked_forgets_no_claim(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(settings)
    late = create(1)
    plain = Job.objects.create(name="plain")
    declare(settings, concurrency=1)
    park, tries = engine.park, list[int]()

    def deadlocked(*arguments: Any) -> list[Job]:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("A deadlock.")
        return park(*arguments)

    monkeypatch.setattr(engine, "park", deadlocked)
    monkeypatch.setattr(type(storage_for("default")), "is_transient", lambda *_: True)
    monkeypatch.setattr(engine, "follow_limits", lambda *_: 0)  # which would have parked it before
    assert keys(claims_of("default").take(make_worker(), timezone.now(), 5)) == [plain.pk]
    assert states(*late, plain) == ["NEW", "PROCESSING"]


def test_stranded_jobs_are_told_of_under_a_limit_as_well(settings: Any) -> None:
    declare(settings, concurrency=1)
    create(3)
    create(1, queue_name="elsewhere")
    create(1, run_after=timezone.now() + HOUR)
    settings.JOBS = {"plain": [TASK]}
    found = engine.stranded(Queues(("default",)), timezone.now(), "default")
    assert found == {("it", TASK): 3}


# -- turns --


def test_keys_of_jobs_that_have_begun_take_turns_with_those_of_new_ones(settings: Any) -> None:
    options = {"concurrency": {"limit": 2, "key": "account"}}
    settings.JOBS = {"it": {"tasks": [TASK, TWO], **options}}
    worker = make_worker()
    create(100, lambda n: {"account": f"{'a' if n < 50 else 'c'}{n:03}"})
    ready = create(200, lambda n: {"account": f"b{n:03}"})
    begun = Job.objects.filter(pk__in=keys(ready))
    begun.update(state="READY", next_task=TWO, step=1)
    wanted = ready[-1].pk
    Job.objects.filter(pk=wanted).update(priority=9)
    for _ in range(12):
        claimed = claim(worker, 1)
        if keys(claimed) == [wanted]:
            return
        finish(worker, claimed)
        for job in claimed:  # another one of that account comes along
            second = job.workspace["account"].startswith("b")
            again = {"next_task": TWO, "step": 1} if second else {"next_task": TASK, "step": 0}
            state = "READY" if second else "NEW"
            Job.objects.filter(pk=job.pk).update(
                state=state, due=False, finished=None, attempt=0, **again
            )
    raise AssertionError(f"never looked at; now at {Limit.objects.get().concurrency_key}")


def test_an_urgent_backlog_of_one_worker_leaves_a_rate_to_another(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lets in and does not claim is taken back by the other one, a second later."""
    declare(settings, rate_limit="5/h")
    create(5, queue_name="one")
    create(5, queue_name="two")
    plain = [Job(name="plain", queue_name="one", priority=5) for _ in range(10)]
    Job.objects.bulk_create(plain)
    monkeypatch.setattr(claims, "OVERTAKEN", 1000.0)
    busy = claims_of("one")
    row, other = make_worker(), make_worker()
    assert {job.name for job in busy.take(row, timezone.now(), 5)} == {"plain"}
    assert Start.objects.filter(at=None).count() == 5
    assert claim(other, 10, Queues(("two",))) == []
    Start.objects.update(admitted=timezone.now() - HOUR)  # as if a second had passed
    assert {job.name for job in busy.take(row, timezone.now(), 5)} == {"plain"}
    assert len(claim(other, 10, Queues(("two",)))) == 5


# -- what an admission reads --


def parked(count: int, **columns: str) -> None:
    """Jobs that wait for their limit."""
    own = {"name": "'it'", "next_task": f"'{TASK}'", "queue_name": "'default'", "limited": "true"}
    no_keys = {"concurrency_key": "''", "rate_key": "''"}
    with connection.cursor() as cursor:
        fill(cursor, count, "NEW", due=False, **{**own, **no_keys, **columns})
        cursor.execute("ANALYZE")


def on_postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("about PostgreSQL's plans")


def test_an_admission_reads_no_backlog_of_a_key_that_is_full(settings: Any) -> None:
    on_postgresql()
    declare(settings, concurrency={"limit": 1, "key": "account"})
    create(1, lambda n: {"account": "a"})
    worker = make_worker()
    assert len(claim(worker)) == 1
    parked(50_000, concurrency_key="'\"a\"'")
    wanted = create(5, lambda n: {"account": "b"})
    with plans() as found:
        assert engine.admit(SERVED, 1, timezone.now(), "default").count == 1
    assert max(plan.read for plan in found) <= limits.PAGE
    assert keys(engine.claim(worker, SERVED, 1, timezone.now(), "default")) == keys(wanted[:1])


def test_an_admission_reads_no_jobs_whose_time_has_not_come(settings: Any) -> None:
    on_postgresql()
    declare(settings, concurrency=1)
    with connection.cursor() as cursor:
        own = {"name": "'it'", "next_task": f"'{TASK}'", "queue_name": "'default'"}
        fill(cursor, 50_000, "NEW", due=False, run_after=NOW + 24 * HOUR, **own)
        cursor.execute("ANALYZE")
    create(2)
    with plans() as found:
        assert engine.admit(SERVED, 1, timezone.now(), "default").count == 1
    assert max(plan.read for plan in found) <= limits.PAGE


@pytest.mark.parametrize("options", [{}, {"concurrency": 1}])
def test_a_worker_that_starts_reads_no_finished_jobs(options: Any, settings: Any) -> None:
    on_postgresql()
    declare(settings, **options)
    with connection.cursor() as cursor:
        # Many of the same name, so that it looks as if some were soon found among all rows.
        fill(cursor, 50_000, "COMPLETE", name="'it'", limited="n % 2 = 0", due=True)
        fill(cursor, 1000, "NEW", name="'plain'")
        cursor.execute("ANALYZE")
    with plans() as found:
        assert engine.follow_limits(timezone.now(), "default") == 0
        assert engine.mend(timezone.now(), "default") == 0
    assert max((plan.read for plan in found), default=0) <= 1000


def test_a_look_that_finds_nothing_and_takes_long_is_not_taken_at_every_claim(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a backlog in a queue that is not served, say."""
    declare(settings, concurrency=1)
    monkeypatch.setattr(claims, "SLOW_LOOK", 0.0)
    monkeypatch.setattr(claims, "HEAD_SHARE", 1e6)
    looks = mock.Mock(wraps=engine.admit)
    monkeypatch.setattr(engine, "admit", looks)
    these = claims_of("default")
    row = make_worker()
    for _ in range(3):
        these.take(row, timezone.now(), 1)
        these.freed()
    assert looks.call_count == 1


# -- MySQL and MariaDB, where names in other cases are the same --


def test_a_name_in_another_case_has_no_limit_of_others(settings: Any) -> None:
    settings.JOBS = {
        "sync": {"tasks": [TASK], "concurrency": 1},
        "Sync": [TASK],
        "plain": [TASK],
    }
    for name in ("Sync", "plain"):
        Job.objects.create(name=name)
    assert engine.follow_limits(timezone.now(), "default") == 0
    assert {job.name for job in claim(make_worker())} == {"Sync", "plain"}


def test_a_queue_in_another_case_is_another_queue(settings: Any) -> None:
    declare(settings)
    now = timezone.now()
    for name in ("Mail", "mail"):
        assert engine.pause_queue(name, now, "default")
    assert engine.resume_queue("Mail", "default")
    Job.objects.create(name="plain", queue_name="mail")
    assert claim(make_worker(), served=Queues(("mail",))) == []


# -- unique jobs --


UNIQUE = {"tasks": [TASK], "unique": ["a"]}


def test_a_look_for_the_same_values_reads_no_backlog(settings: Any) -> None:
    """As other databases have it in their plans."""
    if connection.vendor != "mysql":
        pytest.skip("about a generated column of MySQL and MariaDB")
    settings.JOBS = {"it": UNIQUE}
    create(2000, lambda n: {"a": n})
    sql, params = storage_for("default").unfinished(["x" * 64]).query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute("FLUSH STATUS")
        cursor.execute(sql, params)
        assert cursor.fetchall() == ()
        cursor.execute("SHOW STATUS LIKE 'Handler_read%%'", [])
        assert sum(int(count) for _, count in cursor.fetchall()) < 10


def test_the_last_of_a_batch_replaces_those_before(settings: Any) -> None:
    settings.JOBS = {"it": {**UNIQUE, "unique_conflict": "replace"}}
    jobs = create(3, lambda n: {"a": n % 2, "number": n})
    assert [job.workspace["number"] for job in jobs] == [2, 1, 2]
    create(2, lambda n: {"a": 0, "number": 3 + n})
    found = Job.objects.order_by("created").values_list("workspace", flat=True)
    assert sorted(workspace["number"] for workspace in found) == [1, 4]


def test_what_is_replaced_stays_as_urgent_as_others_need_it(settings: Any) -> None:
    settings.JOBS = {"it": {**UNIQUE, "unique_conflict": "replace"}, "plain": [TASK]}
    (first,) = create(1, lambda n: {"a": 1})
    Job.objects.create(name="plain", depends_on=[first], deadline=timezone.now())
    urgency = now_is(first).urgency
    assert urgency
    create(1, lambda n: {"a": 1, "b": 2})
    assert (now_is(first).urgency, now_is(first).workspace) == (urgency, {"a": 1, "b": 2})


def test_what_is_unique_is_told_apart_as_it_is_stored(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": [TASK], "unique": True}}
    (first,) = create(1, lambda n: {9: 1, 10: 2})
    (same,) = create(1, lambda n: {"9": 1, "10": 2})
    assert same.pk == first.pk
    create(1, lambda n: {"a": {1: 2, "b": 3}})
    assert Job.objects.count() == 2


# -- members that nobody waits for --


@pytest.mark.parametrize("end", ["superseded", "ignored", "cancelled"])
def test_a_member_that_nobody_will_join_is_not_retried(end: str, settings: Any) -> None:
    policy = {"on_failure": "ignore"} if end == "ignored" else {}
    settings.JOBS = {"it": [TASK, {**MAP, **policy}]}
    parent = Job.objects.create(name="it", workspace={"numbers": [1, 2], "bad": [1]})
    drain()
    member = parent.children.get(state="FAILED")
    if end == "superseded":
        Job.objects.filter(pk=parent.pk).update(workspace={"numbers": [1, 2]})
        assert parent.retry(from_step=1)
        drain()
    elif end == "cancelled":
        Job.objects.filter(pk=parent.pk).update(state="WAITING", finished=None)
        parent.cancel()
    tasks.called.clear()
    before = now_is(parent).state
    assert not member.retry()
    drain()
    assert (tasks.called, states(parent, member)) == ([], [before, "FAILED"])
