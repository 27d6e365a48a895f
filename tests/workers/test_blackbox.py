"""The memory that worker and watchdog share: what is written, what is read, and from where."""

import datetime
import os
import sys
import threading
import time
from uuid import UUID, uuid4

import pytest

from django_dbq.workers.blackbox import Blackbox, Entry, now
from tests.workers.scenarios import playing

STARTED = datetime.datetime(2026, 11, 3, 1, 30, 0, 123457, tzinfo=datetime.UTC)


def test_a_new_one_says_nothing() -> None:
    box = Blackbox()
    assert (box.worker_id, box.leave_by, box.ended) == (0, 0.0, False)
    assert box.entries() == box.overdue(float("inf")) == []


def test_the_header() -> None:
    box = Blackbox(slots=1)
    box.worker_id, box.leave_by, box.ended = 2**62 + 1, 12345.678, True
    assert (box.worker_id, box.leave_by, box.ended) == (2**62 + 1, 12345.678, True)
    assert box.entries() == []


@pytest.mark.parametrize("started", [STARTED, STARTED.replace(tzinfo=None)])
def test_an_entry_is_read_as_it_was_written(started: datetime.datetime) -> None:
    box, job = Blackbox(), uuid4()
    slot = box.enter(job, 7, started, 12.5)
    assert box.entries() == [Entry(slot, job, 7, started, 12.5)]
    box.leave(slot)
    assert box.entries() == []


def test_times_keep_their_microseconds() -> None:
    box = Blackbox(slots=1)
    for microsecond in range(0, 1_000_000, 1009):
        started = STARTED.replace(year=2200, microsecond=microsecond)
        slot = box.enter(uuid4(), 1, started, 1.0)
        assert box.entries()[0].started == started
        box.leave(slot)


def test_overdue_is_what_has_passed_its_deadline() -> None:
    box, jobs = Blackbox(), [uuid4() for _ in range(4)]
    for deadline, job in enumerate(jobs, start=1):
        box.enter(job, 1, STARTED, deadline)
    assert box.overdue(1.0) == []
    assert {entry.job_id for entry in box.overdue(3.0)} == set(jobs[:2])
    assert {entry.job_id for entry in box.overdue(9.0)} == set(jobs)


def test_one_more_than_fit_is_left_out_and_harms_nobody() -> None:
    box = Blackbox(slots=2)
    slots = [box.enter(uuid4(), 1, STARTED, 1.0) for _ in range(3)]
    assert sorted(slots) == [-1, 0, 1]
    before = box.entries()
    box.leave(-1)
    assert box.entries() == before
    assert box.enter(uuid4(), 1, STARTED, 1.0) == -1
    box.leave(slots[0])
    assert box.enter(uuid4(), 1, STARTED, 1.0) == slots[0]


def test_threads_never_share_a_slot() -> None:
    box, wrong = Blackbox(slots=8), []

    def work() -> None:
        for _ in range(2000):
            job = uuid4()
            slot = box.enter(job, 1, STARTED, 1.0)
            if slot < 0 or [e.job_id for e in box.entries() if e.slot == slot] != [job]:
                wrong.append(slot)
            box.leave(slot)

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert box.entries() == []


def write_and_die() -> None:
    """A child writes and kills itself; its parent reads."""
    box, job = Blackbox(), uuid4()
    begun = now()
    if not os.fork():
        box.worker_id, box.leave_by = 5, now()
        box.leave(box.enter(uuid4(), 1, STARTED, now()))
        box.enter(job, 2, STARTED, now())
        os.kill(os.getpid(), 9)
    os.wait()
    assert box.worker_id == 5
    assert begun <= box.leave_by <= box.entries()[0].deadline <= now(), "it is one clock"
    assert [(e.job_id, e.attempt) for e in box.overdue(now())] == [(job, 2)]


def write_and_read_at_once() -> None:
    """A child enters and leaves all the time; what its parent reads is always one whole entry."""
    box = Blackbox(slots=1)
    child = os.fork()
    number = 0
    while not child:
        number += 1
        started = STARTED + datetime.timedelta(seconds=number)
        slot = box.enter(UUID(int=number), number, started, number)
        for _ in range(number % 200):
            pass  # now long enough to be read, now too short
        box.leave(slot)
    seen, until = set(), time.monotonic() + 1
    while len(seen) < 20 or time.monotonic() < until:
        for entry in box.entries():
            started = STARTED + datetime.timedelta(seconds=entry.attempt)
            whole = Entry(0, UUID(int=entry.attempt), entry.attempt, started, entry.attempt)
            assert entry == whole
            seen.add(entry.attempt)
    os.kill(child, 9)
    os.wait()


@pytest.mark.parametrize("scenario", [write_and_die, write_and_read_at_once])
def test_between_processes(scenario: object) -> None:
    with playing(scenario) as process:  # type: ignore[arg-type]
        assert process.wait() == 0
