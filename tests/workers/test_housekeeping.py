"""What workers do for all of them between jobs: when they look, by the clock that they are given."""

import datetime
import logging

import pytest
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Job
from django_dbq.storage import Queues
from django_dbq.workers.housekeeping import Housekeeping

pytestmark = pytest.mark.django_db

NOW = timezone.now() + datetime.timedelta(
    days=1
)  # so that a job which is due now is not when it is created
SECOND = datetime.timedelta(seconds=1)


def create(after: datetime.timedelta | None = None, queue: str = "default") -> None:
    run_after = None if after is None else NOW + after
    Job.objects.create(name="quick", run_after=run_after, queue_name=queue)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[datetime.datetime]:
    """The times at which it looked for due jobs."""
    times: list[datetime.datetime] = []
    stage_due = engine.stage_due

    def look(now: datetime.datetime, using: str) -> int:
        times.append(now)
        return stage_due(now, using)

    monkeypatch.setattr(engine, "stage_due", look)
    return times


def test_a_busy_worker_looks_now_and_then(looks: list[datetime.datetime]) -> None:
    create(30 * SECOND)
    house = Housekeeping(Queues(), 10, "default")
    assert [house.run(NOW + n * SECOND) for n in range(0, 45, 5)] == [0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert looks == [NOW + n * SECOND for n in (0, 10, 20, 30, 40)]


def test_an_idle_worker_looks_when_the_next_job_is_due(looks: list[datetime.datetime]) -> None:
    create(2 * SECOND, "another")
    create(3 * SECOND)
    house = Housekeeping(Queues(), 10, "default")
    assert house.run(NOW) == 0
    assert house.idle(NOW) == NOW + 3 * SECOND
    assert house.run(NOW + 2.9 * SECOND) == 0
    assert len(looks) == 1
    assert house.run(NOW + 3 * SECOND) == 2, "due jobs of all queues"
    assert house.idle(NOW + 3 * SECOND) is None


def test_a_clock_that_was_set_back_does_not_put_looking_off(
    looks: list[datetime.datetime],
) -> None:
    house = Housekeeping(Queues(), 10, "default")
    house.run(NOW)
    house.run(NOW - 3600 * SECOND)
    assert looks == [NOW, NOW - 3600 * SECOND]


def test_many_due_jobs_are_let_in_over_several_rounds(
    looks: list[datetime.datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("storage.base", "workers.housekeeping"):
        monkeypatch.setattr(f"django_dbq.{module}.PEEK", 4)
    for _ in range(10):
        create(SECOND)
    house = Housekeeping(Queues(), 10, "default")
    assert [house.run(NOW + SECOND) for _ in range(4)] == [4, 4, 2, 0]
    assert len(looks) == 3


def test_stranded_jobs_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    house = Housekeeping(Queues(), 1, "default")
    create()
    create()
    create(queue="another")
    create(3600 * SECOND)

    def told(after: datetime.timedelta) -> list[str]:
        caplog.clear()
        house.idle(NOW + after)
        return [record.getMessage().partition(" (")[0] for record in caplog.records]

    text = "Stranded jobs, JOBS does not know their name or step: count={} name={} next_task={}"
    with caplog.at_level(logging.WARNING, "django_dbq"):
        assert told(0 * SECOND) == []
        Job.objects.update(name="gone")
        assert told(30 * SECOND) == [], "it looks once in a minute"
        first = text.format(2, "gone", "tests.process_jobs.quick")
        assert told(61 * SECOND) == [first]
        assert told(122 * SECOND) == []
        Job.objects.filter(queue_name="default").update(next_task="")
        assert told(183 * SECOND) == [text.format(2, "gone", "''")]
        Job.objects.update(name="quick", next_task="tests.process_jobs.quick")
        assert told(244 * SECOND) == []
        Job.objects.filter(run_after=None).update(name="gone")
        assert told(305 * SECOND) == [first], "they were gone in between"


def test_stranding_counts_by_name_and_step() -> None:
    create()
    create()
    assert engine.stranded(Queues(), NOW, "default") == {}
    Job.objects.update(next_task="elsewhere")
    assert engine.stranded(Queues(), NOW, "default") == {("quick", "elsewhere"): 2}
    assert engine.stranded(Queues(("default",), exclude=True), NOW, "default") == {}
