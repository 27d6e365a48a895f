"""The thread beside the tasks: what it does while one runs, and that no error ends it."""

import datetime
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from django_dbq.models import Worker
from django_dbq.workers import minder
from django_dbq.workers.inflight import InFlight
from django_dbq.workers.minder import Minder
from tests.process_jobs import until


class Duties:
    """A worker that only notes what its minder asks of it."""

    def __init__(self) -> None:
        self.row = Worker(label="ours")
        self.using = "default"
        self.inflight = InFlight()
        self.stopping = False
        self.leave_by = math.inf
        self.asked: list[str] = []
        self.errors: list[BaseException] = []
        self.threads: set[str] = set()

    def _do(self, duty: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.asked.append(duty)
        if self.errors:
            raise self.errors.pop(0)

    def write_outcomes(self) -> None:
        self._do("write")
        self.inflight.take_unwritten()

    def hand_back(self) -> None:
        self._do("hand back")
        self.inflight.take_waiting()

    def clock(self) -> datetime.datetime:
        return timezone.now()


@pytest.fixture
def duties(monkeypatch: pytest.MonkeyPatch) -> Any:
    duties = Duties()
    monkeypatch.setattr("django_dbq.engine.stopping", lambda *given: duties._do("mark"))
    this = Minder(duties)
    duties.minder = this  # type: ignore[attr-defined]
    this.start()
    yield duties
    this.end()
    assert not this._thread.is_alive()


def begin(duties: Any, *jobs: Any) -> None:
    """The worker has claimed these."""
    duties.inflight.load(jobs)
    duties.minder.active = True
    duties.minder.bell.ring()


class Thing:
    """A job or an execution, as far as what is in flight is concerned."""

    def __init__(self) -> None:
        self.pk = id(self)
        self.job = self
        self.progress_unsaved = False


def test_what_waits_too_long_is_handed_back(duties: Any) -> None:
    begin(duties, Thing(), Thing())
    until(lambda: duties.asked == ["hand back"])
    assert duties.threads == {"dbq-minder"}


def test_an_outcome_that_waits_is_written(duties: Any) -> None:
    thing = Thing()
    begin(duties, thing, Thing())
    assert duties.inflight.start().job is thing
    duties.inflight.end(thing)
    assert duties.inflight.start()
    until(lambda: duties.asked == ["write"])


def test_a_stop_hands_back_and_marks_each_running_job_once(duties: Any) -> None:
    begin(duties, Thing(), Thing())
    duties.inflight.start()
    duties.stopping = True
    duties.minder.bell.ring()
    until(lambda: "mark" in duties.asked)
    looks = len(duties.asked)
    until(lambda: len(duties.asked) > looks + 3)
    assert duties.asked[:2] == ["hand back", "mark"]
    assert duties.asked.count("mark") == 1


@pytest.mark.parametrize(
    "error", [DatabaseError("away"), InterfaceError("closed"), AttributeError("a mistake")]
)
def test_no_error_ends_it(
    duties: Any, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minder, "AFTER_ERROR", 0.01)
    duties.errors = [error]
    with caplog.at_level(logging.WARNING, "django_dbq"):
        begin(duties, Thing())
        until(lambda: duties.asked == ["hand back", "hand back"])
    (record,) = caplog.records
    assert record.exc_info[1] is error


def test_it_sleeps_while_nothing_is_in_flight(duties: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    wait: Callable[[float | None], bool] = duties.minder.bell.wait
    looked = threading.Event()

    def note(timeout: float | None) -> bool:
        waits.append(timeout)
        looked.set()
        return wait(timeout)

    monkeypatch.setattr(duties.minder.bell, "wait", note)
    duties.minder.bell.ring()
    assert looked.wait(10)
    assert waits == [None]
    assert duties.asked == []
