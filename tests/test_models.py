"""The job's table and its managers: what is stored, by default and as given, and what deleting takes with it."""

import datetime
import uuid
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, IntegrityError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.signals import post_init
from django.utils import timezone

from django_dbq.indexes import PartialIndex, PartialUnique
from django_dbq.models import Attempt, Job, JobManager, Worker
from django_dbq.pipelines import UnknownJob
from django_dbq.states import UNFINISHED
from django_dbq.testing import drain
from django_dbq.workspaces import InvalidWorkspace
from tests.jobs import Boom, ran

pytestmark = pytest.mark.django_db

HOUR = datetime.timedelta(hours=1)
PAST = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": ["tests.jobs.one", "tests.jobs.two"],
        "mail": {"tasks": ["tests.jobs.one"], "queue": "outbox", "priority": 5},
        "hooked": {"tasks": ["tests.jobs.one"], "creation_hook": "tests.jobs.creation_hook"},
        "refused": {"tasks": ["tests.jobs.one"], "creation_hook": "tests.jobs.broken"},
        "fails": ["tests.jobs.fail"],
    }


# -- a new job --


def test_a_new_job() -> None:
    before = timezone.now()
    job = Job.objects.create(name="feed")
    after = timezone.now()
    stored = Job.objects.get()
    assert isinstance(stored.id, uuid.UUID)
    assert stored.pk == job.pk
    assert before <= stored.created <= stored.modified <= after
    expected = {
        "name": "feed",
        "state": Job.STATES.NEW,
        "next_task": "tests.jobs.one",
        "step": 0,
        "workspace": {},
        "queue_name": "default",
        "priority": 0,
        "run_after": None,
        "due": True,
        "attempt": 0,
        "worker": None,
        "finished": None,
        "failures": 0,
        "lost": 0,
        "progress": None,
        "progress_message": "",
    }
    assert {name: getattr(stored, name) for name in expected} == expected
    assert {name: getattr(job, name) for name in expected} == expected
    assert str(job) == f"feed {job.pk}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("outbox", 5)),
        ({"queue_name": "default"}, ("default", 5)),  # given, though it is the field's default
        ({"priority": 0}, ("outbox", 0)),
        ({"queue_name": "other", "priority": -1}, ("other", -1)),
    ],
)
def test_queue_and_priority_come_from_the_settings_unless_they_are_given(
    given: dict[str, Any], expected: tuple[str, int]
) -> None:
    one = Job.objects.create(name="mail", **given)
    (two,) = Job.objects.bulk_create([Job(name="mail", **given)])
    three = Job(name="mail", **given)
    three.save()
    for job in (one, two, three):
        assert (job.queue_name, job.priority) == expected
        stored = Job.objects.get(pk=job.pk)
        assert (stored.queue_name, stored.priority) == expected


def test_names_as_long_as_the_documentation_says(settings: Any) -> None:
    path = "a." + "b" * 253
    settings.JOBS = {"n" * 200: [path]}
    job = Job.objects.create(name="n" * 200, queue_name="ü" * 63)
    stored = Job.objects.get(pk=job.pk)
    assert (stored.name, stored.next_task, stored.queue_name) == ("n" * 200, path, "ü" * 63)


@pytest.mark.parametrize(
    ("ahead", "due"), [(None, True), (-HOUR, True), (HOUR, False)], ids=["none", "past", "future"]
)
def test_the_hint_due_follows_run_after(ahead: datetime.timedelta | None, due: bool) -> None:
    run_after = None if ahead is None else timezone.now() + ahead
    one = Job.objects.create(name="feed", run_after=run_after)
    (two,) = Job.objects.bulk_create([Job(name="feed", run_after=run_after)])
    moved = Job.objects.create(name="feed", run_after=timezone.now() + 2 * HOUR)
    saved = Job.objects.create(name="feed")
    assert Job.objects.filter(pk=moved.pk).update(run_after=run_after) == 1
    saved.run_after = run_after
    saved.save()
    for job in (one, two, moved, saved):
        job.refresh_from_db()
        assert (job.run_after, job.due) == (run_after, due)


@pytest.mark.parametrize(
    "run_after", [PAST.replace(tzinfo=None), PAST.isoformat()], ids=["naive", "text"]
)
@pytest.mark.filterwarnings("ignore:DateTimeField Job.run_after received a naive datetime")
def test_run_after_may_be_whatever_django_takes_for_a_time(run_after: Any) -> None:
    Job.objects.create(name="feed", run_after=run_after)
    Job.objects.bulk_create([Job(name="feed", run_after=run_after)])
    assert Job.objects.filter(run_after__year__lte=2001).count() == 2
    assert Job.objects.update(run_after=run_after) == 2
    assert drain() == 4


@pytest.mark.parametrize("how", ["update_fields", "expression", "bulk_update"])
def test_a_hint_that_is_out_of_date_holds_up_nothing(how: str) -> None:
    """``due`` spares the claim the future jobs; it never decides that a job is not run."""
    job = Job.objects.create(name="mail", run_after=timezone.now() + HOUR)
    assert drain() == 0
    job.run_after = timezone.now() - HOUR
    if how == "update_fields":
        job.save(update_fields=["run_after"])
    elif how == "expression":
        Job.objects.update(run_after=F("created"))
    else:
        Job.objects.bulk_update([job], ["run_after"])
    assert drain() == 1

    early = Job.objects.create(name="mail")
    early.run_after = timezone.now() + HOUR
    if how == "update_fields":
        early.save(update_fields=["run_after"])
    elif how == "expression":
        Job.objects.filter(pk=early.pk).update(run_after=F("created") + HOUR)
    else:
        Job.objects.bulk_update([early], ["run_after"])
    assert drain() == 0


def test_the_database_refuses_a_state_that_is_none() -> None:
    job = Job.objects.create(name="feed")
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(state="FINISHED")
    for state in Job.STATES:
        Job.objects.filter(pk=job.pk).update(state=state)


def test_saving_again_changes_only_what_was_changed() -> None:
    job = Job.objects.create(name="hooked", workspace={"a": 1})
    job.priority = 3
    job.save()
    assert ran(job) == ["creation hook"]
    assert (job.state, job.next_task, job.priority) == ("NEW", "tests.jobs.one", 3)


@pytest.mark.parametrize("run_after", [HOUR, 5, "soon", "2030-02-30", object()])
def test_what_is_no_time_to_run_after(run_after: Any) -> None:
    job = Job.objects.create(name="feed")
    jobs = Job.objects.filter(pk=job.pk)
    error = ValueError if isinstance(run_after, str) else TypeError
    for write in (
        lambda: Job.objects.create(name="feed", run_after=run_after),
        lambda: Job.objects.bulk_create([Job(name="feed", run_after=run_after)]),
        lambda: jobs.update(run_after=run_after),
    ):
        with pytest.raises(error) as caught:
            write()
        assert str(caught.value) == f"run_after is {run_after!r}. Expected: a datetime."
    assert Job.objects.get() == job


def test_a_queue_that_no_database_could_store() -> None:
    with pytest.raises(
        ValueError, match=r"^queue_name is 'a\\x00b'\. Expected: the name of a queue"
    ):
        Job.objects.create(name="feed", queue_name="a\0b")
    assert not Job.objects.exists()


@pytest.mark.parametrize("workspace", ['{"a": 1}', [1], 5, True])
@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"tasks": [["tests.jobs.one"]]}, "the step 'group'"),
        ({"tasks": [{"map": "tests.jobs.one", "over": "cats"}]}, "the step 'map tests.jobs.one'"),
        ({"tasks": [{"wait_for": "ok"}]}, "the step 'wait_for ok'"),
        ({"tasks": ["tests.jobs.one"], "unique": ["a"]}, "unique"),
        (
            {"tasks": ["tests.jobs.one"], "concurrency": {"limit": 1, "key": "a"}},
            "concurrency",
        ),
        (
            {"tasks": ["tests.jobs.one"], "rate_limit": {"limit": "1/m", "key": "a"}},
            "rate_limit",
        ),
    ],
    ids=["group", "map", "wait", "unique", "concurrency", "rate limit"],
)
def test_a_workspace_that_has_to_be_a_dict(
    settings: Any, entry: Any, what: str, workspace: Any
) -> None:
    settings.JOBS = {"it": entry}
    for create in (
        lambda: Job.objects.create(name="it", workspace=workspace),
        lambda: Job.objects.bulk_create([Job(name="it", workspace=workspace)]),
    ):
        with pytest.raises(InvalidWorkspace) as caught:
            create()
        said = f"workspace is {workspace!r}. Expected: a dict, which {what} of 'it' needs."
        assert str(caught.value) == said
    assert not Job.objects.exists()
    assert Job.objects.create(name="it", workspace={"a": 1}).workspace == {"a": 1}


@pytest.mark.parametrize("workspace", ['{"a": 1}', [1], 5, True])
def test_a_workspace_may_be_any_json_where_nothing_needs_a_dict(
    settings: Any, workspace: Any
) -> None:
    """As with django-db-queue."""
    settings.JOBS = {
        "it": {
            "tasks": ["tests.jobs.one", {"sleep": 0}],
            "unique": True,
            "concurrency": 1,
            "rate_limit": "9/m",
        }
    }
    job = Job.objects.create(name="it", workspace=workspace)
    assert Job.objects.get(pk=job.pk).workspace == workspace


def test_an_unknown_job_is_not_created() -> None:
    with pytest.raises(UnknownJob, match=r"'fed' \(did you mean 'feed'\?\)"):
        Job.objects.create(name="fed")
    with pytest.raises(UnknownJob, match="'fed'"):
        Job(name="fed").save()
    with pytest.raises(UnknownJob, match="'fed'"):
        Job.objects.bulk_create([Job(name="feed"), Job(name="fed")])
    assert not Job.objects.exists()


def test_an_entry_with_a_mistake_makes_no_jobs(settings: Any) -> None:
    settings.JOBS = {"feed": {"tasks": ["tests.jobs.one"], "schedule": {"cron": "0 8 * * *"}}}
    with pytest.raises(UnknownJob, match=r"not valid: JOBS\['feed'\]\[\"schedule\"\] is not "):
        Job.objects.create(name="feed")


# -- bulk_create --


@pytest.mark.parametrize("count", [1, 3, 120])
def test_bulk_create_is_a_full_creation(count: int, settings: Any) -> None:
    """Also beyond the number from which PostgreSQL is given the rows by COPY."""
    settings.JOBS = {"hooked": {**settings.JOBS["hooked"], "queue": "slow"}}
    later = timezone.now() + HOUR
    workspace = {"text": "tab\tnewline\nback\\slash \\N ünï 😀", "ran": []}
    given = [
        Job(name="hooked", workspace={**workspace, "ran": []}, priority=n % 3, run_after=later)
        for n in range(count)
    ]
    made = Job.objects.bulk_create(given)
    assert made == given
    assert Job.objects.count() == count
    for job in Job.objects.all():
        assert (job.state, job.next_task, job.queue_name) == ("NEW", "tests.jobs.one", "slow")
        assert job.workspace == {**workspace, "ran": ["creation hook"]}
        assert (job.run_after, job.due) == (later, False)
    assert {job.pk for job in made} == set(Job.objects.values_list("pk", flat=True))
    assert all(not job._state.adding for job in made)
    made[0].refresh_from_db()


def test_bulk_create_keeps_the_order_that_is_given() -> None:
    jobs = Job.objects.bulk_create(Job(name="feed", workspace={"n": n}) for n in range(130))
    stored = list(Job.objects.order_by("created").values_list("workspace__n", flat=True))
    assert stored == list(range(130))
    assert len({job.created for job in jobs}) == 130


@pytest.mark.parametrize("count", [2, 120])
def test_bulk_create_saves_all_or_none(count: int) -> None:
    jobs = [Job(name="feed") for _ in range(count)]
    with pytest.raises(Boom):
        Job.objects.bulk_create([*jobs, Job(name="refused")])
    jobs = [Job(name="feed") for _ in range(count)]
    jobs[-1].pk = jobs[0].pk  # which only the database finds out
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.bulk_create(jobs, batch_size=count - 1)
    assert not Job.objects.exists()


def test_bulk_create_of_nothing() -> None:
    assert Job.objects.bulk_create([]) == []


@pytest.mark.parametrize("strange", [1, None, "feed", {"name": "feed"}, Job])
def test_bulk_create_takes_jobs(strange: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Job.objects.bulk_create([Job(name="feed"), strange])
    assert str(caught.value) == f"bulk_create takes jobs, not {strange!r}"
    assert not Job.objects.exists()


@pytest.mark.parametrize("option", ["ignore_conflicts", "update_conflicts"])
def test_bulk_create_refuses_what_it_cannot_mean(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        Job.objects.bulk_create([Job(name="feed")], **{option: True})
    assert not Job.objects.exists()


# -- the async variants that Django gives every manager --


def test_jobs_can_be_created_from_async_code() -> None:
    async def create() -> None:
        await Job.objects.acreate(name="feed")
        await Job(name="feed").asave()
        await Job.objects.abulk_create([Job(name="feed")])

    async_to_sync(create)()
    assert drain() == 6


# -- finding and counting jobs --


def states_of(*names: str) -> None:
    """One job in each of these states."""
    for state in names:
        job = Job.objects.create(name="feed", workspace={"was": state})
        Job.objects.filter(pk=job.pk).update(state=state)


def test_to_process_is_what_a_worker_could_claim_in_its_order() -> None:
    states_of(*Job.STATES.values)
    Job.objects.create(name="feed", workspace={"was": "urgent"}, priority=1)
    Job.objects.create(name="feed", run_after=timezone.now() + HOUR)
    Job.objects.create(name="feed", workspace={"was": "past"}, run_after=timezone.now() - HOUR)
    Job.objects.create(name="feed", queue_name="other")
    with transaction.atomic():
        found = [job.workspace["was"] for job in Job.objects.to_process("default")]
    assert found == ["urgent", "NEW", "READY", "past"]


@pytest.mark.parametrize(("errors", "calls"), [(0, 1), (2, 3), (3, 4)])
def test_get_ready_or_none_tries_again(
    monkeypatch: pytest.MonkeyPatch, errors: int, calls: int
) -> None:
    job = Job.objects.create(name="feed")
    called = []
    to_process = JobManager.to_process

    def unreliable(self: Any, queue: str) -> Any:
        called.append(queue)
        if len(called) <= errors:
            raise DatabaseError("deadlock")
        return to_process(self, queue)

    monkeypatch.setattr(JobManager, "to_process", unreliable)
    with transaction.atomic():
        assert Job.objects.get_ready_or_none("default") == job
    assert called == ["default"] * calls


def test_get_ready_or_none_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def broken(self: Any, queue: str) -> Any:
        called.append(queue)
        raise DatabaseError("deadlock")

    monkeypatch.setattr(JobManager, "to_process", broken)
    with pytest.raises(DatabaseError, match="deadlock"):
        Job.objects.get_ready_or_none("default")
    with pytest.raises(DatabaseError):
        Job.objects.get_ready_or_none("default", max_retries=0)
    assert len(called) == 4 + 1


# -- deleting --


def test_attempts_go_with_their_job() -> None:
    jobs = [Job.objects.create(name="feed") for _ in range(3)]
    assert drain() == 6
    assert Attempt.objects.count() == 6
    jobs[0].delete()
    assert Attempt.objects.count() == 4
    Job.objects.filter(pk=jobs[1].pk).delete()
    assert set(Attempt.objects.values_list("job_id", flat=True)) == {jobs[2].pk}


def test_deleting_old_jobs_takes_their_attempts_and_no_others() -> None:
    for _ in range(3):
        Job.objects.create(name="fails")
    drain()
    keep = Job.objects.create(name="feed")
    drain()
    Job.objects.filter(name="fails").update(created=timezone.now() - 25 * HOUR)
    assert Job.objects.delete_old() == 3
    assert list(Job.objects.all()) == [keep]
    assert set(Attempt.objects.values_list("job_id", flat=True)) == {keep.pk}


def test_deleting_works_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_dbq.storage.base.PEEK", 4)
    Job.objects.bulk_create(Job(name="feed") for _ in range(10))
    Job.objects.update(state="COMPLETE", created=timezone.now() - 25 * HOUR)
    assert Job.objects.delete_old() == 10
    assert not Job.objects.exists()


def test_a_workers_row_may_go_before_its_jobs() -> None:
    job = Job.objects.create(name="mail")
    drain("outbox")
    Worker.objects.all().delete()
    job.refresh_from_db()
    assert job.state == "COMPLETE"


# -- attempts and workers --


def test_attempts_tell_what_happened() -> None:
    job = Job.objects.create(name="feed")
    drain()
    first, second = job.attempts.all()
    assert (first.number, first.step, first.task) == (1, 0, "tests.jobs.one")
    assert (second.number, second.step, second.task) == (2, 1, "tests.jobs.two")
    worker = Worker.objects.get()
    for attempt in (first, second):
        assert (attempt.outcome, attempt.error, attempt.worker) == ("succeeded", "", worker.label)
        assert worker.started <= attempt.started <= attempt.finished
        assert attempt.duration == attempt.finished - attempt.started
    assert str(second) == "tests.jobs.two 2"
    assert str(worker) == worker.label
    assert worker.stopped is not None


def test_without_time_zones(settings: Any) -> None:
    settings.USE_TZ = False
    Job.objects.create(name="feed", run_after=timezone.now() - HOUR)
    future = Job.objects.create(name="feed", run_after=timezone.now() + HOUR)
    Job.objects.bulk_create(Job(name="feed") for _ in range(60))
    before = timezone.now()
    assert drain() == 2 * 61
    assert list(Job.objects.exclude(state="COMPLETE")) == [future]
    assert Job.get_queue_depths() == {"default": 1}
    assert Job.get_queue_depths(exclude_future_jobs=True) == {}
    for attempt in Attempt.objects.all():
        assert before <= attempt.started <= attempt.finished <= timezone.now()
    for job in Job.objects.filter(state="COMPLETE"):
        assert before <= job.finished <= timezone.now()
    assert Job.objects.delete_old(hours=1) == 0


# -- the index of some of the rows --


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("dbq_job_next", Q(due=True, state__in=["NEW", "READY"])),
        ("dbq_job_later", Q(due=False, limited=False, state__in=["NEW", "READY"])),
        ("dbq_job_held", Q(state__in=["PROCESSING", "STOPPING"])),
        ("dbq_job_member", Q(parent__isnull=False)),
        ("dbq_job_waiting", Q(state="WAITING", round__isnull=False)),
        (
            "dbq_job_limited",
            Q(limited=True, state__in=["NEW", "READY", "PROCESSING", "STOPPING"]),
        ),
        ("dbq_job_unique", Q(state__in=list(UNFINISHED), unique_key__isnull=False)),
    ],
)
def test_the_partial_indexes_are_migrated_with_plain_values(name: str, where: Q) -> None:
    index = next(i for i in Job._meta.indexes if i.name == name)
    path, args, kwargs = index.deconstruct()
    kind = PartialUnique if name == "dbq_job_unique" else PartialIndex
    assert path == f"django_dbq.indexes.{kind.__name__}"
    assert kind(*args, **kwargs) == index
    assert kwargs["where"] == where
    for _, value in kwargs["where"].children:
        for plain in value if isinstance(value, list) else [value]:
            assert type(plain) in (str, bool)


def test_the_indexes_of_the_table_stand_in_the_database() -> None:
    partial = connection.features.supports_partial_indexes
    claim = ["queue_name", "priority", "urgency", "created"]
    limit = ["name", "state", "due", "concurrency_key", "rate_key", *claim[1:]]
    expected = {
        "dbq_job_next": claim if partial else ["state", "due", *claim],
        "dbq_job_later": ["run_after"] if partial else ["state", "due", "limited", "run_after"],
        "dbq_job_held": ["worker_id"] if partial else ["state", "worker_id"],
        "dbq_job_member": ["parent_id", "position"],
        "dbq_job_waiting": ["run_after"] if partial else ["state", "run_after"],
        "dbq_job_limited": limit if partial else ["limited", *limit],
        "dbq_job_unique": ["unique_key"] if partial else ["dbq_job_unique"],
    }
    with connection.cursor() as cursor:
        made = connection.introspection.get_constraints(cursor, Job._meta.db_table)
    assert {name: made[name]["columns"] for name in expected} == expected
    assert {name for name in expected if made[name]["unique"]} == {"dbq_job_unique"}
    if partial:  # the claim reads it in this order, without sorting
        assert made["dbq_job_next"]["orders"] == ["ASC", "DESC", "DESC", "ASC"]
    # Every other index would have to be kept up with each change of a job's state.
    others = {name for name, about in made.items() if about["index"] and name not in expected}
    assert {tuple(made[name]["columns"]) for name in others} <= {("id",), ("created",)}


# -- a new job, made the quick way --


@pytest.mark.parametrize(
    "given",
    [{}, {"name": "quick"}, {"name": "quick", "workspace": None, "run_after": PAST, "priority": 3}],
    ids=str,
)
def test_a_new_job_has_what_django_would_give_it(given: dict[str, Any]) -> None:
    quick, slow = Job(**given), Job.__new__(Job)
    models.Model.__init__(slow, **given)
    own = {"id", "created", "_state"}
    assert quick.__dict__.keys() == slow.__dict__.keys()
    for name in quick.__dict__.keys() - own:
        assert quick.__dict__[name] == slow.__dict__[name], name
        assert type(quick.__dict__[name]) is type(slow.__dict__[name]), name
    assert (quick._state.adding, quick._state.db) == (True, None)
    other = Job(**given)
    assert quick.id != other.id
    assert quick.workspace is None or quick.workspace is not other.workspace


def test_a_new_job_sends_the_signals_of_its_making() -> None:
    made: list[Job] = []

    def note(instance: Job, **kwargs: Any) -> None:
        made.append(instance)

    post_init.connect(note, sender=Job)
    try:
        job = Job(name="quick")
    finally:
        post_init.disconnect(note, sender=Job)
    assert made == [job]


def test_a_new_job_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="colour"):
        Job(name="quick", colour="red")
