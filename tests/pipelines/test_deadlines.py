"""Deadlines: what is due earlier runs first, and so does what it waits for."""

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction

from django_dbq import Wait, members
from django_dbq.models import Job
from django_dbq.testing import drain
from tests.pipelines import more_tasks
from tests.pipelines.flow import Hands, now_is, states
from tests.pipelines.more_tasks import (
    DOES,
    aside,
    create,
    step_on,
    stopping_at,
    stuck,
    until_blocked,
)
from tests.storage.sessions import while_uncommitted

HOUR = datetime.timedelta(hours=1)
UTC = datetime.UTC
NOON = datetime.datetime(2030, 6, 1, 12, tzinfo=UTC)
committed = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nothing_gets_stuck(settings: Any) -> Iterator[None]:
    settings.JOBS = more_tasks.JOBS
    DOES.clear()
    yield
    assert stuck() == {}


def urgencies(*jobs: Job) -> list[int]:
    found = dict(Job.objects.filter(pk__in=[job.pk for job in jobs]).values_list("pk", "urgency"))
    return [found[job.pk] for job in jobs]


def one_by_one() -> list[Job]:
    """Run all that is ready, one after the other; returns the jobs in this order, once for each step."""
    hands, ran = Hands(), []
    while jobs := hands.claim(1):
        hands.write(*map(hands.perform, jobs))
        ran += jobs
    return ran


# -- order --


def test_order_is_priority_then_deadline_then_creation(anywhere: None) -> None:
    plain, late, early, later_plain, past, low, high, also_early = (
        create(**fields)
        for fields in (
            {},
            {"deadline": NOON + HOUR},
            {"deadline": NOON},
            {},
            {"deadline": NOON - 100_000 * HOUR},
            {"deadline": NOON - HOUR, "priority": -1},
            {"priority": 1},
            {"deadline": NOON},
        )
    )
    expected = [high, past, early, also_early, late, plain, later_plain, low]
    assert list(Job.objects.all()) == expected
    with transaction.atomic():
        assert list(Job.objects.to_process("default")) == expected
    assert one_by_one() == expected


def test_a_batch_is_claimed_in_that_order(anywhere: None) -> None:
    jobs = Job.objects.bulk_create(
        Job(name="quick", deadline=NOON + number * HOUR if number % 3 else None)
        for number in range(60, 0, -1)
    )
    hands = Hands()
    claimed = hands.claim()
    assert claimed == sorted(
        jobs, key=lambda job: (job.deadline is None, job.deadline or NOON, job.created)
    )
    hands.die()


def test_deadlines_at_the_ends_of_time(anywhere: None) -> None:
    found = [
        create(deadline=deadline)
        for deadline in (
            datetime.datetime(1, 1, 2, tzinfo=UTC),
            NOON,
            NOON + datetime.timedelta(milliseconds=1),
            datetime.datetime(9999, 12, 30, tzinfo=UTC),
            None,
        )
    ]
    values = urgencies(*found)
    assert values == sorted(set(values), reverse=True)
    assert values[-1] == 0
    assert list(Job.objects.all()) == found
    drain()


@pytest.mark.parametrize(
    "deadline",
    [
        NOON.astimezone(datetime.timezone(5 * HOUR)),
        "2030-06-01T12:00:00Z",
        "2030-06-01T14:00:00+02:00",
    ],
)
def test_a_deadline_in_other_words(anywhere: None, deadline: Any) -> None:
    job, same = create(deadline=deadline), create(deadline=NOON)
    assert (now_is(job).deadline, *urgencies(job)) == (NOON, *urgencies(same))
    drain()


@pytest.mark.parametrize("deadline", ["soon", 5, object(), datetime.timedelta(1), "2030-02-30"])
def test_what_is_no_deadline(anywhere: None, deadline: Any) -> None:
    with pytest.raises(ValueError if isinstance(deadline, str) else TypeError) as caught:
        create(deadline=deadline)
    assert str(caught.value) == f"deadline is {deadline!r}. Expected: a datetime."
    assert not Job.objects.exists()


def test_without_time_zones(anywhere: None, settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Vienna"
    noon = datetime.datetime(2030, 6, 1, 12)  # noqa: DTZ001  # naive, as all times here
    other = create()
    late, early = create(deadline=noon + HOUR), create(deadline=noon)
    waits = create(deadline=noon - HOUR, depends_on=[other])
    assert list(Job.objects.all()) == [other, waits, early, late]
    assert now_is(early).deadline == noon
    assert urgencies(waits)[0] - urgencies(early)[0] == 3_600_000
    with pytest.raises(ValueError, match=r"deadline is .*which has a time zone; USE_TZ is off"):
        create(deadline=NOON)
    drain()


def test_a_deadline_that_is_set_later_counts(anywhere: None) -> None:
    other = create()
    first, second = create(), create(depends_on=[other])
    second.deadline = NOON
    second.save()
    assert urgencies(other, first, second) == [*urgencies(second, first, second)]
    assert urgencies(second)[0] > 0
    drain()


def test_a_deadline_that_is_postponed_or_given_up_counts_no_more(anywhere: None) -> None:
    job, late = create(deadline=NOON), create(deadline=NOON + HOUR)
    job.deadline = NOON + HOUR
    job.save()
    assert urgencies(job) == urgencies(late)
    job.deadline = None
    job.save(update_fields=["deadline"])
    assert urgencies(job) == [0]
    Job.objects.filter(pk=job.pk).update(deadline=NOON + HOUR)
    assert urgencies(job) == urgencies(late)
    drain()


def test_what_others_wait_for_stays_as_urgent_as_they_are(anywhere: None) -> None:
    job = create()
    waits = create(depends_on=[job], deadline=NOON)
    job = now_is(job)
    job.deadline = NOON + HOUR
    job.save()
    assert urgencies(job) == urgencies(waits)
    drain()


# -- what a job waits for is as urgent as itself --


def test_a_chain_inherits(anywhere: None) -> None:
    a, plain = create(), create()
    b = create(depends_on=[a])
    c = create(depends_on=[b])
    assert urgencies(a, b, c) == [0, 0, 0]
    job = create(depends_on=[c], deadline=NOON)
    assert urgencies(a, b, c) == urgencies(job) * 3
    assert urgencies(plain) == [0]
    assert [now_is(one).deadline for one in (a, b, c)] == [None] * 3
    later = create(depends_on=[a], deadline=NOON - HOUR)
    assert urgencies(a) == urgencies(later)
    assert urgencies(b, c) == urgencies(job) * 2
    last = create(depends_on=[a], deadline=NOON + HOUR)
    assert urgencies(a) == urgencies(later)
    assert one_by_one() == [a, later, b, c, job, last, plain]


def test_a_deadline_of_its_own_is_kept_if_it_is_earlier(anywhere: None) -> None:
    a = create(deadline=NOON)
    b = create(depends_on=[a])
    job = create(depends_on=[b], deadline=NOON + HOUR)
    assert urgencies(b) == urgencies(job)
    assert urgencies(a) > urgencies(job)
    drain()


def test_a_batch_inherits_in_any_order(anywhere: None) -> None:
    before = create()
    a = Job(name="quick", depends_on=[before])
    b = Job(name="quick", depends_on=[a])
    early = Job(name="quick", depends_on=[b], deadline=NOON)
    late = Job(name="quick", depends_on=[b, a], deadline=NOON + HOUR)
    Job.objects.bulk_create([late, early, b, a])
    assert urgencies(before, a, b) == urgencies(early) * 3 == [early.urgency] * 3
    assert a.urgency == b.urgency == early.urgency > late.urgency == urgencies(late)[0]
    drain()


def test_a_long_chain_inherits(anywhere: None) -> None:
    jobs = [Job(name="quick") for _ in range(300)]
    for job, other in zip(jobs[1:], jobs, strict=False):
        job.depends_on = [other]
    Job.objects.bulk_create(jobs)
    job = create(depends_on=[jobs[-1]], deadline=NOON)
    assert urgencies(*jobs) == urgencies(job) * 300
    drain()


def test_what_has_ended_or_is_not_waited_for_inherits_nothing(anywhere: None) -> None:
    before, done, bad = create(), create(), create("boom")
    drain()
    rest = create(depends_on=[done])
    job = create(depends_on=[done, bad, rest], on_dependency_failure="proceed", deadline=NOON)
    assert urgencies(before, done, bad, rest) == [0, 0, 0, *urgencies(job)]
    drain()


def test_members_inherit_and_so_do_theirs(anywhere: None) -> None:
    parent = create("nested")
    for _ in range(3):
        step_on()
    found = list(Job.objects.exclude(state="COMPLETE"))
    assert [job.parent_id is None for job in found].count(False) == 3  # one of them has two
    waits = create(depends_on=[parent], deadline=NOON)
    assert urgencies(*found) == urgencies(waits) * 4
    drain()
    assert set(states(*Job.objects.all())) == {"COMPLETE"}


def test_members_that_come_later_inherit(anywhere: None) -> None:
    parent = create("nested")
    waits = create(depends_on=[parent], deadline=NOON)
    drain()
    assert Job.objects.filter(parent__isnull=False).count() == 4
    assert set(urgencies(*Job.objects.all())) == set(urgencies(waits))


def test_a_parent_passes_its_deadline_on_to_members(anywhere: None) -> None:
    job = create("map", workspace={"items": [1, 2, 3]}, deadline=NOON)
    step_on()
    assert urgencies(*job.children.all()) == urgencies(job) * 3
    drain()


def test_what_a_member_waits_for_inherits_from_its_parent(anywhere: None) -> None:
    other = create(queue_name="late")
    job = create("group of act", does=lambda member: Wait(jobs=[other]), deadline=NOON)
    drain("default")
    assert urgencies(other) == urgencies(job)
    job.cancel()
    drain()


def test_what_a_waiting_member_waits_for_inherits_from_who_waits_for_its_parent(
    anywhere: None,
) -> None:
    other = create(queue_name="late")
    parent = create("group of act", does=lambda member: Wait(jobs=[other]))
    drain("default")
    waits = create(depends_on=[parent], deadline=NOON)
    assert urgencies(other, parent, *parent.children.all()) == urgencies(waits) * 3
    parent.cancel()
    drain()


def test_what_a_task_waits_for_inherits(anywhere: None) -> None:
    made: list[Job] = []

    def wait(job: Job) -> Any:
        made.extend([create("two"), create("group")])
        return Wait(jobs=made) if job.attempt == 1 else None

    job = create("act", does=wait, deadline=NOON)
    step_on()
    assert urgencies(*made) == urgencies(job) * 2
    drain()


def test_one_that_becomes_urgent_while_it_opens_a_group_passes_that_on(anywhere: None) -> None:
    """Somebody who cannot wait depends on it after its claim, and before its members are there."""

    def become_urgent(job: Job) -> None:
        create(depends_on=[job], deadline=NOON)

    job = create("group, acting first", does=become_urgent)
    step_on()
    assert urgencies(job)[0] > 0
    assert urgencies(*job.children.all()) == urgencies(job)
    drain()


def test_one_that_becomes_urgent_before_it_asks_to_wait_passes_that_on(anywhere: None) -> None:
    made: list[Job] = []

    def wait(job: Job) -> Any:
        if job.attempt == 2:
            return None
        create(depends_on=[job], deadline=NOON)
        made.append(create())
        return Wait(jobs=made)

    job = create("act", does=wait)
    step_on()
    assert urgencies(job)[0] > 0
    assert urgencies(*made) == urgencies(job)
    drain()


def test_one_that_is_retried_is_as_urgent_as_those_whom_it_blocks(anywhere: None) -> None:
    bad, parent = create("boom"), create("group of boom")
    drain()
    members = list(parent.children.all())
    waits = create(depends_on=[bad, parent], deadline=NOON)
    assert states(bad, parent, *members, waits) == ["FAILED"] * 3 + ["BLOCKED"]
    Job.objects.update(workspace={"mended": True})
    assert bad.retry()
    assert parent.retry()
    assert urgencies(bad, parent, *members) == urgencies(waits) * 3
    drain()
    assert states(waits) == ["COMPLETE"]


def test_a_fork_has_the_deadline_of_its_own_job_only(anywhere: None) -> None:
    """Whoever waits for that one does not wait for the fork."""
    job, other = create(), create(deadline=NOON)
    create(depends_on=[job, other], deadline=NOON - HOUR)
    fork, again = now_is(job).fork(), now_is(other).fork()
    assert (fork.deadline, *urgencies(fork)) == (None, 0)
    assert (again.deadline, *urgencies(again)) == (NOON, *urgencies(create(deadline=NOON)))
    drain()


# -- beside others --


@committed
def test_urgency_does_not_get_in_the_way_of_a_running_job() -> None:
    """The chain is hastened while one of it is being run; what that comes to is written as ever."""
    other = create("two")
    hands = Hands()
    (claimed,) = hands.claim()
    job = create(depends_on=[other], deadline=NOON)
    assert hands.write(hands.perform(claimed))
    other.refresh_from_db()
    assert (other.state, other.urgency) == ("READY", job.urgency)
    drain()


@committed
@pytest.mark.parametrize("ends_first", [True, False])
def test_a_chain_is_hastened_while_its_first_job_ends(
    ends_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end goes down the chain, the hurry goes up: neither may fail, or wait for ever."""
    if connection.vendor == "sqlite" and ends_first:
        pytest.skip("SQLite has one writer at a time: there is no such moment")
    first = create()
    second = create(depends_on=[first])
    hands = Hands()
    execution = hands.perform(*hands.claim())
    write = partial(hands.write, execution)
    hurry = partial(create, depends_on=[second], deadline=NOON)
    if not ends_first:
        with while_uncommitted(write, waits=None) as written:
            job = hurry()
        assert written.result()
    else:
        with (
            ThreadPoolExecutor(2) as pool,
            stopping_at(monkeypatch, members, "settle") as gate,
        ):
            ending = aside(pool, write)
            assert gate.reached.wait(more_tasks.PATIENCE)
            hurrying = aside(pool, hurry)
            until_blocked(hurrying)
            gate.open()
            assert ending.result(more_tasks.PATIENCE)
            job = hurrying.result(more_tasks.PATIENCE)
    assert states(first, second, job) == ["COMPLETE", "NEW", "WAITING"]
    assert urgencies(second) == urgencies(job)
    drain()
