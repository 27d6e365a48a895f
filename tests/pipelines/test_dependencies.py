"""Jobs that wait for other jobs: declared when they are created, or asked for by their tasks."""

import datetime
import itertools
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connection, transaction
from django.test import TestCase
from django.utils import timezone

from django_dbq import Wait, dependencies, engine, members, signals
from django_dbq.dependencies import Cycle
from django_dbq.models import Dependency, Job
from django_dbq.testing import drain
from django_dbq.workers.worker import Worker as Loop
from tests.pipelines import more_tasks
from tests.pipelines.flow import EVERY, Hands, last_error, now_is, states
from tests.pipelines.more_tasks import DOES, aside, create, meeting_at, step_on, stuck
from tests.processes import outcomes
from tests.storage.sessions import elsewhere, while_uncommitted

HOUR = datetime.timedelta(hours=1)
committed = pytest.mark.django_db(transaction=True)
several_writers = pytest.mark.skipif(
    connection.vendor == "sqlite",
    reason="SQLite has one writer at a time: there is no such moment",
)


@pytest.fixture(autouse=True)
def nothing_gets_stuck(settings: Any) -> Iterator[None]:
    settings.JOBS = more_tasks.JOBS
    DOES.clear()
    yield
    assert stuck() == {}


def edges(job: Job) -> dict[uuid.UUID, str]:
    return dict(job.dependencies.values_list("on", "state"))


# -- every mode, policy and end --

MODES = [("all", "block"), ("all", "proceed"), ("any", "block"), ("any", "proceed")]
TABLE = """
complete complete    NEW     NEW     NEW     NEW
complete failed      BLOCKED NEW     NEW     NEW
complete cancelled   BLOCKED NEW     NEW     NEW
complete open        WAITING WAITING NEW     NEW
failed failed        BLOCKED NEW     BLOCKED NEW
failed cancelled     BLOCKED NEW     BLOCKED NEW
failed open          BLOCKED WAITING WAITING NEW
cancelled cancelled  BLOCKED NEW     BLOCKED NEW
cancelled open       BLOCKED WAITING WAITING NEW
open open            WAITING WAITING WAITING WAITING
"""
STANDS = {
    frozenset((first, second)): dict(zip(MODES, stands, strict=True))
    for first, second, *stands in map(str.split, TABLE.strip().splitlines())
}
ENDS = ("complete", "failed", "cancelled", "open")


def bring_about(end: str, number: int) -> Job:
    """A job that is to end so, in a queue of its own."""
    return create("boom" if end == "failed" else "quick", queue_name=f"{end} {number}")


def end_all(number: int) -> None:
    """End what `bring_about` has made, but for what is to stay open."""
    drain(f"complete {number}", f"failed {number}")
    for job in Job.objects.filter(queue_name=f"cancelled {number}"):
        assert job.cancel()


def mend_all() -> None:
    """Have everything end well that has not."""
    Job.objects.filter(name="boom").update(workspace={"mended": True})
    for job in Job.objects.filter(state__in=("FAILED", "CANCELLED")):
        assert job.retry()


def test_where_a_job_stands_when_its_dependencies_have_ended_before(anywhere: None) -> None:
    found, expected = {}, {}
    others = {(end, n): bring_about(end, n) for end in ENDS for n in (1, 2)}
    end_all(1)
    end_all(2)
    jobs = []
    for first, second, (mode, policy) in itertools.product(ENDS, ENDS, MODES):
        job = create(
            depends_on=[others[first, 1], others[second, 2]],
            depends_mode=mode,
            on_dependency_failure=policy,
        )
        jobs.append(job)
        assert now_is(job).state == job.state
        found[first, second, mode, policy] = job.state
        expected[first, second, mode, policy] = STANDS[frozenset((first, second))][mode, policy]
    assert found == expected
    mend_all()
    drain()
    assert set(states(*jobs, *others.values())) == {"COMPLETE"}


def test_where_a_job_stands_after_each_end(anywhere: None) -> None:
    jobs = {}
    for first, second in itertools.product(ENDS, ENDS):
        others = [bring_about(first, 1), bring_about(second, 2)]
        for mode, policy in MODES:
            jobs[first, second, mode, policy] = create(
                depends_on=others, depends_mode=mode, on_dependency_failure=policy
            )
    assert set(states(*jobs.values())) == {"WAITING"}

    def stand() -> dict[Any, str]:
        return dict(zip(jobs, states(*jobs.values()), strict=True))

    def expected(second_is_open: bool) -> dict[Any, str]:
        return {
            key: STANDS[frozenset((key[0], "open" if second_is_open else key[1]))][key[2:]]
            for key in jobs
        }

    end_all(1)
    assert stand() == expected(second_is_open=True)
    end_all(2)
    assert stand() == expected(second_is_open=False)
    mend_all()
    # What did not wait any more has not noticed.
    assert stand() == {
        key: state if state == "NEW" else "WAITING"
        for key, state in expected(second_is_open=False).items()
    }
    drain()
    assert set(states(*jobs.values())) == {"COMPLETE"}


class InATestCase(TestCase):
    """What a project's own tests do."""

    def test_a_diamond(self) -> None:
        top = create()
        sides = [create("two", depends_on=[top]) for _ in range(2)]
        bottom = create(depends_on=sides)
        assert states(top, *sides, bottom) == ["NEW", "WAITING", "WAITING", "WAITING"]
        assert drain() == 6
        assert set(states(top, *sides, bottom)) == {"COMPLETE"}


def test_a_job_waits_for_the_last_step_of_another(anywhere: None) -> None:
    other = create("two")
    job = create(depends_on=[other])
    step_on()
    assert states(other, job) == ["READY", "WAITING"]
    drain()
    assert states(other, job) == ["COMPLETE", "COMPLETE"]
    assert edges(job) == {other.pk: "done"}


def test_a_job_waits_for_a_group_with_all_its_members(anywhere: None) -> None:
    other = create("nested")
    job = create(depends_on=[other])
    drain()
    assert states(other, job) == ["COMPLETE", "COMPLETE"]
    last = max(child.finished for child in other.children.all())
    assert last <= now_is(other).finished <= job.attempts.get().started


def test_a_job_may_wait_for_a_member(anywhere: None) -> None:
    parent = create("group")
    step_on()
    first, second = parent.children.order_by("position")
    job = create(depends_on=[first], queue_name="own")
    assert second.cancel()
    assert job.state == "WAITING"
    drain()
    assert states(first, job, parent) == ["COMPLETE", "COMPLETE", "FAILED"]


def test_a_job_that_waits_is_due_when_its_own_time_comes(anywhere: None) -> None:
    other = create()
    job = create(depends_on=[other], run_after=timezone.now() + HOUR)
    assert drain() == 1
    job.refresh_from_db()
    assert (job.state, job.due) == ("NEW", False)
    Job.objects.filter(pk=job.pk).update(run_after=timezone.now())
    assert drain() == 1


def test_nobody_claims_a_job_that_waits(anywhere: None) -> None:
    other = create(queue_name="elsewhere")
    job = create(depends_on=[other], priority=100)
    assert drain("default") == 0
    other.cancel()
    assert drain("default") == 0
    assert states(job) == ["BLOCKED"]
    assert Job.get_queue_depths() == {}


# -- what may be given --


def test_jobs_are_given_as_themselves_or_by_their_ids(anywhere: None) -> None:
    a, b, c, d = (create() for _ in range(4))
    given = [a, b.pk, str(c.pk), d.pk.hex, str(a.pk).upper(), a.pk, now_is(b)]
    job = create(depends_on=(one for one in given))
    assert set(edges(job)) == {a.pk, b.pk, c.pk, d.pk}
    assert set(job.depends_on) == set(now_is(job).depends_on) == {a, b, c, d}
    assert now_is(job).waiting_for == 4
    drain()
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize("nothing", [[], (), None, set()])
def test_nothing_to_wait_for(anywhere: None, nothing: Any) -> None:
    job = create(depends_on=nothing, depends_mode="any")
    assert (job.state, edges(job)) == ("NEW", {})


def test_what_a_saved_job_depends_on_is_not_changed_in_silence(anywhere: None) -> None:
    job, other = create(), create()
    with pytest.raises(ValueError, match="said when it is created"):
        job.depends_on = [other]
    drain()


MISSING = uuid.UUID("00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"depends_on": [MISSING]}, ValueError, str(MISSING)),
        ({"depends_on": [str(MISSING)]}, ValueError, str(MISSING)),
        ({"depends_on": [Job(name="quick", id=MISSING)]}, ValueError, str(MISSING)),
        ({"depends_on": ["nonsense"]}, ValueError, "'nonsense' is no saved job, and no id of one"),
        ({"depends_on": [None]}, ValueError, "None is no saved job"),
        ({"depends_on": [7]}, ValueError, "7 is no saved job"),
        ({"depends_on": "nonsense"}, TypeError, "Expected: a list of jobs, or of their ids"),
        ({"depends_on": Job(name="quick")}, TypeError, "Expected: a list of jobs"),
        ({"depends_mode": "some"}, ValueError, "'some'. Expected: all or any"),
        ({"on_dependency_failure": "cry"}, ValueError, "'cry'. Expected: block or proceed"),
    ],
)
def test_what_is_refused(anywhere: None, fields: Any, error: type[Exception], message: str) -> None:
    good = create()
    with pytest.raises(error, match=message):
        create(**{"depends_on": [good], **fields})
    with pytest.raises(error, match=message):
        Job.objects.bulk_create([Job(name="quick"), Job(name="quick", **fields)])
    assert list(Job.objects.all()) == [good]
    assert not Dependency.objects.exists()
    assert drain() == 1  # and the transaction, if there is one, is usable


def test_missing_jobs_are_named_but_not_all_of_a_thousand(anywhere: None) -> None:
    with pytest.raises(ValueError, match=r"(\S+, ){4}\S+ and 995 more$"):
        create(depends_on=[uuid.uuid4() for _ in range(1000)])


def test_the_creation_hook_may_add_to_what_a_job_waits_for(anywhere: None, settings: Any) -> None:
    settings.JOBS = {
        **more_tasks.JOBS,
        "hooked": {"tasks": [more_tasks.M + "quick"], "creation_hook": more_tasks.M + "act"},
    }
    other = create()

    def depend(job: Job) -> None:
        job.depends_on = [other]

    job = create("hooked", does=depend)
    assert (job.state, edges(job)) == ("WAITING", {other.pk: "open"})


# -- many at once --


@pytest.mark.parametrize("batch_size", [None, 2])
def test_jobs_of_one_batch_wait_for_each_other_in_any_order(
    anywhere: None, batch_size: int | None
) -> None:
    before = create("two")
    first, plain = Job(name="two"), Job(name="quick")
    second = Job(name="quick", depends_on=[first, before])
    third = Job(name="quick", depends_on=[second.pk, str(first.pk)])
    jobs = [third, plain, second, first]
    assert Job.objects.bulk_create(jobs, batch_size=batch_size) == jobs
    assert [job.state for job in jobs] == ["WAITING", "NEW", "WAITING", "NEW"]
    assert states(*jobs) == ["WAITING", "NEW", "WAITING", "NEW"]
    order: list[Any] = []
    signals.job_finished.connect(note := lambda job, **kwargs: order.append(job.pk))
    drain()
    signals.job_finished.disconnect(note)
    assert set(states(*jobs)) == {"COMPLETE"}
    assert order.index(first.pk) < order.index(second.pk) < order.index(third.pk)
    assert order.index(before.pk) < order.index(second.pk)


def test_a_batch_depends_on_what_has_ended(anywhere: None) -> None:
    done, failed = create(), create("boom")
    drain()
    kinds: list[dict[str, Any]] = [
        {"depends_on": [done]},
        {"depends_on": [done, failed]},
        {"depends_on": [done, failed], "on_dependency_failure": "proceed"},
        {"depends_on": [done, failed], "depends_mode": "any"},
    ]
    jobs = Job.objects.bulk_create(Job(name="quick", **kind) for kind in kinds)
    assert states(*jobs) == ["NEW", "BLOCKED", "NEW", "NEW"]


@committed
def test_a_chain_of_300_in_the_wrong_order() -> None:
    jobs = [Job(name="quick") for _ in range(300)]
    for job, other in itertools.pairwise(jobs):
        other.depends_on = [job]
    Job.objects.bulk_create(reversed(jobs))
    assert states(*jobs) == ["NEW"] + ["WAITING"] * 299
    assert drain() == 300
    assert set(states(*jobs)) == {"COMPLETE"}


@committed
def test_a_diamond_of_2000() -> None:
    top = Job(name="quick")
    sides = [Job(name="quick", depends_on=[top]) for _ in range(2000)]
    bottom = Job(name="quick", depends_on=sides)
    Job.objects.bulk_create([bottom, *sides, top])
    assert (bottom.waiting_for, bottom.state) == (2000, "WAITING")
    Loop(EVERY, max_jobs=1).run()
    assert Job.get_queue_depths() == {"default": 2000}
    with ThreadPoolExecutor(2) as pool:

        def work() -> int:
            worker = Loop(EVERY, until_done=True)
            worker.run()
            return worker.done

        done = [aside(pool, work) for _ in range(2)]
        assert sum(call.result(120) for call in done) >= 2000
    drain()
    assert set(Job.objects.values_list("state", flat=True)) == {"COMPLETE"}
    assert outcomes(bottom) == [(1, "succeeded")]


# -- in transactions, and against the end of the other --


@committed
def test_a_creation_that_is_rolled_back_leaves_nothing() -> None:
    other = create()
    with transaction.atomic():
        kept = create(depends_on=[other])
        with transaction.atomic():
            create(depends_on=[other, kept])
            transaction.set_rollback(True)
    assert set(Job.objects.all()) == {other, kept}
    with transaction.atomic():
        create(depends_on=[kept])
        transaction.set_rollback(True)
    assert Dependency.objects.count() == 1
    assert drain() == 2


ENDINGS: dict[str, tuple[str, str]] = {  # how the other ends, and where the job stands then
    "quick": ("COMPLETE", "NEW"),
    "boom": ("FAILED", "BLOCKED"),
    "cancel": ("CANCELLED", "BLOCKED"),
}


def ending(way: str) -> tuple[Job, Callable[[], Any]]:
    """A job that is being run, and what ends it."""
    job = create("quick" if way == "cancel" else way)
    hands = Hands()
    (claimed,) = hands.claim()
    if way == "cancel":
        return job, now_is(job).cancel
    execution = hands.perform(claimed)
    return job, lambda: hands.write(execution)


@committed
@pytest.mark.parametrize("way", ENDINGS)
@pytest.mark.parametrize("bulk", [False, True])
def test_a_creation_before_the_end_of_the_other(way: str, bulk: bool) -> None:
    other, end = ending(way)
    with while_uncommitted(end):
        job = Job(name="quick", depends_on=[other])
        if bulk:
            Job.objects.bulk_create([job])
        else:
            job.save()
        assert job.state == "WAITING"
    assert tuple(states(other, job)) == ENDINGS[way]


@committed
@pytest.mark.parametrize("way", ENDINGS)
def test_a_creation_after_the_end_of_the_other(way: str) -> None:
    other, end = ending(way)
    with while_uncommitted(lambda: create(depends_on=[other])) as created:
        end()
    job = created.result()
    assert (job.state, *states(job)) == (ENDINGS[way][1],) * 2


@committed
def test_a_creation_that_is_rolled_back_does_not_keep_the_other_from_ending() -> None:
    other, end = ending("quick")
    with while_uncommitted(end, waits=None) as ended, transaction.atomic():
        create(depends_on=[other])
        transaction.set_rollback(True)
    assert ended.result()
    assert states(other) == ["COMPLETE"]


@committed
def test_a_creation_against_a_retry() -> None:
    other = create("boom")
    drain()
    with while_uncommitted(lambda: now_is(other).retry()) as retried:
        job = create(depends_on=[other])
        assert job.state == "BLOCKED"
    assert retried.result()
    assert states(other, job) == ["READY", "WAITING"]


@committed
@several_writers
def test_two_dependencies_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has been written, and neither knows of the other's end, when the first comes to tell of it."""
    others = [create(), create()]
    job = create(depends_on=others)
    hands = Hands(), Hands()
    executions = [one.perform(*one.claim(1)) for one in hands]
    with meeting_at(monkeypatch, members, "settle"), ThreadPoolExecutor(2) as pool:
        calls = [
            aside(pool, partial(one.write, e)) for one, e in zip(hands, executions, strict=True)
        ]
        assert all(call.result(more_tasks.PATIENCE) for call in calls)
    assert states(job) == ["NEW"]
    assert set(edges(job).values()) == {"done"}


# -- what a job does not wait for any more --


def any_of_two() -> tuple[Job, Job]:
    """One that has ended already, and one that has not."""
    done = create()
    drain()
    return done, create(queue_name="late")


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_the_second_of_any_has_no_say_while_the_job_waits_for_members(
    anywhere: None, end: str
) -> None:
    done, other = any_of_two()
    job = create("group of one", depends_on=[done, other], depends_mode="any")
    step_on("default")
    Job.objects.filter(pk=other.pk).update(run_after=None)
    assert states(job) == ["WAITING"]
    if end == "cancel":
        other.cancel()
    else:
        drain("late")
    job.refresh_from_db()
    assert (job.state, job.waiting_for) == ("WAITING", 1)
    drain()
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


def test_nor_has_it_after_a_pause(anywhere: None) -> None:
    """The first of any two ends while the job is paused, the second while it waits for its members."""
    first, second = create(queue_name="first"), create(queue_name="second")
    job = create("group of one", depends_on=[first, second], depends_mode="any")
    assert job.pause()
    drain("first")
    assert job.resume()
    assert job.state == "NEW"
    step_on("default")
    second.cancel()
    job.refresh_from_db()
    assert (job.state, job.waiting_for) == ("WAITING", 1)


@pytest.mark.parametrize("mode", ["all", "any"])
def test_a_failure_that_was_left_behind_is_not_waited_for_when_it_is_retried(
    anywhere: None, mode: str
) -> None:
    """The job has gone on in spite of it, and waits for its members now."""
    bad, good = create("boom"), create()
    drain()
    policy = "proceed" if mode == "all" else "block"
    job = create(
        "group of one", depends_on=[bad, good], depends_mode=mode, on_dependency_failure=policy
    )
    step_on()
    assert states(job) == ["WAITING"]
    assert bad.retry()
    job.refresh_from_db()
    assert (job.state, job.waiting_for) == ("WAITING", 1)
    drain()
    assert states(job, bad) == ["COMPLETE", "FAILED"]
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


def test_nor_after_a_pause_between_two_steps(anywhere: None) -> None:
    bad = create("boom")
    drain()
    job = create("two", depends_on=[bad], on_dependency_failure="proceed")
    step_on()
    assert states(job) == ["READY"]
    assert job.pause()
    assert bad.retry()
    assert job.resume()
    assert job.state == "READY"


def test_nor_while_it_waits_for_a_word(anywhere: None) -> None:
    bad = create("boom")
    drain()
    job = create("wait_for", depends_on=[bad], on_dependency_failure="proceed")
    drain()
    assert bad.retry()
    drain()
    assert (*states(bad, job), outcomes(job)) == ("FAILED", "WAITING", [(1, "waited")])


@committed
def test_an_end_that_is_told_late_is_not_counted_among_members() -> None:
    """When it comes to tell of it, another has freed the job, which has come to wait for its members."""
    first, second = create(), create()
    job = create("group", depends_on=[first, second], depends_mode="any")
    hands, others = Hands(), Hands("others")
    (one,), (other,) = hands.claim(1), others.claim(1)
    execution = others.perform(other)
    with while_uncommitted(lambda: others.write(execution)) as late:
        hands.write(hands.perform(one))
        assert states(job) == ["NEW"]
        assert hands.step() == [job]
        assert states(job) == ["WAITING"]
    assert late.result()
    job.refresh_from_db()
    assert (job.state, job.waiting_for) == ("WAITING", 2)


# -- BLOCKED, and back --


def test_a_blocked_job_waits_again_when_the_other_is_retried(anywhere: None) -> None:
    bad = create("boom")
    job = create(depends_on=[bad])
    drain()
    for _ in range(2):
        assert states(bad, job) == ["FAILED", "BLOCKED"]
        assert bad.retry()
        assert states(bad, job) == ["READY", "WAITING"]
        drain()
    mend_all()
    drain()
    assert states(bad, job) == ["COMPLETE", "COMPLETE"]
    assert outcomes(job) == [(1, "succeeded")]


def test_a_job_that_two_block_waits_again_when_both_are_retried(anywhere: None) -> None:
    bad, worse = create("boom"), create("boom")
    good = create(queue_name="late")
    job = create(depends_on=[bad, worse, good])
    drain("default")
    Job.objects.filter(name="boom").update(workspace={"mended": True})
    assert bad.retry()
    assert states(job) == ["BLOCKED"]
    drain("default")
    assert states(bad, job) == ["COMPLETE", "BLOCKED"]
    assert worse.retry()
    assert states(job) == ["WAITING"]
    drain("default")
    assert states(job) == ["WAITING"]
    drain()
    assert states(job) == ["COMPLETE"]


def test_what_waits_for_a_blocked_job_goes_on_waiting(anywhere: None) -> None:
    bad = create("boom")
    middle = create(depends_on=[bad])
    job = create(depends_on=[middle])
    drain()
    assert states(middle, job) == ["BLOCKED", "WAITING"]
    assert middle.cancel()
    assert states(middle, job) == ["CANCELLED", "BLOCKED"]
    assert middle.retry()
    assert states(middle, job) == ["READY", "WAITING"]
    drain()
    assert states(bad, middle, job) == ["FAILED", "COMPLETE", "COMPLETE"]


def test_a_blocked_job_that_is_retried_itself_does_not_wait_any_more(anywhere: None) -> None:
    bad, other = create("boom"), create(queue_name="late")
    job = create("two", depends_on=[bad, other])
    drain("default")
    assert states(job) == ["BLOCKED"]
    assert job.retry()
    assert (job.state, job.waiting_for) == ("READY", 0)
    step_on("default")
    other.cancel()
    assert bad.retry()
    assert states(job) == ["READY"]
    drain()
    assert (*states(job), outcomes(job)) == ("COMPLETE", [(1, "succeeded"), (2, "succeeded")])


@pytest.mark.parametrize("mode", ["all", "any"])
def test_a_cancelled_job_hears_of_nothing(anywhere: None, mode: str) -> None:
    others = [create(), create("boom")]
    job = create(depends_on=others, depends_mode=mode)
    assert job.cancel()
    drain()
    mend_all_but = now_is(others[1])
    assert mend_all_but.retry()
    assert states(job) == ["CANCELLED"]
    drain()
    assert job.retry()
    drain()
    assert states(job) == ["COMPLETE"]


# -- deleted by hand --


def mend() -> int:
    return engine.mend(timezone.now(), "default")


@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_a_deleted_dependency_counts_as_cancelled(anywhere: None, mode: str, policy: str) -> None:
    """It did not end, so nobody was told: a worker notices, once a minute."""
    for other in ("complete", "failed", "open"):
        gone, stays = create(queue_name="never"), bring_about(other, 1)
        job = create(depends_on=[gone, stays], depends_mode=mode, on_dependency_failure=policy)
        end_all(1)
        expected = STANDS[frozenset(("cancelled", other))][mode, policy]
        stood = states(job)
        Job.objects.filter(pk=gone.pk).delete()
        assert states(job) == stood
        assert mend() == (stood == ["WAITING"])
        assert mend() == 0
        assert states(job) == [expected]
        job.cancel()
        stays.cancel()


def test_workers_mend_by_themselves(anywhere: None) -> None:
    gone = create(queue_name="never")
    job = create(depends_on=[gone], on_dependency_failure="proceed")
    gone.delete()
    assert drain() == 1
    assert states(job) == ["COMPLETE"]


def test_an_end_that_somebody_has_written_by_hand_is_noticed(anywhere: None) -> None:
    other, worse = create(), create()
    job, blocked = create(depends_on=[other]), create(depends_on=[other, worse])
    now = timezone.now()
    Job.objects.filter(pk=other.pk).update(state="COMPLETE", finished=now)
    Job.objects.filter(pk=worse.pk).update(state="FAILED", finished=now)
    assert mend() == 2
    assert states(job, blocked) == ["NEW", "BLOCKED"]


def test_what_was_deleted_while_a_job_rested_is_noticed_afterwards(anywhere: None) -> None:
    other = create(queue_name="never")
    job = create(depends_on=[other])
    assert job.pause()
    other.delete()
    assert mend() == 0
    assert job.resume()
    mend()
    assert states(job) == ["BLOCKED"]
    # What it was blocked by is gone, and can be retried no more; the job itself can.
    assert job.retry()
    drain()
    assert states(job) == ["COMPLETE"]


def test_a_deleted_job_takes_its_own_dependencies_along(anywhere: None) -> None:
    other = create()
    create(depends_on=[other]).delete()
    assert not Dependency.objects.exists()
    drain()
    assert states(other) == ["COMPLETE"]


def test_nothing_is_mended_that_is_whole(anywhere: None) -> None:
    other = create(queue_name="late")
    create(depends_on=[other])
    create("group", queue_name="default")
    create("wait_for")
    create("sleep")
    step_on("default")
    before = list(Job.objects.order_by("pk").values())
    assert mend() == 0
    assert list(Job.objects.order_by("pk").values()) == before
    Job.objects.all().update(queue_name="default")


def test_old_jobs_are_deleted_beside_those_that_wait(anywhere: None) -> None:
    done, bad, other = create(), create("boom"), create(queue_name="late")
    waiting = create(depends_on=[done, other])
    drain("default")
    blocked = create(depends_on=[done, bad])
    any_of = create(depends_on=[bad, other], depends_mode="any")
    old = timezone.now() - 2 * HOUR
    Job.objects.update(created=old)
    assert engine.delete_old(timezone.now() - HOUR, "default") == 2
    assert set(Job.objects.all()) == {other, waiting, blocked, any_of}
    assert states(waiting, blocked, any_of) == ["WAITING", "BLOCKED", "WAITING"]
    assert mend() == 0
    drain()
    assert states(waiting, blocked, any_of) == ["COMPLETE", "BLOCKED", "COMPLETE"]
    assert blocked.retry()
    drain()
    Job.objects.update(created=old)
    assert engine.delete_old(timezone.now() - HOUR, "default") == 4
    assert not Job.objects.exists()
    assert not Dependency.objects.exists()


# -- circles --


def circle(*jobs: Job) -> str:
    """How the message names a circle that begins with the first of these."""
    return " -> ".join(str(job.pk) for job in (*jobs, jobs[0]))


@pytest.mark.parametrize("count", [1, 2, 3, 300])
def test_a_batch_that_goes_round_in_a_circle(anywhere: None, count: int) -> None:
    before = create()
    jobs = [Job(name="quick") for _ in range(count)]
    for job, other in zip(jobs, [*jobs[1:], jobs[0]], strict=True):
        job.depends_on = [before, other]
    tail = Job(name="quick", depends_on=[jobs[0]])
    with pytest.raises(Cycle) as raised:
        Job.objects.bulk_create([tail, Job(name="quick"), *jobs])
    assert str(raised.value).endswith(circle(*jobs))
    assert list(Job.objects.all()) == [before]
    assert not Dependency.objects.exists()
    assert drain() == 1


def test_a_batch_may_join_again(anywhere: None) -> None:
    """Many ways that lead to the same jobs are no circle, and are not all gone."""
    layers = [[Job(name="quick") for _ in range(3)] for _ in range(25)]
    for upper, lower in itertools.pairwise(layers):
        for job in lower:
            job.depends_on = upper
    jobs = [job for layer in layers for job in layer]
    Job.objects.bulk_create(reversed(jobs))
    assert drain() == 75


def test_a_job_that_is_created_to_wait_for_itself(anywhere: None) -> None:
    job = Job(name="quick")
    job.depends_on = [job]
    with pytest.raises(Cycle, match=circle(job)):
        job.save()
    assert not Job.objects.exists()


def test_a_task_that_waits_for_its_own_job(anywhere: None) -> None:
    job = create("act", does=lambda job: Wait(jobs=[job]))
    drain()
    assert states(job) == ["FAILED"]
    assert circle(job) in last_error(job)
    assert outcomes(job) == [(1, "failed")]


def test_two_tasks_that_wait_for_each_other(anywhere: None) -> None:
    a = create("act", does=lambda job: Wait(jobs=[b]))
    b = create("act", does=lambda job: Wait(jobs=[a]))
    drain()
    assert states(a, b) == ["BLOCKED", "FAILED"]
    assert circle(b, a) in last_error(b)


def test_a_task_that_waits_for_what_waits_for_it(anywhere: None) -> None:
    a = create("act", does=lambda job: Wait(jobs=[other, d]))
    b = create(depends_on=[a])
    c = create(depends_on=[create(queue_name="late"), b])
    d = create(depends_on=[c])
    other = create(queue_name="late")
    drain("default")
    assert states(a, b, c, d) == ["FAILED", "BLOCKED", "WAITING", "WAITING"]
    assert circle(a, d, c, b) in last_error(a)
    b.cancel()
    c.cancel()


def test_a_member_that_waits_for_its_parent(anywhere: None) -> None:
    job = create("group of act", does=lambda job: Wait(jobs=[job.parent_id]))
    drain()
    (member,) = job.children.all()
    assert states(job, member) == ["FAILED", "FAILED"]
    assert circle(member, job) in last_error(member)


def test_a_member_that_waits_for_what_waits_for_its_parent(anywhere: None) -> None:
    parent = create("group of act", does=lambda job: Wait(jobs=[job_]))
    job_ = create(depends_on=[parent])
    drain()
    (member,) = parent.children.all()
    assert states(parent, member, job_) == ["FAILED", "FAILED", "BLOCKED"]
    assert circle(member, job_, parent) in last_error(member)


def test_a_member_may_wait_for_another(anywhere: None, settings: Any) -> None:
    settings.JOBS = {**more_tasks.JOBS, "pair": [[more_tasks.M + "act", more_tasks.M + "quick"]]}

    def wait_for_the_other(job: Job) -> Any:
        other = Job.objects.get(parent=job.parent_id, position=1)
        return None if other.state == "COMPLETE" else Wait(jobs=[other])

    job = create("pair", does=wait_for_the_other)
    drain()
    assert states(job, *job.children.all()) == ["COMPLETE"] * 3


@committed
@pytest.mark.parametrize("there", [True, False])
def test_a_task_that_waits_is_not_run_again_as_the_database_goes_away(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its end and its outcome, which is kept until the database is back."""
    other = create("act", does=lambda job: None, queue_name="elsewhere")
    ran: list[int] = []

    def wait(job: Job) -> Any:
        ran.append(job.attempt)
        return Wait(jobs=[other.pk if there else uuid.uuid4()]) if len(ran) == 1 else None

    job = create("act", does=wait)
    hands = Hands()
    (claimed,) = (one for one in hands.claim() if one.pk == job.pk)
    with monkeypatch.context() as patch:
        patch.setattr(dependencies, "refuse", mock.Mock(side_effect=OperationalError("gone")))
        outcome = hands.perform(claimed)
    assert hands.write(outcome) == [outcome]
    assert (ran, states(job)) == ([1], ["WAITING" if there else "FAILED"])
    if not there:
        assert "Wait names jobs that do not exist" in last_error(job)


def test_a_task_may_wait_for_a_member_of_its_own(anywhere: None) -> None:
    """One that somebody has sent on again, after the group."""

    def wait_for_members(job: Job) -> Any:
        members = list(job.children.exclude(state="COMPLETE"))
        return Wait(jobs=members) if members else None

    job = create("group, ignoring, act", does=wait_for_members)
    step_on()  # the group is opened
    step_on()  # its member fails, and it is joined
    (member,) = job.children.all()
    assert states(job, member) == ["READY", "FAILED"]
    Job.objects.filter(pk=member.pk).update(workspace={"mended": True})
    assert member.retry()
    drain()
    assert states(job, member) == ["COMPLETE", "COMPLETE"]


def test_what_nobody_waits_for_any_more_makes_no_circle(anywhere: None) -> None:
    """The job was freed by another, and does not wait for the one that waits for it."""
    done = create()
    drain()
    other = create("act", does=lambda one: Wait(jobs=[job]) if one.attempt == 1 else None)
    job = create(depends_on=[done, other], depends_mode="any", queue_name="late")
    assert job.state == "NEW"
    drain("default")
    assert states(other) == ["WAITING"]
    drain()
    assert states(other, job) == ["COMPLETE", "COMPLETE"]


def test_a_cancelled_job_makes_no_circle(anywhere: None) -> None:
    other = create("act", does=lambda one: Wait(jobs=[job]) if one.attempt == 1 else None)
    job = create(depends_on=[other])
    assert job.cancel()
    drain()
    assert states(other, job) == ["BLOCKED", "CANCELLED"]
    assert job.retry()
    drain()
    assert states(other, job) == ["COMPLETE", "COMPLETE"]


def claimed_by_two(*jobs: Job) -> list[tuple[Hands, Any]]:
    """What these jobs came to, each with another worker, and not written yet."""
    found = []
    for number, job in enumerate(jobs):
        hands = Hands(f"hands {number}")
        (claimed,) = hands.claim(1)
        assert claimed == job
        found.append((hands, hands.perform(claimed)))
    return found


@committed
def test_two_tasks_that_begin_to_wait_for_each_other_at_once() -> None:
    a = create("act", does=lambda job: Wait(jobs=[b]))
    b = create("act", does=lambda job: Wait(jobs=[a]))
    (first, e), (second, f) = claimed_by_two(a, b)
    with while_uncommitted(lambda: second.write(f)) as late:
        first.write(e)
    assert late.result()
    assert states(a, b) == ["BLOCKED", "FAILED"]
    assert circle(b, a) in last_error(b)


@committed
@several_writers
def test_the_same_when_each_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has written its own outcome before it looks at the other: one of them has to give way."""
    a = create("act", does=lambda job: Wait(jobs=[b]))
    b = create("act", does=lambda job: Wait(jobs=[a]))
    claims = claimed_by_two(a, b)
    with meeting_at(monkeypatch, members, "begin"), ThreadPoolExecutor(2) as pool:
        calls = [aside(pool, partial(hands.write, e)) for hands, e in claims]
        assert all(call.result(more_tasks.PATIENCE) for call in calls)
    assert sorted(states(a, b)) == ["BLOCKED", "FAILED"]


@committed
def test_two_tasks_that_close_one_circle_at_two_places() -> None:
    """A waits for M, which waits for B; B waits for N, which waits for A; neither sees what the other begins."""
    a = create("act", does=lambda job: Wait(jobs=[m]))
    b = create("act", does=lambda job: Wait(jobs=[n]))
    m, n = create(depends_on=[b]), create(depends_on=[a])
    (first, e), (second, f) = claimed_by_two(a, b)
    with while_uncommitted(lambda: second.write(f), waits=None) as late:
        first.write(e)
    assert late.result()
    assert states(a, b, m, n) == ["WAITING", "FAILED", "BLOCKED", "WAITING"]


# -- a task asks to wait --


def twice(wait: Callable[[Job], Any]) -> Callable[[Job], Any]:
    """What a task does that waits the first time."""

    def do(job: Job) -> Any:
        job.workspace["runs"] = job.attempt
        return wait(job) if job.attempt == 1 else None

    return do


def give(outcome: Any) -> Any:
    return outcome


def throw(outcome: Any) -> Any:
    raise outcome


@pytest.mark.parametrize("end", [give, throw], ids=["returned", "raised"])
def test_a_task_that_waits_for_jobs_that_it_has_created(
    anywhere: None, end: Callable[[Any], Any]
) -> None:
    made: list[Job] = []

    def wait(job: Job) -> Any:
        made.extend(create("two") for _ in range(3))
        job.workspace["made"] = [str(one.pk) for one in made]
        return end(Wait(jobs=made))

    job = create("act", does=twice(wait), workspace={"kept": 1})
    step_on()
    job.refresh_from_db()
    assert (job.state, job.waiting_for, job.finished) == ("WAITING", 3, None)
    assert edges(job) == {one.pk: "open" for one in made}
    drain()
    job.refresh_from_db()
    assert (job.state, job.waiting_for, job.failures) == ("COMPLETE", 0, 0)
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]
    assert job.attempts.get(number=1).error == ""
    assert max(one.finished for one in map(now_is, made)) <= job.attempts.get(number=2).started
    assert job.workspace["made"] == [str(one.pk) for one in made]
    assert job.workspace["runs"] == 2


def test_the_step_is_run_again_and_the_ones_after_it_once(anywhere: None) -> None:
    other = create()
    job = create("act, act", does=lambda job: Wait(jobs=[other]) if job.attempt == 1 else None)
    drain()
    rows = list(job.attempts.order_by("pk").values_list("step", "outcome"))
    assert rows == [(0, "waited"), (0, "succeeded"), (1, "succeeded")]


def test_where_a_task_stands_when_what_it_waits_for_has_ended_before(anywhere: None) -> None:
    others = {(end, n): bring_about(end, n) for end in ENDS for n in (1, 2)}
    end_all(1)
    end_all(2)
    jobs, expected = [], []
    for first, second, (mode, policy) in itertools.product(ENDS, ENDS, MODES):
        both = [others[first, 1], others[second, 2].pk]
        wait = Wait(jobs=both, mode=mode, on_failure=policy)
        jobs.append(create("act", does=twice(lambda job, wait=wait: wait)))
        state = STANDS[frozenset((first, second))][mode, policy]
        expected.append("READY" if state == "NEW" else state)
    step_on("default")
    assert states(*jobs) == expected
    mend_all()
    drain()
    assert set(states(*jobs)) == {"COMPLETE"}
    assert {tuple(outcomes(job)) for job in jobs} == {((1, "waited"), (2, "succeeded"))}


def test_a_task_that_waits_for_one_of_several(anywhere: None) -> None:
    first, second = create(queue_name="first"), create(queue_name="second")
    wait = Wait(jobs=(one for one in (first, second, first.pk)), mode="any")
    job = create("act", does=twice(lambda job: wait))
    drain("default")
    assert (states(job), now_is(job).waiting_for) == (["WAITING"], 2)
    drain("second", "default")
    assert states(job, first) == ["COMPLETE", "NEW"]
    drain("first")
    assert states(job, first) == ["COMPLETE", "COMPLETE"]
    assert edges(job) == {first.pk: "left", second.pk: "done"}


def test_a_task_that_is_blocked_and_comes_back(anywhere: None) -> None:
    bad = create("boom")
    job = create("act", does=twice(lambda job: Wait(jobs=[bad])))
    drain()
    assert states(bad, job) == ["FAILED", "BLOCKED"]
    assert bad.retry()
    assert states(job) == ["WAITING"]
    drain()
    assert states(bad, job) == ["FAILED", "BLOCKED"]
    mend_all()
    drain()
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


def test_a_blocked_task_that_is_retried_asks_again(anywhere: None) -> None:
    bad = create("boom")
    job = create("act", does=lambda job: Wait(jobs=[bad]) if job.attempt < 3 else None)
    drain()
    for attempt in (1, 2):
        assert outcomes(job) == [(n, "waited") for n in range(1, attempt + 1)]
        assert states(job) == ["BLOCKED"]
        assert job.retry()
        drain()
    assert states(job) == ["COMPLETE"]


def test_a_task_that_waits_for_others_each_time(anywhere: None) -> None:
    """What it has waited for before has no say any more."""
    late = create(queue_name="late")

    def wait(job: Job) -> Any:
        if job.attempt == 4:
            return None
        return Wait(jobs=[late, create(), create()], mode="any")

    job = create("act", does=wait, depends_on=[create()])
    drain("default")
    assert states(job) == ["COMPLETE"]
    assert outcomes(job) == [*((n, "waited") for n in (1, 2, 3)), (4, "succeeded")]
    late.cancel()
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize("mode", ["all", "any"])
def test_a_task_that_waits_for_nothing_is_run_again_at_once(anywhere: None, mode: str) -> None:
    job = create("act", does=twice(lambda job: Wait(jobs=[], mode=mode)))
    assert drain() == 2
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


@pytest.mark.parametrize("name", ["act, hook", "act, atomic", "act_async"])
def test_a_task_that_does_not_say_what_it_waits_for_fails(anywhere: None, name: str) -> None:
    """Returning the class is what raising it is, as with a `Retry`."""
    job = create(name, does=lambda job: Wait)
    drain()
    assert states(job) == ["FAILED"]
    assert "TypeError: Wait takes either jobs or until" in last_error(job)


def test_a_task_that_waits_for_ever_fails_in_the_end(anywhere: None, settings: Any) -> None:
    settings.DBQ = {"MAX_RUNS": 5}
    job = create("act, hook", does=lambda job: Wait(jobs=[]))
    drain()
    assert outcomes(job) == [*((n, "waited") for n in range(1, 5)), (5, "waited")]
    assert states(job) == ["FAILED"]
    assert 'DBQ["MAX_RUNS"] allows 5' in last_error(job)
    assert now_is(job).workspace["failed"] == "Exhausted"


def test_waiting_is_no_failure(anywhere: None) -> None:
    """It uses up no retry, and gives none back."""

    def do(job: Job) -> Any:
        if job.attempt in (1, 3):
            return Wait(jobs=[])
        raise ValueError

    job = create("act, retried", does=do)
    drain()
    expected = ["waited", "failed", "waited", "failed"]
    assert [outcome for _, outcome in outcomes(job)] == expected
    assert states(job) == ["FAILED"]


def test_async_tasks_wait_as_well(anywhere: None) -> None:
    other = create()
    job = create("act_async", does=twice(lambda job: Wait(jobs=[other])))
    drain()
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


@pytest.mark.parametrize("jobs", [[MISSING], ["nonsense"], [None], [7], [object()]])
@pytest.mark.parametrize("name", ["act, hook", "act, atomic", "act_async", "group of act"])
def test_a_task_that_waits_for_what_does_not_exist_fails(
    anywhere: None, name: str, jobs: list[Any]
) -> None:
    """And nothing else does: the worker goes on."""
    job = create(name, does=lambda job: Wait(jobs=jobs))
    other = create()
    drain()
    assert states(job, other) == ["FAILED", "COMPLETE"]
    (attempt,) = (job.children.first() or job).attempts.all()
    assert attempt.outcome == "failed"
    if jobs == [MISSING]:
        assert str(MISSING) in attempt.error


@pytest.mark.parametrize("name", ["act", "act, atomic", "act_async", "group of act"])
def test_a_circle_fails_the_task_wherever_it_runs(anywhere: None, name: str) -> None:
    job = create(name, does=lambda job: Wait(jobs=[job]))
    other = create()
    drain()
    assert states(job, other) == ["FAILED", "COMPLETE"]
    (attempt,) = (job.children.first() or job).attempts.all()
    assert (attempt.outcome, "Cycle" in attempt.error) == ("failed", True)


def test_the_failure_hook_hears_of_a_circle(anywhere: None) -> None:
    job = create("act, hook", does=lambda job: Wait(jobs=[job]))
    drain()
    assert (*states(job), now_is(job).workspace.get("failed")) == ("FAILED", "Cycle")


@committed
def test_an_outcome_that_is_refused_takes_no_other_with_it() -> None:
    """They are written together, one of them waits for what does not exist: the other's is told of as ever."""
    good, bad = create(), create("act", does=lambda job: Wait(jobs=[MISSING]))
    waits = create(depends_on=[good])
    hands, heard = Hands(), []
    signals.step_finished.connect(note := lambda job, **kwargs: heard.append(job.pk))
    try:
        written = hands.write(*map(hands.perform, hands.claim(2)))
    finally:
        signals.step_finished.disconnect(note)
    assert {e.job.pk for e in written} == set(heard) == {good.pk, bad.pk}
    assert states(good, bad, waits) == ["COMPLETE", "FAILED", "NEW"]


@committed
def test_one_that_concerns_nobody_is_told_of_as_well() -> None:
    good, bad = create(), create("act", does=lambda job: Wait(jobs=[MISSING]))
    hands = Hands()
    written = hands.write(*map(hands.perform, hands.claim(2)))
    assert {e.job.pk for e in written} == {good.pk, bad.pk}
    assert states(good, bad) == ["COMPLETE", "FAILED"]


def test_an_atomic_step_that_returns_wait_keeps_what_it_has_written(anywhere: None) -> None:
    job = create("act, atomic", does=twice(lambda job: Wait(jobs=[create(), create("two")])))
    drain()
    assert states(*Job.objects.all()) == ["COMPLETE"] * 3
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


def test_an_atomic_step_that_raises_wait_keeps_nothing(anywhere: None) -> None:
    """As with Retry: so it cannot wait for jobs that it has created; for others it can."""
    other = create(queue_name="late")

    def wait(job: Job) -> Any:
        create()
        raise Wait(jobs=[other])

    job = create("act, atomic", does=twice(wait))
    drain("default")
    assert states(job, other) == ["WAITING", "NEW"]
    assert Job.objects.count() == 2
    drain()
    assert states(job) == ["COMPLETE"]

    def wait_for_new(job: Job) -> Any:
        raise Wait(jobs=[create()])

    job = create("act, atomic", does=wait_for_new)
    drain()
    assert (*states(job), Job.objects.count()) == ("FAILED", 3)
    assert "do not exist" in last_error(job)


@committed
def test_an_atomic_step_whose_wait_is_refused_keeps_nothing() -> None:
    def wait(job: Job) -> Any:
        return Wait(jobs=[create(), MISSING])

    job = create("act, atomic", does=wait)
    drain()
    assert list(Job.objects.all()) == [job]
    assert states(job) == ["FAILED"]


@committed
def test_what_ends_while_the_task_runs_that_will_wait_for_it() -> None:
    """The end is committed before the wait begins: it counts all the same."""
    other = create(queue_name="late")

    def wait(job: Job) -> Any:
        elsewhere(partial(drain, "late"))
        return Wait(jobs=[other])

    job = create("act", does=twice(wait))
    drain("default")
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


@committed
@pytest.mark.parametrize("way", ENDINGS)
def test_a_wait_against_the_end_of_the_other(way: str) -> None:
    for wait_first in (True, False):
        other, end = ending(way)
        job = create("act", does=twice(lambda job, other=other: Wait(jobs=[other])))
        hands = Hands("waits")
        (claimed,) = hands.claim(1)
        assert claimed == job
        waiting = partial(hands.write, hands.perform(claimed))
        first, second = (waiting, end) if wait_first else (end, waiting)
        with while_uncommitted(second) as late:
            first()
        assert late.result()
        assert states(other, job) == [ENDINGS[way][0], ENDINGS[way][1].replace("NEW", "READY")]
        Job.objects.all().delete()


# -- until a time --


def test_a_task_that_waits_for_a_time(anywhere: None) -> None:
    until = timezone.now() + HOUR
    job = create("act, act", does=lambda job: Wait(until=until) if job.attempt == 1 else None)
    assert drain() == 1
    job.refresh_from_db()
    assert (job.state, job.run_after, job.step) == ("READY", until, 0)
    Job.objects.filter(pk=job.pk).update(run_after=timezone.now())
    drain()
    assert [outcome for _, outcome in outcomes(job)] == ["waited", "succeeded", "succeeded"]


@pytest.mark.parametrize("name", ["act", "act, atomic", "act_async", "group of act"])
@pytest.mark.parametrize("end", [give, throw], ids=["returned", "raised"])
def test_a_time_that_is_past_is_now(anywhere: None, name: str, end: Callable[[Any], Any]) -> None:
    job = create(name, does=twice(lambda job: end(Wait(until=timezone.now() - HOUR))))
    drain()
    ran = job.children.first() or job
    assert (*states(job), outcomes(ran)) == ("COMPLETE", [(1, "waited"), (2, "succeeded")])


def test_a_wait_for_a_time_without_time_zones(anywhere: None, settings: Any) -> None:
    settings.USE_TZ = False
    until = datetime.datetime.now() + HOUR  # noqa: DTZ005  # naive, as all times here
    job = create("act", does=twice(lambda job: Wait(until=until)))
    drain()
    assert (*states(job), now_is(job).run_after) == ("READY", until)
    Job.objects.filter(pk=job.pk).update(run_after=until - 2 * HOUR)
    drain()
    assert states(job) == ["COMPLETE"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"jobs": [], "until": timezone.now()}, TypeError),
        ({"until": 5}, TypeError),
        ({"jobs": 5}, TypeError),
        ({"jobs": [], "mode": "most"}, ValueError),
        ({"jobs": [], "on_failure": "cry"}, ValueError),
    ],
)
def test_what_wait_does_not_take(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Wait(**arguments)
