"""Trying again: how often and when, what it leaves behind, and who is told."""

import datetime
import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from django_dbq import Abort, Retry, runner
from django_dbq.models import Attempt, Job, QueuePlace
from django_dbq.outcomes import Exhausted, TimedOut
from django_dbq.storage import Queues
from django_dbq.testing import drain
from django_dbq.workers.worker import Worker
from tests.jobs import Boom, ran

pytestmark = pytest.mark.django_db

START = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
HOOKS = {
    hook: f"tests.jobs.{hook}"
    for hook in ("pre_task_hook", "post_task_hook", "failure_hook", "completion_hook")
}

Declare = Callable[..., Job]


@pytest.fixture
def declare(settings: Any) -> Declare:
    """Declare the one job there is, of these tasks, and create it."""

    def make(*tasks: Any, **options: Any) -> Job:
        paths = [f"tests.jobs.{task}" if isinstance(task, str) else task for task in tasks]
        settings.JOBS = {"feed": {"tasks": paths, **options}}
        job: Job = Job.objects.create(name="feed")
        return job

    return make


Does = Callable[..., list[int]]


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Does:
    """Let the task ``one`` do these things, one each time it is run: an exception is raised, the rest returned.

    Returns the attempt numbers of its runs so far, a list that grows.
    """

    def script(*things: Any) -> list[int]:
        rest, runs = list(things), list[int]()

        def task(job: Job) -> Any:
            runs.append(job.attempt)
            thing = rest.pop(0)
            if isinstance(thing, BaseException) and not getattr(thing, "returned", False):
                raise thing
            return thing

        monkeypatch.setattr("tests.jobs.one", task)
        return runs

    return script


def returned(error: Any) -> Any:
    """The same, for a task that returns it."""
    error.returned = True
    return error


def outcomes(job: Job) -> list[str]:
    """The outcomes of its attempts, which are numbered without a gap."""
    attempts = list(job.attempts.order_by("pk"))
    assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
    return [attempt.outcome for attempt in attempts]


def stands(job: Job) -> tuple[str, int, int]:
    job.refresh_from_db()
    return job.state, job.failures, job.lost


# -- how often --


@pytest.mark.parametrize(("retries", "runs"), [(None, 1), (0, 1), (1, 2), (3, 4)])
def test_a_failing_step_has_its_retries(declare: Declare, retries: int | None, runs: int) -> None:
    job = declare("fail", retries=retries)
    assert drain() == runs
    assert stands(job) == ("FAILED", 0, 0)
    assert outcomes(job) == ["failed"] * runs
    assert ran(job) == ["fail"] * runs, "what a failing attempt leaves in the workspace is kept"


def test_hooks_of_a_step_that_is_tried_again(declare: Declare) -> None:
    """The failure hook is for a job that has failed, not for a try."""
    job = declare("fail", retries=2, **HOOKS)
    assert drain() == 3
    one_try = ["pre hook", "fail", "post hook"]
    last = ["pre hook", "fail", "failure hook: it went wrong", "post hook"]
    assert ran(job) == one_try + one_try + last


def test_hooks_see_that_the_step_comes_again(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "tests.jobs.post_task_hook", lambda job: seen.append((job.state, job.next_task))
    )
    declare("fail", "two", retries=1, **HOOKS)
    assert drain() == 2
    assert seen == [("READY", "tests.jobs.fail"), ("FAILED", "tests.jobs.fail")]


def test_a_step_that_recovers(declare: Declare, does: Does) -> None:
    runs = does(Boom("1"), Boom("2"), None)
    job = declare("one", "two", retries=2, **HOOKS)
    assert drain() == 4
    assert runs == [1, 2, 3]
    assert stands(job) == ("COMPLETE", 0, 0)
    assert outcomes(job) == ["failed", "failed", "succeeded", "succeeded"]
    assert "failure hook" not in str(ran(job))


def test_each_step_has_its_own_retries(declare: Declare, does: Does) -> None:
    runs = does(Boom(), None, Boom(), None, Boom(), None)
    job = declare("one", "one", "one", retries=1)
    assert drain() == 6
    assert runs == [1, 2, 3, 4, 5, 6]
    assert stands(job) == ("COMPLETE", 0, 0)


def test_failures_are_counted_in_the_row(declare: Declare, does: Does) -> None:
    does(Boom(), Boom())
    job = declare("one", retries=2, retry_delay=60, retry_backoff=1)
    for count in (1, 2):
        Job.objects.update(run_after=None)
        assert drain() == 1
        assert stands(job) == ("READY", count, 0)


def test_a_job_that_is_sent_on_again_has_all_its_retries(declare: Declare) -> None:
    job = declare("fail", retries=1)
    assert drain() == 2
    Job.objects.update(state="READY")
    assert drain() == 2
    assert stands(job) == ("FAILED", 0, 0)
    assert outcomes(job) == ["failed"] * 4


@pytest.mark.parametrize(
    ("options", "runs"),
    [({}, 3), ({"retries": None}, 3), ({"retries": 0}, 1), ({"retries": 4}, 5)],
    ids=repr,
)
def test_the_workers_retries_are_for_steps_that_do_not_say(
    declare: Declare, options: dict[str, Any], runs: int
) -> None:
    job = declare("fail", **options)
    Worker(Queues(), until_done=True, retries=2).run()
    assert outcomes(job) == ["failed"] * runs


def test_a_steps_retries_count_more_than_its_jobs(declare: Declare) -> None:
    job = declare({"task": "tests.jobs.fail", "retries": 2}, retries=5)
    assert drain() == 3
    assert stands(job) == ("FAILED", 0, 0)


# -- when --


def test_the_next_attempt_waits_for_its_time(declare: Declare, does: Does) -> None:
    does(Boom(), Boom(), None)
    job = declare("one", retries=2, retry_delay=100, retry_backoff=3)
    for delay in (100, 300):
        assert drain() == 1
        job.refresh_from_db()
        (attempt,) = job.attempts.filter(number=job.attempt)
        assert job.run_after is not None
        early = datetime.timedelta(seconds=delay - 10)
        assert attempt.started + early < job.run_after <= attempt.finished + 2 * early
        assert (job.state, job.due) == ("READY", False)
        assert drain() == 0
        Job.objects.update(run_after=None)
    assert drain() == 1
    assert stands(job) == ("COMPLETE", 0, 0)


def test_the_delay_counts_from_the_clock(declare: Declare, does: Does) -> None:
    does(Boom())
    job = declare("one", retries=1, retry_delay=100)
    job.claimed_at = job.place
    times = iter([START, START + HOUR, START + 2 * HOUR])
    execution = runner.run(job, lambda: next(times))
    assert (execution.started, execution.finished) == (START, START + 2 * HOUR)
    then = START + HOUR + datetime.timedelta(seconds=100)
    assert execution.decision.run_after == then
    assert execution.moved_to == QueuePlace("default", 0, then)


def test_without_a_delay_the_job_keeps_its_place(declare: Declare, does: Does) -> None:
    does(Boom())
    job = declare("one", retries=1)
    job.claimed_at = job.place
    assert runner.run(job, lambda: START).moved_to is None


def test_jitter_is_drawn_for_each_job(
    declare: Declare, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(*[Boom()] * 2)
    job = declare("one", retries=1, retry_delay=100, retry_jitter=True)
    delays = []
    for chance in (0.0, 0.25):
        monkeypatch.setattr("random.random", lambda chance=chance: chance)
        run_after = runner.run(job, lambda: START).decision.run_after
        assert run_after is not None
        delays.append((run_after - START).total_seconds())
    assert delays == [50, 62.5]


def test_what_the_task_has_changed_of_its_place_holds_for_the_retry(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(job: Job) -> None:
        job.queue_name, job.priority, job.run_after = "other", 5, timezone.now() + 9 * HOUR
        raise Boom

    monkeypatch.setattr("tests.jobs.one", move)
    job = declare("one", retries=1, retry_delay=60)
    assert drain() == 1
    job.refresh_from_db()
    assert (job.state, job.queue_name, job.priority) == ("READY", "other", 5)
    assert job.run_after is not None
    assert job.run_after < timezone.now() + HOUR, "the delay decides, not what the task has set"


# -- for which errors --


class Special(Boom):
    """Known by its dotted path."""


not_an_exception = "a string"


@pytest.mark.parametrize(
    ("retry_on", "error", "again"),
    [
        (["OSError"], OSError("x"), True),
        (["OSError"], FileNotFoundError("a subclass"), True),
        (["OSError"], ValueError("x"), False),
        (["KeyError", "ValueError"], ValueError("x"), True),
        (["tests.jobs.Boom"], Boom("x"), True),
        (["tests.jobs.Boom"], Special("a subclass"), True),
        ([f"{__name__}.Special"], Special("x"), True),
        ([f"{__name__}.Special"], Boom("x"), False),
        (["SystemExit"], SystemExit(3), True),
        (["Exception"], SystemExit(3), False),
        (["tests.jobs.Boom"], Abort("never"), False),
        (["Exception"], Abort("never"), False),
    ],
    ids=repr,
)
def test_retry_on(
    declare: Declare, does: Does, retry_on: list[str], error: BaseException, again: bool
) -> None:
    does(error, None)
    job = declare("one", retries=1, retry_on=retry_on)
    assert drain() == (2 if again else 1)
    assert stands(job) == ("COMPLETE" if again else "FAILED", 0, 0)


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()], ids=repr)
def test_without_retry_on_only_exceptions_are_tried_again(
    declare: Declare, does: Does, error: BaseException
) -> None:
    does(error)
    job = declare("one", retries=5)
    assert drain() == 1
    assert stands(job) == ("FAILED", 0, 0)


@pytest.mark.parametrize(
    "path", ["no.such.Error", "tests.jobs.NoSuchError", f"{__name__}.not_an_exception", "NoError"]
)
def test_a_retry_on_that_is_broken_fails_the_job_and_says_why(
    declare: Declare, does: Does, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    does(Boom("x"))
    job = declare("one", retries=5, retry_on=[path], **HOOKS)
    assert drain() == 1
    assert stands(job) == ("FAILED", 0, 0)
    assert "Boom: x" in job.attempts.get().error
    (record,) = [r for r in caplog.records if "retry_on" in r.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("task=tests.jobs.one")
    assert record.exc_info is not None


def test_a_timeout_is_tried_again_whatever_retry_on_names(declare: Declare, does: Does) -> None:
    does(TimedOut("too long"), None)
    job = declare("one", retries=1, retry_on=["OSError"])
    assert drain() == 2
    assert outcomes(job) == ["timed_out", "succeeded"]


# -- Retry and Abort --


@pytest.mark.parametrize("how", [returned, lambda error: error], ids=["returned", "raised"])
def test_a_task_may_ask_to_be_run_again(
    declare: Declare, does: Does, how: Callable[[Any], Any]
) -> None:
    runs = does(*[how(Retry(0)) for _ in range(5)], Boom(), None)
    job = declare("one", "two", retries=1, **HOOKS)
    assert drain() == 8
    assert runs == [1, 2, 3, 4, 5, 6, 7]
    assert stands(job) == ("COMPLETE", 0, 0)
    assert outcomes(job) == ["retried"] * 5 + ["failed", "succeeded", "succeeded"]
    journal = ["pre hook", "post hook"] * 7
    assert ran(job) == [*journal, "pre hook", "two", "completion hook", "post hook"]


def test_a_retry_is_no_error_for_the_log(
    declare: Declare, does: Does, caplog: pytest.LogCaptureFixture
) -> None:
    does(returned(Retry(0)), Retry(0), None)
    declare("one")
    with caplog.at_level(logging.WARNING, "django_dbq"):
        assert drain() == 3
    assert caplog.records == []


def test_a_failure_that_is_tried_again_is_a_warning(
    declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    job = declare("fail", retries=1)
    with caplog.at_level(logging.WARNING, "django_dbq"):
        assert drain() == 2
    again, failed = caplog.records
    assert (again.levelno, failed.levelno) == (logging.WARNING, logging.ERROR)
    where = f"job={job.pk} name=feed task=tests.jobs.fail attempt="
    assert again.getMessage() == (
        f"Task failed, to be tried again: {where}1 error=Boom('it went wrong')"
    )
    assert failed.getMessage() == f"Task failed: {where}2"


@pytest.mark.parametrize(
    ("retry", "wait"),
    [
        (Retry(1000), 1000),
        (Retry(datetime.timedelta(hours=1)), 3600),
        (Retry(), 100),  # the step's own delay
    ],
    ids=str,
)
def test_a_retry_after_some_time(declare: Declare, does: Does, retry: Retry, wait: float) -> None:
    does(returned(retry))
    job = declare("one", retry_delay=100)
    before = timezone.now()
    assert drain() == 1
    job.refresh_from_db()
    assert job.run_after is not None
    delay = datetime.timedelta(seconds=wait)
    assert before + delay <= job.run_after <= timezone.now() + delay
    assert stands(job) == ("READY", 0, 0)


def test_a_retry_at_a_time(declare: Declare, does: Does) -> None:
    at = timezone.now() + HOUR
    does(returned(Retry(at=at)), returned(Retry(at=at - 2 * HOUR)), None)
    job = declare("one")
    assert drain() == 1
    job.refresh_from_db()
    assert (job.run_after, job.due) == (at, False)
    Job.objects.update(run_after=None)
    assert drain() == 2, "a time that has passed is now"
    assert stands(job) == ("COMPLETE", 0, 0)


@pytest.mark.parametrize("at", [datetime.datetime(2001, 1, 1), START - 9000 * HOUR])  # noqa: DTZ001
def test_a_retry_at_a_time_without_time_zones(
    settings: Any, declare: Declare, does: Does, at: datetime.datetime
) -> None:
    settings.USE_TZ = False
    does(returned(Retry(at=at)), returned(Retry(0.000001)), Boom(), None)
    job = declare("one", retries=1)
    assert drain() == 4
    assert outcomes(job) == ["retried", "retried", "failed", "succeeded"]


@pytest.mark.parametrize("zone", [-12, 0, 14])
@pytest.mark.parametrize("year", [1, 9999])
def test_a_retry_at_the_ends_of_the_calendar_stops_no_other_job(
    declare: Declare, does: Does, zone: int, year: int
) -> None:
    tz = datetime.timezone(datetime.timedelta(hours=zone))
    ends = {
        1: datetime.datetime.min.replace(tzinfo=tz),
        9999: datetime.datetime.max.replace(tzinfo=tz),
    }
    job = declare("one")
    if (year, zone) in ((1, 14), (9999, -12)):
        with pytest.raises(ValueError, match="no time in UTC"):
            Retry(at=ends[year])
        return
    does(returned(Retry(at=ends[year])), None)
    drain()
    other = declare("two")
    drain()
    assert stands(other)[0] == "COMPLETE"
    assert outcomes(job)[0] in ("retried", "failed")
    assert list(Job.objects.values_list("run_after")), "all rows can be read"


def test_what_a_retry_leaves_on_record(declare: Declare, does: Does) -> None:
    does(returned(Retry(0, exc=KeyError("cat"))), Retry(0, exc=KeyError("dog")), None)
    job = declare("one")
    assert drain() == 3
    first, second, third = (attempt.error for attempt in job.attempts.order_by("pk"))
    assert first.strip().endswith("Retry: to be run in 0 s: KeyError('cat')")
    assert second.startswith("Traceback")
    assert second.strip().endswith("Retry: to be run in 0 s: KeyError('dog')")
    assert third == ""


@pytest.mark.parametrize("how", [returned, lambda error: error], ids=["returned", "raised"])
def test_a_task_may_give_up_for_good(
    declare: Declare, does: Does, how: Callable[[Any], Any]
) -> None:
    does(how(Abort("the cat is gone")))
    job = declare("one", "two", retries=9, **HOOKS)
    assert drain() == 1
    assert stands(job) == ("FAILED", 0, 0)
    assert job.next_task == "tests.jobs.one"
    assert ran(job) == ["pre hook", "failure hook: the cat is gone", "post hook"]
    assert outcomes(job) == ["failed"]
    assert "Abort: the cat is gone" in job.attempts.get().error


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (Retry(0), ["retried", "succeeded"]),
        (Abort("no"), ["failed"]),
    ],
    ids=repr,
)
def test_a_pre_task_hook_may_raise_them_too(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, hook: Exception, expected: list[str]
) -> None:
    errors = [hook]

    def pre(job: Job) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr("tests.jobs.pre_task_hook", pre)
    job = declare("one", retries=9, pre_task_hook="tests.jobs.pre_task_hook")
    assert drain() == len(expected)
    assert outcomes(job) == expected


def test_what_a_task_that_asks_again_has_put_into_the_workspace(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(job: Job) -> Any:
        job.workspace["count"] = job.workspace.get("count", 0) + 1
        return Retry(0) if job.workspace["count"] < 4 else None

    monkeypatch.setattr("tests.jobs.one", count)
    job = declare("one")
    assert drain() == 4
    job.refresh_from_db()
    assert job.workspace == {"count": 4}


def test_a_retry_with_a_workspace_that_is_not_json_is_a_failure(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(job: Job) -> Any:
        job.workspace["left"] = {1}
        return Retry(0)

    monkeypatch.setattr("tests.jobs.one", spoil)
    job = declare("one", retries=1)
    assert drain() == 2
    assert outcomes(job) == ["failed", "failed"]
    assert stands(job) == ("FAILED", 0, 0)
    assert job.workspace == {}


# -- never without end --


def test_max_runs_bounds_what_a_task_may_ask_for(
    settings: Any, declare: Declare, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr("tests.jobs.failure_hook", lambda job, exc: given.append(exc))
    settings.DBQ = {"MAX_RUNS": 3}
    does(*[returned(Retry(0)) for _ in range(9)])
    job = declare("one", **HOOKS)
    assert drain() == 3
    assert stands(job) == ("FAILED", 0, 0)
    assert outcomes(job) == ["retried"] * 3
    (error,) = given
    assert isinstance(error, Exhausted)
    report = job.attempts.get(number=3).error
    assert "Retry: to be run in 0 s" in report
    assert "The job was run 3 times, and once more is asked for" in report


def test_max_runs_counts_all_steps_but_cuts_off_none_that_goes_well(
    settings: Any, declare: Declare, does: Does
) -> None:
    settings.DBQ = {"MAX_RUNS": 3}
    does(None, None, None, None, Boom())
    job = declare(*["one"] * 5, retries=1000)
    assert drain() == 5
    assert outcomes(job) == ["succeeded"] * 4 + ["failed"]
    assert stands(job) == ("FAILED", 0, 0)


def test_by_default_a_job_is_run_a_hundred_times_at_most(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: Retry(0))
    job = declare("one")
    assert drain() == 100
    assert stands(job) == ("FAILED", 0, 0)


def test_max_runs_can_be_lifted(settings: Any, declare: Declare, does: Does) -> None:
    settings.DBQ = {"MAX_RUNS": None}
    does(*[returned(Retry(0))] * 150, None)
    job = declare("one")
    assert drain() == 151
    assert stands(job) == ("COMPLETE", 0, 0)


# -- jobs whose tries were used up while nobody lived to say so --


@pytest.mark.parametrize(
    ("counted", "options", "reason"),
    [
        ({"lost": 3, "attempt": 3}, {}, "The worker was lost 3 times while it ran tests.jobs.one"),
        (
            {"lost": 1, "attempt": 1},
            {"on_lost": "fail"},
            "The worker was lost while it ran tests.jobs.one",
        ),
        ({"failures": 2, "attempt": 2}, {"retries": 1}, "tests.jobs.one has failed or timed out"),
        ({"lost": 1, "attempt": 100}, {}, "The job was run as often as"),
    ],
    ids=repr,
)
def test_a_job_whose_tries_are_used_up_fails_without_being_run(
    declare: Declare, does: Does, counted: dict[str, int], options: dict[str, Any], reason: str
) -> None:
    runs = does()
    job = declare("one", "two", **HOOKS, **options)
    Job.objects.update(state="READY", **counted)
    assert drain() == 1
    assert runs == []
    assert stands(job) == ("FAILED", 0, 0)
    assert job.next_task == "tests.jobs.one"
    told, post = ran(job)
    assert told.startswith(f"failure hook: {reason}")
    assert post == "post hook"
    attempt = job.attempts.get()
    assert (attempt.number, attempt.outcome) == (counted["attempt"] + 1, "failed")
    assert reason in attempt.error


@pytest.mark.parametrize(
    ("counted", "options"),
    [
        ({"lost": 2, "attempt": 2}, {}),
        ({"lost": 5, "attempt": 5}, {"on_lost": "hold"}),
        ({"failures": 2, "attempt": 2}, {"retries": 2}),
        ({"lost": 1, "attempt": 99}, {}),
    ],
    ids=repr,
)
def test_a_job_that_has_a_try_left_is_run(
    declare: Declare, does: Does, counted: dict[str, int], options: dict[str, Any]
) -> None:
    runs = does(None)
    job = declare("one", **options)
    Job.objects.update(state="READY", **counted)
    assert drain() == 1
    assert runs == [counted["attempt"] + 1]
    assert stands(job) == ("COMPLETE", 0, 0)


# -- the record --


def test_every_attempt_is_on_record_with_what_went_wrong(declare: Declare, does: Does) -> None:
    does(Boom("first"), OSError("second"), TimedOut("third"), returned(Retry(0)), None)
    job = declare("one", retries=3)
    assert drain() == 5
    attempts = list(job.attempts.order_by("number"))
    expected = [
        ("failed", "Boom: first"),
        ("failed", "OSError: second"),
        ("timed_out", "TimedOut: third"),
        ("retried", "Retry: to be run in 0 s"),
        ("succeeded", ""),
    ]
    assert [attempt.outcome for attempt in attempts] == [outcome for outcome, _ in expected]
    for attempt, (_, text) in zip(attempts, expected, strict=True):
        assert attempt.error.strip().endswith(text)
        assert (attempt.step, attempt.task) == (0, "tests.jobs.one")
        assert attempt.started <= attempt.finished


def test_a_record_is_bounded(declare: Declare, does: Does) -> None:
    """The end is kept: that is where it says what went wrong."""
    does(*[Boom("ü" * 100_000 + " the end")] * 3)
    job = declare("one", retries=2)
    assert drain() == 3
    for error in Attempt.objects.values_list("error", flat=True):
        assert len(error) == runner.REPORT_LENGTH + 1
        assert error.startswith("…ü")
        assert error.endswith("ü the end\n")
    assert stands(job) == ("FAILED", 0, 0)
