"""Where two things meet: limits that change, errors in odd places, and several sessions at once."""

import contextlib
import datetime
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    transaction,
)
from django.utils import timezone

from django_dbq import Finish, Wait, dependencies, engine, members, runner, signals
from django_dbq.models import Attempt, Dependency, Job
from django_dbq.storage import storage_for
from django_dbq.testing import drain
from tests.pipelines import more_tasks
from tests.pipelines.flow import EVERY, Hands, declare, drained, last_error, now_is, states
from tests.pipelines.flow import members as members_of
from tests.pipelines.more_tasks import DOES, Gate, M, aside, create, stuck, until_blocked
from tests.storage.sessions import while_uncommitted

QUICK, ACT, BOOM = M + "quick", M + "act", M + "boom"
HOUR = datetime.timedelta(hours=1)
ONE_AT_A_TIME = {"concurrency": 1}
LIMITS = [
    pytest.param(ONE_AT_A_TIME, id="concurrency"),
    pytest.param({"rate_limit": "1/h"}, id="rate"),
]
committed = pytest.mark.django_db(transaction=True)
row_locks = pytest.mark.skipif(
    "connection.vendor == 'sqlite'",
    reason="SQLite has one writer at a time, and no locks of rows",
)
deferring = pytest.mark.skipif(
    "connection.vendor != 'sqlite'",
    reason="only SQLite refuses a transaction that has read before somebody else wrote",
)


@pytest.fixture(autouse=True)
def nothing_gets_stuck() -> Iterator[None]:
    DOES.clear()
    yield
    assert stuck() == {}


def let_in(hands: Hands) -> list[Job]:
    """What a worker claims after it has admitted what the limits allow."""
    engine.admit(EVERY, 100, timezone.now(), "default")
    return hands.claim()


# -- errors in odd places --


def test_a_join_that_the_database_refuses_is_retried_without_its_members(
    anywhere: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(settings, [M + "note", QUICK], QUICK)
    job = create("it")
    hands = Hands()
    hands.step()
    hands.step()
    finish = type(storage_for("default")).finish

    def refuse(storage: Any, worker: Any, executions: Any, *more: Any, **named: Any) -> Any:
        if any(e.workspace is not None for e in executions):
            raise DataError("The workspace is too large.")
        return finish(storage, worker, executions, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(type(storage_for("default")), "finish", refuse)
        hands.step()
    assert states(job) == ["FAILED"]
    assert "too large" in last_error(job)
    joined = members_of(job)
    assert now_is(job).retry()
    assert drained(job).state == "COMPLETE"
    assert members_of(job) == joined
    assert [member.attempt for member in members_of(job)] == [1, 1]
    assert job.workspace == {"ran": [1]}


@committed
@pytest.mark.parametrize("error", [RuntimeError, ValueError, OperationalError, SystemExit])
def test_a_callback_on_commit_that_raises_changes_nothing_about_its_step(
    error: type[BaseException], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What the step has done is committed by then: it has succeeded, and is not run again."""

    def raise_it() -> None:
        raise error("in the callback")

    def act(job: Job) -> None:
        create("two")
        transaction.on_commit(raise_it)

    settings.JOBS = more_tasks.JOBS
    job = create("act, atomic", does=act)
    drain()
    assert states(*Job.objects.all()) == ["COMPLETE", "COMPLETE"]
    assert [attempt.outcome for attempt in job.attempts.all()] == ["succeeded"]
    assert "Committed all the same" in caplog.text
    assert "in the callback" in caplog.text


@pytest.mark.parametrize("way", ["raised", "returned"])
def test_a_finish_with_a_workspace_that_is_no_json_fails_the_job_and_no_other(
    way: str, anywhere: None, settings: Any
) -> None:
    def spoil(job: Any) -> Finish:
        job.workspace["spoilt"] = object()
        if way == "raised":
            raise Finish
        return Finish()

    declare(settings, ACT, QUICK)
    settings.JOBS["other"] = [QUICK]
    job, other = create("it", does=spoil), create("other")
    drain()
    assert states(job, other) == ["FAILED", "COMPLETE"]
    assert job.attempts.get().outcome == "failed"
    assert "InvalidWorkspace" in last_error(job)
    assert "spoilt" not in now_is(job).workspace


ERRORS = [DataError("out of range"), OperationalError("gone away"), InterfaceError("closed")]
FORMS: dict[str, Any] = {
    "task": {"task": QUICK},
    "group": {"group": [QUICK, QUICK]},
    "map": {"map": QUICK, "over": "items"},
    "sleep": {"sleep": 3600},
    "wait_for": {"wait_for": "word"},
}
BEGUN = {"task": "COMPLETE", "group": "WAITING", "map": "WAITING", "sleep": "READY"}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("form", FORMS)
def test_a_predicate_that_fails_with_the_database_fails_its_step(
    form: str, error: Exception, anywhere: None, settings: Any
) -> None:
    """The error is the project's own: it is not tried for ever, as one of the package's own queries is."""

    def ask(job: Any) -> None:
        raise error

    declare(settings, {**FORMS[form], "when": M + "acts_first"})
    settings.JOBS["other"] = [QUICK]
    job, other = create("it", does=ask, workspace={"items": [1, 2]}), create("other")
    drain()
    assert states(job, other) == ["FAILED", "COMPLETE"]
    assert job.attempts.get().outcome == "failed"
    assert str(error) in last_error(job)
    assert not members_of(job)


@pytest.mark.parametrize("form", FORMS)
def test_a_predicate_that_failed_with_the_database_is_asked_again(
    form: str, anywhere: None, settings: Any
) -> None:
    asked = []

    def ask(job: Any) -> None:
        asked.append(job.attempt)
        if len(asked) == 1:
            raise OperationalError("gone away")

    declare(settings, {**FORMS[form], "when": M + "acts_first"})
    job = create("it", does=ask, workspace={"items": [1, 2]})
    hands = Hands()
    for _ in range(2):
        (claimed,) = hands.claim()
        hands.write(runner.run(claimed, timezone.now, retries=1))
        Job.objects.filter(pk=job.pk, failures=1).update(run_after=None)
    assert asked == [1, 2]
    outcomes = job.attempts.order_by("pk").values_list("outcome", flat=True)
    assert list(outcomes) == ["failed", "succeeded" if form == "task" else "waited"]
    assert states(job) == [BEGUN.get(form, "WAITING")]


# -- limits that come and go --


@pytest.mark.parametrize("options", LIMITS)
def test_a_limit_that_is_gone_when_a_step_ends_parks_nobody(
    options: Any, anywhere: None, settings: Any
) -> None:
    """The worker that ends the step has claimed its job under the limit."""
    declare(settings, QUICK, QUICK, **options)
    job = create("it")
    hands = Hands()
    (claimed,) = let_in(hands)
    declare(settings, QUICK, QUICK)
    engine.follow_limits(timezone.now(), "default")
    assert hands.write(hands.perform(claimed))
    engine.mend(timezone.now(), "default")
    assert hands.claim() == [job]
    assert not now_is(job).limited


@pytest.mark.parametrize("options", LIMITS)
@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_limit_that_is_gone_when_a_job_is_retried_parks_nobody(
    end: str, options: Any, anywhere: None, settings: Any
) -> None:
    """A job that has ended is under the limits of its time; a retry goes by those of today."""
    declare(settings, BOOM, **options)
    job = create("it")
    if end == "failed":
        drain()
    else:
        job.cancel()
    declare(settings, BOOM)
    engine.follow_limits(timezone.now(), "default")
    assert states(job) == [end.upper()]
    assert now_is(job).retry()
    engine.stage_due(timezone.now(), "default")
    assert Hands().claim() == [job]
    assert not now_is(job).limited


@pytest.mark.parametrize("form", [[BOOM, BOOM], {"map": BOOM, "over": "items"}])
def test_a_limit_that_is_gone_when_a_parent_is_retried_parks_no_member(
    form: Any, anywhere: None, settings: Any
) -> None:
    declare(settings, form, concurrency=2)
    job = create("it", workspace={"items": [1, 2]})
    assert drained(job).state == "FAILED"
    declare(settings, form)
    engine.follow_limits(timezone.now(), "default")
    assert job.retry()
    engine.mend(timezone.now(), "default")
    assert {one.pk for one in Hands().claim()} == {one.pk for one in members_of(job)}
    drain()


@pytest.mark.parametrize("options", LIMITS)
def test_a_limit_that_comes_while_jobs_run_holds_from_their_next_turn_on(
    options: Any, anywhere: None, settings: Any
) -> None:
    declare(settings, QUICK, QUICK)
    jobs = [create("it") for _ in range(3)]
    hands = Hands()
    claimed = hands.claim()
    assert len(claimed) == 3
    declare(settings, QUICK, QUICK, **options)
    assert engine.follow_limits(timezone.now(), "default") == 0  # of those that wait
    hands.write(*map(hands.perform, claimed))
    assert hands.claim() == []
    assert let_in(hands) == jobs[:1]
    assert let_in(hands) == []
    assert [now_is(job).attempt for job in jobs] == [2, 1, 1]


def test_who_was_not_under_a_limit_yet_is_not_claimed_beside_its_jobs(
    anywhere: None, settings: Any
) -> None:
    """Other processes may still create such jobs, with their older settings."""
    key = {"concurrency": {"limit": 1, "key": "account"}}
    settings.JOBS = {"it": {"tasks": [QUICK]}, "other": {"tasks": [QUICK]}}
    late = [create("it", workspace={"account": n // 2}) for n in range(4)]
    other = create("other")
    settings.JOBS = {"it": {"tasks": [QUICK], **key}, "other": {"tasks": [QUICK]}}
    first = create("it", workspace={"account": 0})
    hands = Hands()
    assert let_in(hands) == [other, first]  # beside what can run, the others only go to wait
    assert let_in(hands) == [late[2]]
    assert {now_is(job).concurrency_key for job in late} == {"0", "1"}
    assert let_in(hands) == []
    drain()
    assert set(states(late[0], late[1], late[3])) == {"NEW"}


@pytest.mark.parametrize("options", LIMITS)
def test_a_limit_that_comes_before_a_retry_holds_for_it(
    options: Any, anywhere: None, settings: Any
) -> None:
    declare(settings, BOOM)
    jobs = [create("it") for _ in range(2)]
    drain()
    declare(settings, BOOM, **options)
    assert all(now_is(job).retry() for job in jobs)
    engine.stage_due(timezone.now(), "default")
    hands = Hands()
    assert hands.claim() == []
    assert let_in(hands) == jobs[:1]


@pytest.mark.parametrize("options", LIMITS)
def test_a_stranded_job_takes_no_slot(options: Any, anywhere: None, settings: Any) -> None:
    """It is the first in order, and no worker could claim it."""
    declare(settings, QUICK, **options)
    stranded, job = create("it"), create("it")
    Job.objects.filter(pk=stranded.pk).update(next_task="gone", step=9)
    assert let_in(Hands()) == [job]
    assert states(stranded) == ["NEW"]


@pytest.mark.parametrize(
    ("key", "let"), [("account", [0]), ("item", [0, 1])], ids=["of the parent", "of the item"]
)
@pytest.mark.parametrize("kind", ["concurrency", "rate_limit"])
def test_members_of_a_map_have_the_keys_of_their_own_workspaces(
    kind: str, key: str, let: list[int], anywhere: None, settings: Any
) -> None:
    limit = 1 if kind == "concurrency" else "1/h"
    mapped = {"map": QUICK, "over": "items"}
    declare(settings, mapped, **{kind: {"limit": limit, "key": key}})
    job = create("it", workspace={"account": "A", "items": ["x", "y", "x"]})
    hands = Hands()
    (claimed,) = let_in(hands)
    hands.write(hands.perform(claimed))
    column = "concurrency_key" if kind == "concurrency" else "rate_key"
    keys = {"account": ['"A"'] * 3, "item": ['"x"', '"y"', '"x"']}[key]
    assert [getattr(member, column) for member in members_of(job)] == keys
    if (kind, key) == ("rate_limit", "account"):
        let = []  # the parent's own start was the one of this hour
    assert sorted(member.position or 0 for member in let_in(hands)) == let


def test_members_of_a_group_have_the_keys_of_their_parent(anywhere: None, settings: Any) -> None:
    declare(settings, [QUICK, QUICK], concurrency={"limit": 1, "key": "account"})
    job = create("it", workspace={"account": "A"})
    hands = Hands()
    (claimed,) = let_in(hands)
    hands.write(hands.perform(claimed))
    first, second = members_of(job)
    assert (first.concurrency_key, second.concurrency_key) == ('"A"', '"A"')
    assert let_in(hands) == [first]
    assert let_in(hands) == []


@row_locks
@committed
def test_an_admission_does_not_wait_for_who_has_locked_a_parked_job(settings: Any) -> None:
    declare(settings, QUICK, concurrency=2)
    locked, job = create("it"), create("it")
    hands = Hands()
    with while_uncommitted(partial(let_in, hands), waits=False) as claimed:
        Job.objects.select_for_update().get(pk=locked.pk)
    assert claimed.result() == [job]
    assert let_in(hands) == [locked]


@row_locks
@committed
@pytest.mark.parametrize("change", ["comes", "goes"])
def test_limits_are_followed_past_a_locked_row(change: str, settings: Any) -> None:
    """That one follows when it is free again."""
    comes = change == "comes"
    declare(settings, QUICK, **({} if comes else ONE_AT_A_TIME))
    locked, job = create("it"), create("it")
    declare(settings, QUICK, **(ONE_AT_A_TIME if comes else {}))
    duty = engine.follow_limits if comes else engine.mend
    follow = partial(duty, timezone.now(), "default")
    with while_uncommitted(follow, waits=False) as followed:
        Job.objects.select_for_update().get(pk=locked.pk)
    assert followed.result() == 1
    assert (now_is(locked).limited, now_is(job).limited) == (not comes, comes)
    if not comes:
        engine.mend(timezone.now(), "default")
    assert set(Hands().claim()) == (set() if comes else {locked, job})
    assert now_is(locked).limited == comes


# -- what people ask for, and what was asked before --


@pytest.mark.parametrize("on_lost", ["hold", "retry"])
def test_a_job_that_was_lost_while_a_pause_was_asked_is_paused_once(
    on_lost: str, anywhere: None, settings: Any
) -> None:
    declare(settings, {"task": QUICK, "on_lost": on_lost}, QUICK)
    job = create("it")
    hands = Hands()
    assert hands.claim() == [job]
    assert now_is(job).pause()
    hands.die()
    assert (*states(job), now_is(job).pausing) == ("PAUSED", False)
    assert now_is(job).resume()
    assert drained(job).state == "COMPLETE"


@pytest.mark.parametrize("form", [[BOOM, QUICK], {"map": BOOM, "over": "items"}])
def test_what_a_member_has_blocked_goes_on_when_its_parent_is_retried(
    form: Any, anywhere: None, settings: Any
) -> None:
    declare(settings, form)
    settings.JOBS["other"] = [QUICK]
    job = create("it", workspace={"items": [1, 2]})
    drain()
    member = members_of(job)[0]
    blocked = create("other", depends_on=[member])
    assert states(job, member, blocked) == ["FAILED", "FAILED", "BLOCKED"]
    for one in members_of(job):
        one.workspace["mended"] = True
        Job.objects.filter(pk=one.pk).update(workspace=one.workspace)
    assert now_is(job).retry()
    assert states(blocked) == ["WAITING"]
    drain()
    assert states(job, member, blocked) == ["COMPLETE"] * 3


def test_members_at_any_depth_are_deleted_with_the_outermost_job_and_not_before(
    anywhere: None, settings: Any
) -> None:
    """The inner groups have ended, one of them badly, while another branch still waits for its word."""
    declare(settings, [[QUICK, [QUICK, BOOM]], [{"wait_for": "word"}]])
    settings.JOBS["other"] = [QUICK]
    job = create("it")
    waits = create("other", depends_on=[job], on_dependency_failure="proceed")
    drain()
    ahead = timezone.now() + HOUR
    count = Job.objects.count()
    inner, waiting = members_of(job)
    assert states(job, inner, waiting, *members_of(inner)) == [
        *("WAITING", "FAILED", "WAITING"),
        *("COMPLETE", "FAILED"),
    ]
    assert count == 2 + 2 + 2
    assert engine.delete_old(ahead, "default") == 0
    assert Job.objects.count() == count
    now_is(waiting).send("word")
    drain()
    assert states(job, waiting, waits) == ["FAILED", "COMPLETE", "COMPLETE"]
    assert engine.delete_old(ahead, "default") == count
    for rows in (Job, Attempt, Dependency):
        assert not rows.objects.exists()


# -- several sessions --


@pytest.fixture
def mode_of_django() -> Iterator[None]:
    """Transactions begin as they do without ``transaction_mode``: with their first read, and no lock."""
    connection.ensure_connection()
    ours: Any = connection
    mode, ours.transaction_mode = ours.transaction_mode, None
    yield
    ours.transaction_mode = mode


def write_elsewhere() -> None:
    """Another connection writes, if nobody keeps it from doing so."""
    other = sqlite3.connect(connection.settings_dict["NAME"], timeout=0)
    with contextlib.closing(other), contextlib.suppress(sqlite3.OperationalError):
        # Something else each time: what changes nothing is no write to SQLite.
        other.execute("UPDATE django_dbq_job SET progress_message = hex(randomblob(8))")
        other.commit()


@contextlib.contextmanager
def while_others_write() -> Iterator[None]:
    """Within, somebody else writes whenever a transaction of ours has read."""
    tries = itertools.count()

    def execute(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if connection.in_atomic_block and sql.startswith("SELECT"):
            next(tries)
            write_elsewhere()
        return result

    with connection.execute_wrapper(execute):
        yield
    assert next(tries) > 0


@deferring
@committed
@pytest.mark.usefixtures("mode_of_django")
@pytest.mark.parametrize("unique", [False, True])
def test_a_retry_while_another_connection_writes(unique: bool, settings: Any) -> None:
    declare(settings, BOOM, unique=unique)
    job = create("it")
    assert drained(job).state == "FAILED"
    with while_others_write():
        assert job.retry()
    assert states(job) == ["READY"]


@deferring
@committed
@pytest.mark.usefixtures("mode_of_django")
@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_creation_that_depends_while_another_connection_writes(
    bulk: bool, unique: bool, settings: Any
) -> None:
    declare(settings, QUICK, unique=unique)
    settings.JOBS["other"] = [QUICK]
    other = create("other")
    job = Job(name="it", depends_on=[other])  # type: ignore[misc]
    with while_others_write():
        if bulk:
            Job.objects.bulk_create([job])
        else:
            job.save()
    assert states(job) == ["WAITING"]


@row_locks
@committed
def test_batches_of_unique_jobs_with_the_same_keys_in_another_order(settings: Any) -> None:
    """One has inserted its first row when the other comes: that one waits, and is not waited for."""
    declare(settings, QUICK, unique=True)
    gate = Gate()

    def bulk_create(numbers: list[int]) -> list[Job]:
        jobs = [Job(name="it", workspace={"number": number}) for number in numbers]
        return list(Job.objects.bulk_create(jobs, batch_size=1))

    def slowly(numbers: list[int]) -> list[Job]:
        inserts = itertools.count()

        def execute(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
            result = execute(sql, *args)
            if sql.startswith("INSERT INTO") and next(inserts) == 0:
                gate.stop()
            return result

        with connection.execute_wrapper(execute):
            return bulk_create(numbers)

    numbers = [1, 2, 3, 4]
    with ThreadPoolExecutor(2) as pool:
        first = aside(pool, partial(slowly, numbers))
        assert gate.reached.wait(more_tasks.PATIENCE)
        second = aside(pool, partial(bulk_create, numbers[::-1]))
        until_blocked(second)
        gate.open()
        made = first.result(more_tasks.PATIENCE)
        assert second.result(more_tasks.PATIENCE) == made[::-1]
    assert [job.workspace["number"] for job in made] == numbers
    assert Job.objects.count() == 4


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the end of some jobs be told to others only at the second try."""
    settle, tries = members.settle, itertools.count()

    def settle_later(*args: Any) -> set[str]:
        if next(tries) == 0:
            raise error
        return settle(*args)

    monkeypatch.setattr(members, "settle", settle_later)


def deadlock() -> Exception:
    """As each of the databases tells of it."""
    cause = Exception("deadlock")
    cause.sqlstate, cause.sqlite_errorcode = "40P01", sqlite3.SQLITE_BUSY  # type: ignore[attr-defined]
    error = OperationalError(1213, "deadlock")
    error.__cause__ = cause
    return error


@committed
@pytest.mark.parametrize("why", ["refused", "deadlock"])
def test_those_that_were_written_before_a_refusal_are_told_of_once(
    why: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes that concern nobody else are written first, in a transaction of their own."""
    declare(settings, QUICK)
    alone, other = create("it"), create("it")
    waits = create("it", depends_on=[other])
    hands = Hands()
    executions = list(map(hands.perform, hands.claim()))
    steps: list[Job] = []
    ends: list[Job] = []

    def hear_step(job: Job, **kwargs: Any) -> None:
        steps.append(job)

    def hear_end(job: Job, **kwargs: Any) -> None:
        ends.append(job)

    fail_once(monkeypatch, deadlock() if why == "deadlock" else IntegrityError("refused"))
    signals.step_finished.connect(hear_step)
    signals.job_finished.connect(hear_end)
    try:
        written = hands.write(*executions)
    finally:
        signals.step_finished.disconnect(hear_step)
        signals.job_finished.disconnect(hear_end)
    keys = sorted([alone.pk, other.pk])
    for told in ([e.job for e in written], steps, ends):
        assert sorted(job.pk for job in told) == keys
    assert states(alone, other, waits) == ["COMPLETE", "COMPLETE", "NEW"]
    assert Attempt.objects.count() == 2


# -- many at once --


def refuse_more(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
    """For statements that carry more than so many parameters."""
    assert len(params or ()) <= 100, f"{len(params)} parameters: {sql[:100]}"
    return execute(sql, params, *args)


def test_more_members_are_hastened_than_one_statement_takes(
    anywhere: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = 20
    declare(settings, {"map": QUICK, "over": "items"})
    settings.JOBS["other"] = [QUICK]
    job = create("it", workspace={"items": list(range(10 * batch))})
    Hands().step()
    monkeypatch.setattr(dependencies, "BATCH", batch)
    with connection.execute_wrapper(refuse_more):
        urgent = create("other", depends_on=[job], deadline=timezone.now() + HOUR)
    assert urgent.urgency > 0
    assert set(Job.objects.values_list("urgency", flat=True)) == {urgent.urgency}
    assert len(members_of(job)) == 10 * batch


def test_a_task_waits_for_more_jobs_than_one_statement_takes(
    anywhere: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.JOBS = {"act": [ACT], "quick": [QUICK]}
    monkeypatch.setattr(dependencies, "BATCH", 10)
    others = Job.objects.bulk_create(Job(name="quick", queue_name="late") for _ in range(150))
    job = create("act", does=lambda job: Wait(jobs=others) if job.attempt == 1 else None)
    with connection.execute_wrapper(refuse_more):
        drain("default")
    assert (*states(job), now_is(job).waiting_for) == ("WAITING", 150)
    drain()
    assert states(job) == ["COMPLETE"]


def test_more_jobs_wait_again_for_one_that_is_retried_than_one_statement_takes(
    anywhere: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.JOBS = more_tasks.JOBS
    job = create("boom")
    others = Job.objects.bulk_create(Job(name="quick", depends_on=[job]) for _ in range(150))
    drain()
    assert set(states(*others)) == {"BLOCKED"}
    monkeypatch.setattr(dependencies, "BATCH", 10)
    with connection.execute_wrapper(refuse_more):
        assert now_is(job).retry()
    assert set(states(*others)) == {"WAITING"}
