"""Why a job is not running: one test for each cause, and what an explanation costs."""

import datetime
import json
from typing import Any

import pytest
from django.core.management import call_command
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_dbq import Abort, Retry, Wait, engine, explaining
from django_dbq.explaining import CHOICE, HEAD, HOPS, LINE, Explanation, last_line, serves, span
from django_dbq.explaining.wording import moment, quoted
from django_dbq.models import Attempt, Dependency, Job, Start, Worker
from django_dbq.states import State
from django_dbq.storage import Overdue, Queues, storage_for
from django_dbq.testing import drain

pytestmark = pytest.mark.django_db

ONE, TWO, FAIL = "tests.jobs.one", "tests.jobs.two", "tests.jobs.fail"
HERE = "tests.test_explaining."
HOUR = datetime.timedelta(hours=1)
SECOND = datetime.timedelta(seconds=1)
FLAWS = ("..", ".;", ";.", ";;", ".,", ",.", ",;", ":.", ":;", " .", " ;", " ,", "  ", " None")


# -- tasks --


def fail_with(job: Job) -> None:
    raise Abort(job.workspace["error"])


def ask_again(job: Job) -> None:
    raise Retry(delay=7300, exc=ValueError("not yet"))


def ask_to_wait(job: Job) -> None:
    raise Wait(until=timezone.now() + 2 * HOUR + 100 * SECOND)


def wait_for_others(job: Job) -> None:
    raise Wait(jobs=job.workspace["others"])


def fail_the_second(job: Job) -> None:
    if job.workspace["index"] == 1:
        raise ValueError("the second of all")


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": [ONE, TWO],
        "fails": [FAIL],
        "fails with": [HERE + "fail_with"],
        "retried": {"tasks": [FAIL], "retries": 3, "retry_delay": 600},
        "asks again": [HERE + "ask_again"],
        "asks to wait": [HERE + "ask_to_wait"],
        "waits for others": [HERE + "wait_for_others", TWO],
        "sleeps": [{"sleep": 3 * 86_400}, ONE],
        "approval": [{"wait_for": "approval"}, ONE],
        "approval in time": [{"wait_for": "an approval", "timeout": 3700}, ONE],
        "group": [[ONE, {"task": TWO, "queue": "elsewhere"}], ONE],
        "failing group": [[ONE, FAIL], TWO],
        "cancelling group": [
            {"group": [[{"sleep": 60}, ONE], FAIL, FAIL], "on_failure": "cancel_rest"}
        ],
        "ignoring group": [{"group": [ONE, FAIL], "on_failure": "ignore"}],
        "failing deep down": [[ONE, [ONE, [ONE, FAIL]]]],
        "nested": [[ONE, [TWO, [ONE, {"task": FAIL, "queue": "elsewhere"}]]]],
        "map": [{"map": HERE + "fail_the_second", "over": "items"}],
        "map, ignoring": [
            {"map": HERE + "fail_the_second", "over": "items", "on_failure": "ignore"}
        ],
        "held": {"tasks": [ONE, TWO], "on_lost": "hold"},
    }


def alive(label: str = "w", queues: str = "default", silent: float = 0, **fields: Any) -> Worker:
    """A worker's row that has reported so many seconds ago."""
    worker = Worker.objects.create(
        label=label,
        hostname="here",
        pid=1,
        queues=queues,
        started=timezone.now(),
        heartbeat=storage_for("default").clock,
        **fields,
    )
    heartbeat = F("heartbeat") - datetime.timedelta(seconds=silent)
    Worker.objects.filter(pk=worker.pk).update(heartbeat=heartbeat)
    return worker


def claimed(worker: Worker, *names: str) -> list[Job]:
    """New jobs of these names that the worker has claimed."""
    for name in names:
        Job.objects.create(name=name)
    found = engine.claim(worker, Queues(), len(names), timezone.now(), "default")
    assert len(found) == len(names)
    return found


def explain(job: Job, now: datetime.datetime) -> Explanation:
    """The explanation of a job, whose texts are one well-formed sentence each."""
    explanation = explaining.explain(job, now)
    for text in (explanation.reason, explanation.what_to_do):
        assert text.endswith("."), text
        for flaw in FLAWS:
            assert flaw not in text, text
    return explanation


def kept(job: Job, cause: str, *reasons: str, now: datetime.datetime | None = None) -> Explanation:
    """The explanation of a job; it is that cause, its reason says all of these in order, and both are one sentence."""
    explanation = explain(job, now or timezone.now())
    assert explanation.details["cause"] == cause, str(explanation)
    rest = explanation.reason
    for reason in reasons:
        assert reason in rest, str(explanation)
        rest = rest.partition(reason)[2]
    assert rest == ".", f"more is said than expected: {explanation}"
    assert explanation.state == Job.objects.get(pk=job.pk).state
    json.dumps(dict(explanation.details), cls=DjangoJSONEncoder)
    return explanation


def as_saved(job: Job) -> datetime.datetime:
    """The time at which a job's row was written, for an explanation at that very moment."""
    return Job.objects.get(pk=job.pk).modified


def details(explanation: Explanation, *keys: str) -> list[Any]:
    return [explanation.details[key] for key in keys]


def update(job: Job, **values: Any) -> None:
    assert Job.objects.filter(pk=job.pk).update(**values) == 1


def begun(name: str, count: int) -> tuple[Job, list[Job]]:
    """A job that has begun a map, with its members, which have not been run."""
    job = Job.objects.create(
        name=name, workspace={"items": list(range(count))}, priority=Job.objects.count()
    )
    call_command("worker", max_jobs=1, verbosity=0)
    assert Job.objects.get(pk=job.pk).state == "WAITING"
    return job, list(job.children.order_by("position"))


# -- the explanation itself --


def test_an_explanation_is_text_and_facts_in_order() -> None:
    job = Job.objects.create(name="feed", priority=3)
    explanation = explain(job, timezone.now())
    assert str(explanation) == f"NEW: {explanation.reason}\n{explanation.what_to_do}"
    assert list(explanation.details)[:11] == [
        *("cause", "id", "name", "next_task", "step", "queue", "priority", "attempt"),
        *("run_after", "parent", "position"),
    ]
    assert details(explanation, "id", "name", "next_task", "step") == [job.pk, "feed", ONE, 0]
    assert details(explanation, "queue", "priority", "attempt") == ["default", 3, 0]
    assert explanation.state is State.NEW
    with pytest.raises(AttributeError):
        explanation.reason = ""  # type: ignore[misc]


def test_it_explains_the_row_and_not_the_instance() -> None:
    job = Job.objects.create(name="feed")
    Job.objects.get(pk=job.pk).cancel()
    assert (job.state, explain(job, timezone.now()).state) == ("NEW", "CANCELLED")
    Job.objects.all().delete()
    with pytest.raises(Job.DoesNotExist):
        explain(job, timezone.now())


def test_it_reads_neither_workspace_nor_result_and_writes_nothing() -> None:
    job = Job.objects.create(name="group", workspace={"secret": "sesame"})
    drain("default")
    before = list(Job.objects.order_by("pk").values())
    with CaptureQueriesContext(connection) as queries:
        text = str(explain(job, timezone.now()))
    assert "sesame" not in text
    for query in queries:
        assert query["sql"].startswith("SELECT")
        assert "workspace" not in query["sql"]
        assert '"result"' not in query["sql"]
    assert list(Job.objects.order_by("pk").values()) == before


@pytest.mark.parametrize(
    ("queues", "served", "not_served"),
    [
        ("default", ["default"], ["other", "defaul", "all"]),
        ("a, b", ["a", "b"], ["c", "a, c"]),
        ("all but a, b", ["c", "default"], ["a", "b"]),
        ("all", ["a", "default"], []),
        ("x" * 999 + ",", ["default"], []),
        ("all but " + "x" * 992, ["default"], ["x" * 992]),
    ],
    ids=["one", "two", "all but two", "all", "cut", "all but a cut one"],
)
def test_who_serves_a_queue(queues: str, served: list[str], not_served: list[str]) -> None:
    worker = Worker(queues=queues)
    assert [queue for queue in (*served, *not_served) if serves(worker, queue)] == served


@pytest.mark.parametrize(
    "queues",
    [Queues(("a",)), Queues(("a", "b c")), Queues(("a",), exclude=True), Queues((), exclude=True)],
    ids=str,
)
def test_workers_are_read_as_they_write_themselves_down(queues: Queues) -> None:
    worker = Worker(queues=str(queues))
    for queue in ("a", "b", "c", "b c", "default"):
        assert serves(worker, queue) == queues.serves(queue)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("", ""),
        ("Traceback …\n  File …\nValueError: no\n", "ValueError: no"),
        ("x" * (LINE + 1), "x" * LINE),
    ],
)
def test_the_line_of_an_error(error: str, line: str) -> None:
    assert last_line(error) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0004, "0 s"),
        (0.00251, "0.003 s"),
        (0.25, "0.25 s"),
        (0.9994, "0.999 s"),
        (0.9996, "1 s"),
        (12, "12 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (65, "1 min 5 s"),
        (3571, "59 min 31 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (86_400 - 31, "23 h 59 min"),
        (86_400 - 29, "1 day"),
        (86_400, "1 day"),
        (86_400 + 5 * 3600, "1 day 5 h"),
        (2 * 86_400 + 23 * 3600, "2 days 23 h"),
        (3 * 86_400 - 1, "3 days"),
        (400 * 86_400, "400 days"),
    ],
)
def test_a_length_of_time_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "off"),
    [
        (-3900, "1 h 5 min ago"),
        (-0.6, "1 s ago"),
        (-0.4, "0 s ago"),
        (0, "0 s ago"),
        (0.4, "0 s ago"),
        (0.6, "in 1 s"),
        (12, "in 12 s"),
        (3 * 86_400 - 3600, "in 2 days 23 h"),
    ],
)
def test_how_far_off_a_time_is(seconds: float, off: str, settings: Any) -> None:
    settings.USE_TZ = False
    now = datetime.datetime(2026, 1, 31, 8)  # noqa: DTZ001
    time = now + datetime.timedelta(seconds=seconds)
    assert moment(time, now) == f"{time:%Y-%m-%d %H:%M:%S} ({off})"


@pytest.mark.parametrize(
    "text", ["no more", "no more.", "no more...", "no  more; ", "no\nmore:", " no more,"]
)
def test_a_text_within_a_sentence_has_no_punctuation_at_its_end(text: str) -> None:
    assert quoted(text) == "no more"


@pytest.mark.parametrize("error", ["it broke", "it broke.", "it  broke ...", "it broke;", "", "."])
def test_what_an_error_says_is_no_part_of_the_punctuation(error: str) -> None:
    """`explain` of this module sees to it, of all texts."""
    failed = Job.objects.create(name="fails with", workspace={"error": error})
    blocked = Job.objects.create(name="feed", depends_on=[failed])
    drain()
    said = ": it broke" if "broke" in error else ""
    reason = f"has failed: attempt 1 of {HERE}fail_with failed, django_dbq.outcomes.Abort{said}"
    kept(failed, "failed", f"It {reason}")
    kept(blocked, "blocked", f"It is blocked by fails with {failed.pk}, which {reason}")
    assert explain(failed, timezone.now()).details["last_error"] == last_line(
        failed.attempts.get().error
    )
    Attempt.objects.update(error="")
    kept(failed, "failed", f"It has failed: attempt 1 of {HERE}fail_with failed")
    worker = alive()
    (running,) = claimed(worker, "feed")
    update(running, progress=0.5, progress_message=error)
    shown = " it broke" if "broke" in error else ""
    kept(
        running,
        "running",
        f"It is run by the worker w (50%{shown}); its row was saved last 2",
        " s ago)",
    )
    Worker.objects.filter(pk=worker.pk).update(stopped=timezone.now(), reason="told to stop.")
    explain(running, timezone.now())


# -- NEW and READY: settings --


def test_an_unknown_name() -> None:
    job = Job.objects.create(name="feed")
    update(job, name="feeds")
    alive()
    found = kept(
        job, "stranded", "It is stranded, for JOBS has no job named 'feeds' (did you mean 'feed'?)"
    )
    assert found.what_to_do == (
        "Restore the entry, or give its jobs the name that it has now: "
        "Job.objects.filter(name='feeds').update(name=…)."
    )


def test_an_invalid_entry(settings: Any) -> None:
    job = Job.objects.create(name="feed")
    settings.JOBS = {"feed": {"tasks": [ONE], "queue": ""}}
    found = kept(
        job,
        "stranded",
        "It is stranded, for the entry 'feed' of JOBS is not valid",
        "[\"queue\"] is '')",
    )
    assert found.what_to_do == "Mend the entry (manage.py check tells how)."


def test_an_unknown_step() -> None:
    job = Job.objects.create(name="feed")
    update(job, next_task="tests.jobs.ones", state="READY")
    alive()
    found = kept(
        job,
        "stranded",
        "It is stranded, for the job 'feed' has no step 'tests.jobs.ones' (did you mean 'tests.jobs.one'?)",
        "; it has tests.jobs.one, tests.jobs.two",
    )
    assert found.what_to_do == (
        'Put "renamed_from": "tests.jobs.ones" at the step that has taken its place, or cancel these jobs and retry '
        "them from another step (manage.py jobs retry ID --from STEP)."
    )


def test_what_it_advises_for_an_unknown_step_helps(settings: Any) -> None:
    job = Job.objects.create(name="feed")
    update(job, next_task="gone")
    worker = alive()
    settings.JOBS = {"feed": [ONE, {"task": TWO, "renamed_from": "gone"}]}
    kept(
        job,
        "next",
        "It is due and the first of its queue; the worker w, which serves its queue 'default', holds 0 jobs",
    )
    settings.JOBS = {"feed": [ONE, TWO]}
    kept(
        job,
        "stranded",
        "It is stranded, for the job 'feed' has no step 'gone'; it has tests.jobs.one, tests.jobs.two",
    )
    assert job.cancel()
    assert job.retry(from_step=1)
    assert [one.pk for one in engine.claim(worker, Queues(), 9, timezone.now(), "default")] == [
        job.pk
    ]


@pytest.mark.parametrize("form", ["wait_for", "map", "group"])
def test_what_renamed_from_takes_for_the_other_forms(form: str, settings: Any) -> None:
    """The advice can be followed as it stands."""
    before, after = {
        "wait_for": ({"wait_for": "approval"}, {"wait_for": "consent"}),
        "map": ({"map": ONE, "over": "items"}, {"map": TWO, "over": "items"}),
        "group": ({"group": [ONE, TWO], "name": "first"}, {"group": [ONE, TWO], "name": "second"}),
    }[form]
    settings.JOBS = {"it": [before]}
    job = Job.objects.create(name="it")
    settings.JOBS = {"it": [after]}
    advice = explain(job, timezone.now()).what_to_do
    word = advice.partition('"renamed_from": "')[2].partition('"')[0]
    settings.JOBS = {"it": [{**after, "renamed_from": word}]}
    assert explain(job, timezone.now()).details["cause"] == "unserved", word


def test_no_step_at_all() -> None:
    job = Job.objects.create(name="feed")
    update(job, next_task="")
    found = kept(
        job,
        "stranded",
        "It is stranded, for the job 'feed' has no step ''; it has tests.jobs.one, tests.jobs.two",
    )
    assert found.what_to_do.startswith("Cancel these jobs and retry them from another step")


# -- NEW and READY: the time --


def test_run_after() -> None:
    job = Job.objects.create(name="feed", run_after=timezone.now() + 2 * HOUR + SECOND)
    found = kept(job, "later", "It is not to be run before 2", " (in 2 h)")
    assert details(found, "run_after") == [job.run_after]
    at_once = f'Job.objects.filter(pk="{job.pk}").update(run_after=None)'
    assert found.what_to_do == f"Nothing, it is run then; to have it run at once: {at_once}."
    exec(at_once, {"Job": Job})
    assert drain() == 2


def test_a_time_that_has_come_keeps_nothing() -> None:
    job = Job.objects.create(name="feed", run_after=timezone.now() + HOUR)
    kept(
        job,
        "unserved",
        "It is due, and no living worker serves its queue 'default'",
        now=timezone.now() + HOUR,
    )
    alive()
    found = kept(
        job,
        "next",
        "It is due and the first of its queue",
        "holds 0 jobs",
        now=timezone.now() + HOUR,
    )
    assert details(found, "ahead", "ahead_is_all") == [0, True]


def test_a_step_that_sleeps() -> None:
    job = Job.objects.create(name="sleeps")
    drain()
    found = kept(job, "sleeping", "It sleeps until 2", " (in 3 days)")
    assert found.state is State.READY


def test_a_retry_delay() -> None:
    job = Job.objects.create(name="retried")
    drain()
    found = kept(
        job,
        "retry",
        "It is tried again at 2",
        " (in 10 min): attempt 1 of tests.jobs.fail failed, tests.jobs.Boom: it went wrong",
        now=Job.objects.get().run_after - datetime.timedelta(minutes=10),
    )
    assert details(found, "last_attempt", "last_task", "last_outcome") == [1, FAIL, "failed"]
    assert found.details["last_error"] == "tests.jobs.Boom: it went wrong"


def test_a_retry_delay_after_a_timeout() -> None:
    job = Job.objects.create(name="retried")
    drain()
    Attempt.objects.update(outcome="timed_out", error="django_dbq.outcomes.TimedOut: after 1 s")
    kept(
        job,
        "retry",
        "It is tried again at",
        ": attempt 1 of tests.jobs.fail timed out, django_dbq.outcomes.TimedOut: after 1 s",
    )


def test_what_its_task_has_asked_for() -> None:
    retried, waiting = (
        Job.objects.create(name="asks again"),
        Job.objects.create(name="asks to wait"),
    )
    drain()
    found = kept(retried, "asked", "It is run again at 2", " (in 2 h 2 min), as its task has asked")
    assert found.details["last_error"].endswith("ValueError('not yet')")
    kept(waiting, "asked", "It is run again at 2", " (in 2 h 2 min), as its task has asked")


def test_a_time_that_the_step_before_has_set() -> None:
    job = Job.objects.create(name="feed")
    worker = alive()
    engine.claim(worker, Queues(), 1, timezone.now(), "default")
    Attempt.objects.create(
        job=job, number=1, step=0, task=ONE, outcome="succeeded", worker="w",
        started=timezone.now(), finished=timezone.now(),
    )  # fmt: skip
    now = timezone.now()
    update(job, state="READY", step=1, next_task=TWO, worker=None, run_after=now + HOUR)
    kept(job, "later", "It is not to be run before 2", " (in 1 h)", now=now)


# -- NEW and READY: queue and turn --


def test_nobody_serves_its_queue() -> None:
    job = Job.objects.create(name="feed", queue_name="mial box")
    found = kept(job, "unserved", "It is due, and no living worker serves its queue 'mial box'")
    assert found.what_to_do == "Start a worker: manage.py worker 'mial box'."
    alive("a", "default, mail box")
    alive("b", "all but mial box")
    found = kept(
        job,
        "unserved",
        "It is due, and no living worker serves its queue 'mial box' (did you mean 'mail box'?)",
    )
    assert details(found, "workers", "silent") == [
        {"a": "default, mail box", "b": "all but mial box"},
        [],
    ]
    alive("c", "mial box", silent=61)
    alive("d", "mial box", stopped=timezone.now())
    found = kept(
        job,
        "unserved",
        "'mial box'",
        "(did you mean 'mail box'?); c would, and has stopped reporting",
    )
    assert details(found, "silent") == [["c"]]
    alive("e", "all but default")
    kept(
        job,
        "next",
        "It is due and the first of its queue; the worker e, which serves its queue 'mial box', holds 0 jobs",
    )


def test_a_worker_known_to_be_dead_serves_nothing() -> None:
    job = Job.objects.create(name="feed")
    Worker.objects.filter(pk=alive().pk).update(heartbeat=None)
    kept(
        job,
        "unserved",
        "It is due, and no living worker serves its queue 'default'; w would, and has stopped reporting",
    )


def test_its_queue_is_paused() -> None:
    job = Job.objects.create(name="feed", queue_name="mail box")
    alive("w", "mail box")
    assert engine.pause_queue("mail box", timezone.now() - 3 * HOUR, "default")
    found = kept(
        job, "queue paused", "It is due, and its queue 'mail box' was paused 2", " (3 h ago)"
    )
    assert found.what_to_do == "Have the queue go on: manage.py queues resume 'mail box'."
    assert engine.resume_queue("mail box", "default")
    kept(job, "next", "the first of its queue", "holds 0 jobs")


def limited_claims(worker: Worker) -> list[Job]:
    now = timezone.now()
    engine.admit(Queues(), 9, now, "default")
    return engine.claim(worker, Queues(), 9, now, "default")


def test_as_many_run_as_may(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": [ONE], "concurrency": 2}}
    jobs = [Job.objects.create(name="it") for _ in range(5)]
    kept(jobs[4], "unserved", "no living worker serves its queue 'default'")
    worker = alive()
    assert [job.pk for job in limited_claims(worker)] == [jobs[0].pk, jobs[1].pk]
    found = kept(
        jobs[4],
        "concurrency",
        "It is due, and as many jobs of its name run as may at once (2 of 2), ",
        f"the oldest being {jobs[0].pk} (worker w), with 2 jobs before it",
    )
    assert details(found, "limit", "used", "ahead", "ahead_is_all") == [2, 2, 2, True]
    assert found.details["held_by"] == [jobs[0].pk, jobs[1].pk]
    assert found.what_to_do.endswith("sooner with a higher concurrency in JOBS.")
    jobs[0].cancel()
    kept(jobs[2], "next", "It is due and the first of its queue", "holds 1 job")


def test_as_many_of_its_key_run_as_may(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": [ONE], "concurrency": {"limit": 1, "key": "account"}}}
    jobs = [Job.objects.create(name="it", workspace={"account": n % 2}) for n in range(5)]
    worker = alive()
    assert [job.pk for job in limited_claims(worker)] == [jobs[0].pk, jobs[1].pk]
    kept(
        jobs[4],
        "concurrency",
        "as many jobs of its name whose account is 0 run as may at once (1 of 1), ",
        f"the oldest being {jobs[0].pk} (worker w), with 1 job before it",
    )


def test_what_is_admitted_counts(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": [ONE], "concurrency": 1}}
    alive()
    jobs = [Job.objects.create(name="it") for _ in range(2)]
    engine.admit(Queues(), 9, timezone.now(), "default")
    kept(
        jobs[1],
        "concurrency",
        "as many jobs of its name run as may at once (1 of 1), with 0 jobs before it",
    )
    kept(jobs[0], "next", "It is due and the first of its queue", "holds 0 jobs")


@pytest.mark.parametrize("key", [None, "account"])
def test_as_many_were_started_as_may(key: str | None, settings: Any) -> None:
    limit: Any = "2/h" if key is None else {"limit": "2/h", "key": key}
    settings.JOBS = {"it": {"tasks": [ONE], "rate_limit": limit}}
    jobs = [Job.objects.create(name="it", workspace={"account": "us"}) for _ in range(4)]
    worker = alive()
    assert [job.pk for job in limited_claims(worker)] == [jobs[0].pk, jobs[1].pk]
    of = "" if key is None else ' whose account is "us"'
    found = kept(
        jobs[3],
        "rate limit",
        f"It is due, and as many jobs of its name{of} were started as may be within 1 h; the next may be 2",
        " (in 1 h), with 1 job before it",
        now=Start.objects.earliest("at").at,
    )
    assert found.details["free_at"] > timezone.now() + 0.9 * HOUR
    assert details(found, "limit", "ahead") == [2, 1]
    later = timezone.now() + HOUR + SECOND
    kept(jobs[3], "next", "It is due and the first of its queue", "holds 2 jobs", now=later)


def test_as_many_were_admitted_as_may_be_started(settings: Any) -> None:
    """Until it is claimed, a start counts as if it were now."""
    settings.JOBS = {"it": {"tasks": [ONE], "rate_limit": "1/h"}}
    jobs = [Job.objects.create(name="it") for _ in range(2)]
    alive()
    engine.admit(Queues(), 9, timezone.now(), "default")
    now = timezone.now()
    found = kept(
        jobs[1],
        "rate limit",
        "were started as may be within 1 h; the next may be 2",
        " (in 1 h), with 0 jobs before it",
        now=now,
    )
    assert found.details["free_at"] == now + HOUR
    kept(jobs[0], "next", "the first of its queue", "holds 0 jobs")


def test_others_come_before_it() -> None:
    first = Job.objects.create(name="feed")
    Job.objects.create(name="feed", priority=1)
    job = Job.objects.create(name="feed")
    # None of these does.
    Job.objects.create(name="feed", priority=-1)
    Job.objects.create(name="feed", queue_name="other", priority=9)
    Job.objects.create(name="feed", priority=9, run_after=timezone.now() + HOUR)
    update(Job.objects.create(name="feed", priority=9), name="unknown")
    Job.objects.create(name="feed")
    worker = alive()
    found = kept(
        job,
        "queued",
        "It is due, and 2 jobs of its queue come before it; "
        "the worker w, which serves its queue 'default', holds 0 jobs",
    )
    assert details(found, "serving", "held", "ahead", "ahead_is_all") == [["w"], 0, 2, True]
    assert f'Job.objects.filter(pk="{job.pk}").update(priority=…)' in found.what_to_do
    engine.claim(worker, Queues(), 1, timezone.now(), "default")
    alive("v", "all")
    kept(
        job,
        "queued",
        "It is due, and 1 job of its queue comes before it; the 2 workers that serve its queue 'default' hold 1 job",
    )
    kept(
        first,
        "next",
        "the first of its queue; the 2 workers that serve its queue 'default' hold 1 job",
    )


def test_deadlines_count_for_the_turn() -> None:
    alive()
    job = Job.objects.create(name="feed")
    Job.objects.create(name="feed", deadline=timezone.now())
    assert kept(job, "queued", "1 job of its queue comes before it", "0 jobs").details["ahead"] == 1


def test_as_it_says_so_it_is_claimed() -> None:
    """The number of those before it, counted for each of a few jobs, is the order of the claim."""
    for number in range(4):
        Job.objects.create(name="feed", priority=number % 2)
        update(Job.objects.create(name="feed", priority=-(number % 3)), state="READY")
    worker = alive()
    now = timezone.now()
    said = {job.pk: explain(job, now).details["ahead"] for job in Job.objects.all()}
    assert [said[one.pk] for one in engine.claim(worker, Queues(), 8, now, "default")] == list(
        range(8)
    )


def test_many_before_it_are_counted_up_to_a_limit() -> None:
    alive()
    Job.objects.bulk_create(Job(name="feed") for _ in range(HEAD + 1))
    job = Job.objects.create(name="feed")
    found = kept(job, "queued", f"at least {HEAD} jobs of its queue come before it", "holds 0 jobs")
    assert found.details["ahead_is_all"] is False


def test_a_job_that_was_lost_with_a_worker() -> None:
    worker = alive()
    (job,) = claimed(worker, "feed")
    engine.bury(worker.pk, "gone", timezone.now(), "default")
    alive("v")
    kept(
        job,
        "suspect",
        "It was lost with a worker, so that only one that holds nothing else takes it; the worker v, ",
        "holds 0 jobs",
    )


# -- PROCESSING and STOPPING --


def test_it_runs() -> None:
    (job,) = claimed(alive(), "feed")
    found = kept(
        job,
        "running",
        "It is run by the worker w; its row was saved last 2",
        " (0 s ago)",
        now=as_saved(job),
    )
    assert details(found, "worker", "others", "pausing") == ["w", [], False]
    assert 0 <= found.details["silent_for"] < 30
    assert 30 < found.details["lease_left"] <= 60
    assert found.what_to_do == f"Nothing; to end it: manage.py jobs cancel {job.pk}."


def test_it_runs_and_tells_of_its_progress() -> None:
    (job,) = claimed(alive(), "feed")
    update(job, progress=0.4, progress_message="the third cat")
    kept(
        job,
        "running",
        "It is run by the worker w (40% the third cat); its row",
        "(0 s ago)",
        now=as_saved(job),
    )
    update(job, progress=1, progress_message="")
    kept(
        job, "running", "It is run by the worker w (100%); its row", "(0 s ago)", now=as_saved(job)
    )


def test_it_runs_and_is_to_be_paused() -> None:
    (job,) = claimed(alive(), "feed")
    assert job.pause()
    kept(job, "running", "It is run by the worker w;", "; it is paused at the end of its step")


def test_it_runs_past_its_timeout() -> None:
    worker = alive()
    (job,) = claimed(worker, "feed")
    late = Overdue(job.pk, job.attempt, timezone.now(), "at line 1")
    engine.record_timeouts(worker.pk, [late], timezone.now(), "default")
    kept(
        job,
        "running",
        "(0 s ago); the attempt is past its timeout and about to be stopped",
        now=as_saved(job),
    )


def test_its_worker_is_silent() -> None:
    (job,) = claimed(alive(silent=45), "feed")
    kept(
        job,
        "running",
        "; that worker has been silent for 4",
        " s, in 1",
        " s it counts as lost, and no other worker lives",
    )
    alive("v")
    found = kept(
        job,
        "running",
        "; that worker has been silent for 4",
        " s, in 1",
        " s another takes the job",
    )
    assert found.details["others"] == ["v"]


def test_its_worker_is_late() -> None:
    (job,) = claimed(alive(silent=200, timeout=60.5), "feed")
    found = kept(
        job,
        "lost",
        "It is held by the worker w, which has been silent for 3 min 2",
        " s and counts as lost after 1 min; no other worker lives that could take it",
    )
    assert found.what_to_do == "Start a worker: manage.py worker default."
    rescuer = alive("v")
    found = kept(job, "lost", "after 1 min; v takes it at its next heartbeat")
    assert found.what_to_do == "Nothing, it goes on as on_lost of its step says."
    engine.rescue(rescuer, timezone.now(), "default")
    kept(job, "suspect", "takes it; the worker v, which serves its queue 'default', holds 0 jobs")


@pytest.mark.parametrize("end", ["stopped", "deleted"])
def test_its_worker_has_ended(end: str) -> None:
    worker = alive()
    (job,) = claimed(worker, "feed")
    alive("v")
    if end == "stopped":
        Worker.objects.filter(pk=worker.pk).update(stopped=timezone.now(), reason="told to stop")
        kept(
            job,
            "lost",
            "It is held by the worker w, which has ended (told to stop); v takes it at its next heartbeat",
        )
    else:
        Worker.objects.filter(pk=worker.pk).delete()
        kept(
            job,
            "lost",
            f"It is held by the worker {worker.pk}, which has ended; v takes it at its next heartbeat",
        )
    assert engine.sweep(timezone.now(), "default") == 1
    assert Job.objects.get().state == "READY"


def test_its_worker_has_ended_and_the_settings_do_not_know_it(settings: Any) -> None:
    """Whoever does know it takes it; these do not."""
    worker = alive()
    claimed(worker, "feed")
    alive("v")
    Worker.objects.filter(pk=worker.pk).update(stopped=timezone.now(), reason="told to stop")
    settings.JOBS = {}
    kept(
        Job.objects.get(),
        "stranded",
        "It is held by the worker w, which has ended (told to stop); nobody takes it, for JOBS has no job named 'feed'",
    )
    assert engine.sweep(timezone.now(), "default") == 0
    assert Job.objects.get().state == "PROCESSING"


def test_its_worker_shuts_down() -> None:
    worker = alive()
    (job,) = claimed(worker, "feed")
    engine.stopping(worker, [job], "default")
    kept(
        job,
        "stopping",
        "It is run by the worker w;",
        "; that worker is shutting down, and hands it back if the step takes too long",
    )


@pytest.mark.parametrize("state", ["PROCESSING", "STOPPING"])
def test_what_django_db_queue_has_left(state: str) -> None:
    job = Job.objects.create(name="feed")
    update(job, state=state)
    alive()
    found = kept(
        job, "left", f"It was left {state} by a worker of django-db-queue; no worker takes it"
    )
    send_on = found.what_to_do.partition(": ")[2].removesuffix(".")
    exec(send_on, {"Job": Job})
    assert drain() == 2


# -- WAITING: an event --


def test_it_waits_for_an_event() -> None:
    job = Job.objects.create(name="approval")
    drain()
    found = kept(job, "event", "It waits for the event 'approval'")
    assert found.what_to_do == f"Send it: manage.py jobs send {job.pk} approval."
    assert found.details["event"] == "approval"


def test_it_waits_for_an_event_for_a_time() -> None:
    job = Job.objects.create(name="approval in time")
    drain()
    found = kept(
        job,
        "event",
        "It waits for the event 'an approval', until 2",
        " (in 1 h 2 min) at the latest",
    )
    assert found.what_to_do == f"Send it: manage.py jobs send {job.pk} 'an approval'."
    assert found.details["run_after"] is not None


# -- WAITING: other jobs --


def test_it_waits_for_another_job() -> None:
    other = Job.objects.create(name="feed")
    job = Job.objects.create(name="feed", depends_on=[other])
    found = kept(
        job,
        "jobs",
        f"It waits for feed {other.pk}, which is due, and no living worker serves its queue 'default'",
    )
    assert details(found, "waiting_for", "mode", "jobs") == [1, "all", [other.pk]]
    assert found.details["chain"] == [
        {"id": other.pk, "name": "feed", "state": "NEW", "cause": "unserved"}
    ]
    assert found.what_to_do == "Start a worker: manage.py worker default."


def test_it_follows_the_one_that_needs_somebody() -> None:
    others = [Job.objects.create(name="feed") for _ in range(3)]
    job = Job.objects.create(name="feed", depends_on=others)
    assert others[1].pause()
    found = kept(
        job,
        "jobs",
        f"It waits for 3 jobs, among them feed {others[1].pk}, which was paused by hand 2",
        " s ago)",
    )
    assert found.what_to_do == f"Have it go on: manage.py jobs resume {others[1].pk}."
    anyone = Job.objects.create(name="feed", depends_on=others[:2], depends_mode="any")
    kept(
        anyone,
        "jobs",
        f"It waits for one of 2 jobs, among them feed {others[1].pk}, which was paused by hand 2",
        " s ago)",
    )


def test_it_follows_to_the_root() -> None:
    root = Job.objects.create(name="fails")
    blocked = Job.objects.create(name="feed", depends_on=[root])
    middle = Job.objects.create(name="feed", depends_on=[blocked])
    job = Job.objects.create(name="feed", depends_on=[middle])
    drain()
    found = kept(
        job,
        "jobs",
        f"It waits for feed {middle.pk}, which waits for feed {blocked.pk}, which is blocked by fails {root.pk}, "
        "which has failed: attempt 1 of tests.jobs.fail failed, tests.jobs.Boom: it went wrong",
    )
    assert [link["id"] for link in found.details["chain"]] == [middle.pk, blocked.pk, root.pk]
    assert [link["cause"] for link in found.details["chain"]] == ["jobs", "blocked", "failed"]
    assert found.what_to_do == (
        f"Mend the cause, then retry it: manage.py jobs retry {root.pk}; "
        f"or run this one all the same: manage.py jobs retry {blocked.pk}."
    )


def test_a_task_has_asked_for_other_jobs() -> None:
    now = timezone.now()
    other = Job.objects.create(name="feed", run_after=now + HOUR)
    job = Job.objects.create(name="waits for others", workspace={"others": [str(other.pk)]})
    drain()
    clause = f"It waits for feed {other.pk}, which is not to be run before 2"
    kept(job, "jobs", clause, " (in 1 h)", now=now)


def test_a_long_way_to_the_root_ends_with_advice() -> None:
    chain = [Job.objects.create(name="feed")]
    for _ in range(2 * HOPS):
        chain.append(Job.objects.create(name="feed", depends_on=[chain[-1]]))
    with CaptureQueriesContext(connection) as queries:
        found = explain(chain[-1], timezone.now())
    last = chain[-1 - HOPS].pk
    assert found.reason.endswith(f"feed {last}, which is WAITING.")
    assert found.what_to_do == f"Ask on from there: manage.py jobs explain {last}."
    assert len(queries) <= 3 * HOPS
    shorter = explain(chain[HOPS - 1], timezone.now())
    assert shorter.reason.endswith("no living worker serves its queue 'default'.")


def test_jobs_that_wait_in_a_circle_are_followed_once() -> None:
    one, two = Job.objects.create(name="feed"), Job.objects.create(name="feed")
    for job, on in ((one, two), (two, one)):
        Dependency.objects.create(job=job, on=on)
        update(job, state="WAITING", waiting_for=1)
    found = kept(
        one, "jobs", f"It waits for feed {two.pk}, which waits for feed {one.pk}, which is WAITING"
    )
    assert found.what_to_do == f"Ask on from there: manage.py jobs explain {one.pk}."


@pytest.mark.parametrize("how", ["deleted", "completed"])
def test_it_waits_for_what_is_gone(how: str) -> None:
    other = Job.objects.create(name="feed")
    job = Job.objects.create(name="feed", depends_on=[other])
    if how == "deleted":
        Job.objects.filter(pk=other.pk).delete()
    else:
        update(other, state="COMPLETE")
    found = kept(job, "loose", "It waits for what has ended or is gone already")
    assert (
        found.what_to_do
        == "Nothing, any worker frees it within a minute; if none runs: manage.py worker."
    )
    engine.mend(timezone.now(), "default")
    assert Job.objects.get(pk=job.pk).state != "WAITING"


def test_it_waits_for_nothing() -> None:
    job = Job.objects.create(name="feed")
    update(job, state="WAITING")
    kept(job, "loose", "It waits for what has ended or is gone already")


# -- WAITING: members --


def test_it_waits_for_members() -> None:
    job = Job.objects.create(name="group")
    drain("default")
    alive("w")
    second = job.children.get(position=1)
    found = kept(
        job,
        "members",
        "It waits for the members of group: 1 of 2 done; ",
        f"the first of the others is number 1 ({second.pk}), which is due, ",
        "and no living worker serves its queue 'elsewhere'",
    )
    assert details(found, "members", "failed_members") == [{"NEW": 1, "COMPLETE": 1}, []]
    assert found.details["oldest_running"] is None
    assert found.what_to_do == "Start a worker: manage.py worker elsewhere."


def test_it_waits_for_a_member_that_runs() -> None:
    job, members = begun("map", 5)
    worker, now = alive(), timezone.now()
    for member, minutes in ((members[2], 1), (members[3], 5)):
        saved = now - datetime.timedelta(minutes=minutes)
        update(member, state="PROCESSING", worker=worker, modified=saved)
    update(members[0], state="FAILED")
    found = kept(
        job,
        "members",
        "0 of 5 done, 1 failed (0), so that it fails in the end; ",
        f"the oldest that runs is number 3 ({members[3].pk}), which is run by the worker w; its row was saved last ",
        " (5 min ago)",
        now=now,
    )
    assert found.details["oldest_running"] == members[3].pk
    update(members[4], state="PAUSED")
    kept(
        job,
        "members",
        f"the first of the others is number 4 ({members[4].pk}), which was paused by hand 2",
        " s ago)",
    )


def test_members_that_have_failed() -> None:
    job, members = begun("map", 9)
    ignoring, more = begun("map, ignoring", 9)
    for member in (*members[:7], *more[:7]):
        update(member, state="FAILED")
    found = kept(
        job,
        "members",
        "0 of 9 done, 7 failed (0, 1, 2, 3, 4, …), so that it fails in the end; ",
        "queue 'default'",
    )
    assert [one["position"] for one in found.details["failed_members"]] == [0, 1, 2, 3, 4]
    kept(ignoring, "members", "7 failed (0, 1, 2, 3, 4, …); the first", "queue 'default'")


def test_members_within_members() -> None:
    job = Job.objects.create(name="nested")
    drain("default")
    sequence = job.children.get(position=1)
    inner = sequence.children.get(position=1)
    found = kept(
        job,
        "members",
        f"number 1 ({sequence.pk}), which waits for the members of group: 1 of 2 done; ",
        f"number 1 ({inner.pk}), which is due, and no living worker serves its queue 'elsewhere'",
    )
    assert [link["id"] for link in found.details["chain"]] == [sequence.pk, inner.pk]


def test_members_that_are_gone() -> None:
    job = Job.objects.create(name="group")
    drain("default")
    Job.objects.filter(parent=job).delete()
    kept(job, "loose", "It waits for what has ended or is gone already")


def test_a_group_that_is_gone_from_the_settings(settings: Any) -> None:
    job = Job.objects.create(name="group")
    drain("default")
    settings.JOBS = {"group": [ONE, TWO]}
    found = explain(job, timezone.now())
    assert found.details["cause"] == "members"
    assert found.reason.endswith(
        "; once it goes on it is stranded, "
        "for the job 'group' has no step 'group'; it has tests.jobs.one, tests.jobs.two."
    )
    assert found.what_to_do.startswith('Put "renamed_from": "group" at the step')
    assert found.what_to_do.endswith("; then: Start a worker: manage.py worker elsewhere.")


@pytest.mark.parametrize("rest", ["an event", "a pause"])
def test_a_member_whose_step_is_gone_from_the_settings(rest: str, settings: Any) -> None:
    """What is advised for the end of a chain is what is advised for that job itself."""
    settings.JOBS = {"group": [[{"wait_for": "go"}, ONE], TWO]}
    job = Job.objects.create(name="group")
    drain()
    member = job.children.get(position=0)
    if rest == "a pause":
        assert member.pause()
    settings.JOBS = {"group": [[{"wait_for": "went"}, ONE], TWO]}
    of_member, of_job = (explain(one, timezone.now()) for one in (member, job))
    text = (
        "goes on it is stranded, for the job 'group' has no step 'wait_for go' (did you mean 'wait_for went'?); "
        "it has group, wait_for went, tests.jobs.one, tests.jobs.two."
    )
    assert of_member.reason.endswith(f"; once it {text}")
    assert of_job.reason.endswith(f"; once that one {text}")
    assert of_job.what_to_do == of_member.what_to_do
    assert of_job.what_to_do.startswith(
        'Put "renamed_from": "wait_for go" at the step that has taken its place, or cancel and retry their parents '
        "from another step (manage.py jobs retry ID --from STEP); then: "
    )
    settings.JOBS = {"group": [ONE, TWO]}
    both = explain(job, timezone.now())
    assert (
        "; once that one goes on it is stranded, for the job 'group' has no step 'w" in both.reason
    )
    assert (
        "; once it goes on it is stranded, for the job 'group' has no step 'group'" in both.reason
    )


def test_what_it_advises_for_a_member_whose_step_is_unknown_helps(settings: Any) -> None:
    job = Job.objects.create(name="group")
    drain("default")
    member = job.children.get(position=1)
    settings.JOBS = {"group": [[ONE, FAIL], ONE]}
    advice = explain(member, timezone.now()).what_to_do
    assert "or cancel and retry their parents from another step (manage.py jobs retry ID" in advice
    assert member.cancel()
    with pytest.raises(LookupError, match="retried where it stands"):
        member.retry(from_step=0)
    assert job.cancel()
    assert job.retry(from_step=0)
    assert explain(job, timezone.now()).details["cause"] != "stranded"


def test_what_members_are_advised_whose_group_is_gone(settings: Any) -> None:
    job = Job.objects.create(name="group")
    drain("default")
    settings.JOBS = {"group": [ONE, TWO]}
    lacking = explaining.lack("group", 2, TWO, member=True)
    assert lacking is not None
    assert lacking.claimed
    assert "cancel and retry their parents from another step (manage" in lacking.hint
    assert job.cancel()
    assert job.retry(from_step=1)


# -- BLOCKED --


def test_it_is_blocked() -> None:
    failed = Job.objects.create(name="fails")
    job = Job.objects.create(name="feed", depends_on=[failed])
    drain()
    found = kept(
        job,
        "blocked",
        f"It is blocked by fails {failed.pk}, which has failed: attempt 1 of tests.jobs.fail failed, ",
        "tests.jobs.Boom: it went wrong",
    )
    assert found.details["blocked_by"] == [failed.pk]
    assert found.what_to_do == (
        f"Mend the cause, then retry it: manage.py jobs retry {failed.pk}; "
        f"or run this one all the same: manage.py jobs retry {job.pk}."
    )
    assert explain(failed, timezone.now()).details["blocks"] == [job.pk]


def test_it_is_blocked_by_several() -> None:
    others = [Job.objects.create(name="feed") for _ in range(2)]
    job = Job.objects.create(name="feed", depends_on=others)
    for other in others:
        assert other.cancel()
    kept(
        job,
        "blocked",
        f"It is blocked by 2 jobs, among them feed {others[0].pk}, which was cancelled 2",
        " s ago)",
    )


def test_it_is_blocked_by_a_job_that_is_gone() -> None:
    other = Job.objects.create(name="feed")
    job = Job.objects.create(name="feed", depends_on=[other])
    assert other.cancel()
    Job.objects.filter(pk=other.pk).delete()
    found = kept(job, "blocked", f"It is blocked by the job {other.pk}, which is gone")
    assert found.what_to_do == f"Run it all the same: manage.py jobs retry {job.pk}."
    Dependency.objects.all().delete()
    kept(job, "blocked", "It is blocked by a job, which is gone")


# -- PAUSED --


def test_it_is_paused() -> None:
    job = Job.objects.create(name="feed")
    assert job.pause()
    found = kept(job, "paused", "It was paused by hand 2", " (0 s ago)", now=as_saved(job))
    assert found.what_to_do == f"Have it go on: manage.py jobs resume {job.pk}."


def test_it_is_paused_with_its_parent() -> None:
    job = Job.objects.create(name="group")
    drain("default")
    assert job.pause()
    member = job.children.get(position=1)
    found = kept(
        member,
        "paused",
        "It was paused by hand 2",
        f" s ago), with the job that it belongs to, {job.pk}",
    )
    assert found.what_to_do == f"Have it go on: manage.py jobs resume {job.pk}."
    deep = Job.objects.create(name="nested")
    drain("default")
    assert deep.pause()
    inner = deep.children.get(position=1).children.get(position=1)
    kept(
        inner,
        "paused",
        "It was paused by hand 2",
        f" s ago), with the job that it belongs to, {deep.pk}",
    )
    assert job.resume()
    assert member.pause()
    found = kept(member, "paused", "It was paused by hand 2", " s ago)")
    assert found.what_to_do == f"Have it go on: manage.py jobs resume {member.pk}."


def test_it_is_on_hold() -> None:
    worker = alive()
    (job,) = claimed(worker, "held")
    engine.bury(worker.pk, "gone", timezone.now(), "default")
    found = kept(job, "on hold", "It is on hold: its worker w was lost while it ran tests.jobs.one")
    assert found.state is State.PAUSED
    assert found.what_to_do == (
        f"See whether that step has done its work; to run it again: manage.py jobs resume {job.pk}."
    )
    assert found.details["last_outcome"] == "lost"


def test_one_that_was_lost_and_is_paused_by_hand() -> None:
    worker = alive()
    (job,) = claimed(worker, "feed")
    engine.bury(worker.pk, "gone", timezone.now(), "default")
    assert job.pause()
    kept(job, "paused", "It was paused by hand 2", " s ago)")


# -- ended --


def test_it_has_failed() -> None:
    job = Job.objects.create(name="fails")
    drain()
    found = kept(
        job,
        "failed",
        "It has failed: attempt 1 of tests.jobs.fail failed, tests.jobs.Boom: it went wrong",
    )
    assert found.what_to_do == f"Mend the cause, then retry it: manage.py jobs retry {job.pk}."
    assert details(found, "last_attempt", "failed_members", "blocks") == [1, [], []]
    Attempt.objects.all().delete()
    kept(job, "failed", "It has failed")


def test_it_has_failed_with_a_member() -> None:
    job = Job.objects.create(name="failing group")
    drain()
    member = job.children.get(position=1)
    found = kept(
        job,
        "failed",
        "It has failed with 1 of the 2 members of group; ",
        f"the first of them is number 1 ({member.pk}), which has failed: attempt 1 of tests.jobs.fail failed, ",
        "tests.jobs.Boom: it went wrong",
    )
    assert found.details["failed_members"] == [{"position": 1, "id": member.pk, "state": "FAILED"}]
    assert found.details["last_error"].startswith(
        "django_dbq.steps.MembersFailed: 1 of the 2 members of group"
    )
    assert [link["id"] for link in found.details["chain"]] == [member.pk]
    advice = f"Mend the cause, then retry the whole job: manage.py jobs retry {job.pk}."
    assert found.what_to_do == advice
    found = explain(member, timezone.now())
    assert found.what_to_do == advice
    assert details(found, "parent", "position") == [job.pk, 1]


def test_it_has_failed_with_a_member_deep_down() -> None:
    """Down to the error; and what is advised brings all of them on."""
    job = Job.objects.create(name="failing deep down")
    drain()
    branch = job.children.get(position=1)
    inner = branch.children.get(position=1)
    found = kept(
        job,
        "failed",
        "It has failed with 1 of the 2 members of group; ",
        f"the first of them is number 1 ({branch.pk}), which has failed with 1 of the 2 members of group; ",
        f"the first of them is number 1 ({inner.pk}), which has failed: attempt 1 of tests.jobs.fail failed, ",
        "tests.jobs.Boom: it went wrong",
    )
    assert [link["id"] for link in found.details["chain"]] == [branch.pk, inner.pk]
    advice = f"Mend the cause, then retry the whole job: manage.py jobs retry {job.pk}."
    for one in (job, branch, inner):
        assert explain(one, timezone.now()).what_to_do == advice
    assert job.retry()
    assert Job.objects.get(pk=inner.pk).state == "READY"
    again = f"Nothing; to run it again: manage.py jobs fork {job.pk} --from STEP."
    assert explain(branch.children.get(position=0), timezone.now()).what_to_do == again


def test_members_that_were_cancelled_for_another_are_not_the_cause() -> None:
    job = Job.objects.create(name="cancelling group")
    drain()
    failed = job.children.get(position=1)
    found = kept(
        job,
        "failed",
        f"It has failed with 3 of the 3 members of group; the first of them is number 1 ({failed.pk}), ",
        "which has failed: attempt 1 of tests.jobs.fail failed, tests.jobs.Boom: it went wrong",
    )
    assert [(one["position"], one["state"]) for one in found.details["failed_members"]] == [
        (1, "FAILED"),
        (0, "CANCELLED"),
        (2, "CANCELLED"),
    ]
    assert explain(job.children.get(position=0), timezone.now()).what_to_do == (
        f"To run it after all, retry the whole job: manage.py jobs retry {job.pk}."
    )


def test_a_member_has_failed_without_which_its_job_has_completed() -> None:
    job = Job.objects.create(name="ignoring group")
    drain()
    assert explain(job, timezone.now()).state is State.COMPLETE
    for position, advice in (
        (0, "Nothing; to run it again:"),
        (1, "Mend the cause, then fork the whole job:"),
    ):
        found = explain(job.children.get(position=position), timezone.now())
        assert found.what_to_do == f"{advice} manage.py jobs fork {job.pk} --from STEP."
    assert job.fork(from_step=0)


def test_a_member_has_failed_whose_parent_waits_for_others() -> None:
    job = Job.objects.create(name="group")
    drain("default")
    member = job.children.get(position=0)
    update(member, state="FAILED")
    found = explain(member, timezone.now())
    assert found.what_to_do == f"Mend the cause, then retry it: manage.py jobs retry {member.pk}."


def test_it_was_cancelled() -> None:
    job = Job.objects.create(name="feed")
    assert job.cancel()
    found = kept(job, "cancelled", "It was cancelled 2", " (0 s ago)", now=as_saved(job))
    assert found.what_to_do == f"To run it after all, retry it: manage.py jobs retry {job.pk}."
    (running,) = claimed(alive(), "feed")
    assert running.cancel()
    kept(
        running,
        "cancelled",
        "It was cancelled 2",
        " s ago), while attempt 1 of tests.jobs.one ran",
    )


def test_it_has_completed() -> None:
    job = Job.objects.create(name="feed")
    drain()
    found = kept(job, "complete", "It has completed, 2", " (0 s ago)", now=as_saved(job))
    assert (
        found.what_to_do == f"Nothing; to run it again: manage.py jobs fork {job.pk} --from STEP."
    )
    update(job, finished=None)
    kept(job, "complete", "It has completed")


def test_without_time_zones(settings: Any) -> None:
    settings.USE_TZ = False
    job = Job.objects.create(name="feed", run_after=timezone.now() + 2 * HOUR + SECOND)
    kept(job, "later", "It is not to be run before 2", " (in 2 h)")
    (running,) = claimed(alive(), "feed")
    kept(
        running,
        "running",
        "It is run by the worker w; its row was saved last 2",
        " (0 s ago)",
        now=as_saved(running),
    )


# -- what it costs --


def test_what_it_asks_does_not_grow_with_what_is_waited_for() -> None:
    """Neither the number of questions nor what they return."""
    asked = []
    for count in (3, 3 * CHOICE):
        others = Job.objects.bulk_create(Job(name="feed") for _ in range(count))
        job = Job.objects.create(name="feed", depends_on=others)
        with CaptureQueriesContext(connection) as queries:
            found = explain(job, timezone.now())
        assert found.details["waiting_for"] == count
        asked.append(len(queries))
    assert asked[0] == asked[1] <= 6


def test_what_it_asks_does_not_grow_with_members() -> None:
    asked = []
    for count in (3, 300):
        job, _ = begun("map", count)
        with CaptureQueriesContext(connection) as queries:
            found = explain(job, timezone.now())
        assert found.details["members"] == {"NEW": count}
        asked.append(len(queries))
    assert asked[0] == asked[1] <= 9
