"""Unique jobs: one unfinished job at most of the same values, decided by the database."""

import threading
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction

from django_dbq import engine
from django_dbq.models import Job, JobExists
from django_dbq.storage import Storage, storage_for
from django_dbq.testing import drain

pytestmark = pytest.mark.django_db(transaction=True)
TASK = "tests.pipelines.tasks.one"
FAILS = "tests.pipelines.tasks.fragile"


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "whole": {"tasks": [TASK], "unique": True},
        "keyed": {"tasks": [TASK], "unique": ["account", "day"]},
        "strict": {"tasks": [TASK], "unique": True, "unique_conflict": "raise"},
        "latest": {"tasks": [TASK], "unique": ["account"], "unique_conflict": "replace"},
        "fails": {"tasks": [FAILS], "unique": True},
        "plain": [TASK],
    }


def create(name: str, **workspace: Any) -> Job:
    job: Job = Job.objects.create(name=name, workspace=workspace)
    return job


def test_the_same_values_give_the_job_that_exists() -> None:
    first = create("whole", a=1, b=[2])
    again = create("whole", b=[2], a=1)
    assert again.pk == first.pk
    assert again._state.adding is False
    assert create("whole", a=2).pk != first.pk
    assert Job.objects.count() == 2


def test_names_do_not_share_their_values() -> None:
    assert create("whole", a=1).pk != create("strict", a=1).pk
    assert create("plain", a=1).pk != create("plain", a=1).pk


def test_only_the_named_keys_count() -> None:
    first = create("keyed", account=1, day=2, more=3)
    assert create("keyed", account=1, day=2, more=4).pk == first.pk
    assert create("keyed", account=1, day=3).pk != first.pk
    without = create("keyed", account=1)
    assert create("keyed", account=1, day=None).pk == without.pk


def test_a_finished_job_is_in_nobodys_way() -> None:
    first = create("whole", a=1)
    drain()
    second = create("whole", a=1)
    assert second.pk != first.pk
    assert second.cancel()
    assert create("whole", a=1).pk != second.pk


def test_raise() -> None:
    first = create("strict", a=1)
    with pytest.raises(JobExists, match=str(first.pk)) as caught:
        create("strict", a=1)
    assert caught.value.job == first.pk
    with transaction.atomic():
        with pytest.raises(JobExists):
            create("strict", a=1)
        assert create("strict", a=2).state == "NEW", "the transaction is still usable"


def test_replace_changes_a_job_that_has_not_begun() -> None:
    first = create("latest", account=1, text="old")
    again = Job.objects.create(
        name="latest", workspace={"account": 1, "text": "new"}, priority=5, queue_name="quick"
    )
    assert again.pk == first.pk
    first.refresh_from_db()
    assert first.workspace == {"account": 1, "text": "new"}
    assert (first.priority, first.queue_name) == (5, "quick")


def test_replace_leaves_a_job_alone_that_has_begun() -> None:
    first = create("latest", account=1, text="old")
    Job.objects.filter(pk=first.pk).update(state="READY", attempt=1)
    assert create("latest", account=1, text="new").pk == first.pk
    first.refresh_from_db()
    assert first.workspace["text"] == "old"


def test_bulk_create_returns_the_jobs_that_exist_in_their_places() -> None:
    first = create("whole", a=1)
    made = Job.objects.bulk_create(
        [
            Job(name="plain"),
            Job(name="whole", workspace={"a": 1}),
            Job(name="whole", workspace={"a": 2}),
            Job(name="whole", workspace={"a": 2}),
            *(Job(name="whole", workspace={"a": n}) for n in range(3, 103)),
        ]
    )
    assert made[1].pk == first.pk
    assert made[3] is made[2]
    assert Job.objects.count() == 1 + 2 + 100
    assert {job.state for job in Job.objects.all()} == {"NEW"}


def test_who_depends_on_one_that_exists_depends_on_that() -> None:
    """Also on what comes twice among those that are created."""
    first = create("whole", a=1)
    again, new, twice = (Job(name="whole", workspace={"a": n}) for n in (1, 2, 2))
    waits = Job(name="plain", depends_on=[again, first, new, twice])
    made = Job.objects.bulk_create([again, new, twice, waits])
    assert made == [first, new, new, waits]
    assert set(waits.dependencies.values_list("on", flat=True)) == {first.pk, new.pk}
    assert (waits.state, waits.waiting_for) == ("WAITING", 2)
    drain()
    waits.refresh_from_db()
    assert waits.state == "COMPLETE"


def test_bulk_create_that_is_to_raise_creates_nothing() -> None:
    create("strict", a=1)
    with pytest.raises(JobExists):
        Job.objects.bulk_create([Job(name="plain"), Job(name="strict", workspace={"a": 1})])
    with pytest.raises(JobExists):
        Job.objects.bulk_create(Job(name="strict", workspace={"a": 2}) for _ in range(2))
    assert Job.objects.count() == 1


def test_retry_and_fork_of_a_job_whose_values_another_has() -> None:
    first = create("fails", broken=True)
    drain()
    second = create("fails", broken=True)
    first.refresh_from_db()
    assert first.state == "FAILED"
    for verb in (first.retry, first.fork):
        with pytest.raises(JobExists, match=str(second.pk)):
            verb()
        with transaction.atomic():
            with pytest.raises(JobExists):
                verb()
            assert Job.objects.get(pk=first.pk).state == "FAILED"
    second.cancel()
    assert first.retry()


def test_the_database_decides() -> None:
    """Also about rows that are written behind our back."""
    first, second = create("whole", a=1), create("whole", a=2)
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=second.pk).update(unique_key=first.unique_key)
    Job.objects.filter(pk=first.pk).update(state="COMPLETE")
    assert Job.objects.filter(pk=second.pk).update(unique_key=first.unique_key) == 1
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.filter(pk=first.pk).update(state="READY")


@pytest.mark.parametrize("way", ["create", "bulk_create"])
def test_of_many_at_the_same_time_one_wins(way: str) -> None:
    together, pks = threading.Barrier(6), list[Any]()

    def run() -> None:
        try:
            for number in range(5):
                together.wait(20)
                job = Job(name="whole", workspace={"a": number})
                if way == "create":
                    job.save()
                else:
                    (job,) = Job.objects.bulk_create([job])
                pks.append((number, job.pk))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pks) == 30
    assert len(set(pks)) == 5
    assert Job.objects.count() == 5


def test_the_look_before_is_by_the_index() -> None:
    if connection.vendor == "mysql":
        pytest.skip("about PostgreSQL's and SQLite's partial index")
    Job.objects.bulk_create(Job(name="plain") for _ in range(2000))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE django_dbq_job")
        sql, params = storage_for("default").unfinished(["x"]).query.sql_with_params()
        explain = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
        cursor.execute(f"{explain} {sql}", params)
        plan = " ".join(str(row) for row in cursor.fetchall())
    assert "dbq_job_unique" in plan


def test_a_key_that_is_given_back_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the insert another takes it, and ends; the next look finds nobody."""
    rival = create("whole", a=1)
    storage = type(storage_for("default"))
    unfinished, looks = storage.unfinished, list[int]()

    def blind(self: Any, keys: Any) -> Any:
        looks.append(1)
        if len(looks) == 1:
            return Job.objects.none()
        engine.cancel([rival.pk], rival.created, "default")
        return unfinished(self, keys)

    monkeypatch.setattr(storage, "unfinished", blind)
    job = create("whole", a=1)
    assert job.pk != rival.pk
    assert len(looks) == 2


def test_a_fork_with_other_values_has_their_key() -> None:
    job = create("keyed", account=1, day=1)
    fork = job.fork(workspace={"account": 1, "day": 2})
    assert create("keyed", account=1, day=2).pk == fork.pk
    assert create("keyed", account=1, day=1).pk == job.pk
    with pytest.raises(JobExists):
        job.fork(workspace={"account": 1, "day": 2})


def test_the_values_that_count_are_those_of_the_creation() -> None:
    """What tasks, or people, make of the workspace later is something else."""
    job = create("fails", account=1, broken=True)
    drain()
    Job.objects.filter(pk=job.pk).update(workspace={"account": 2})
    job.refresh_from_db()
    assert job.retry()
    assert create("fails", account=1, broken=True).pk == job.pk
    assert create("fails", account=2).pk != job.pk


def test_what_replaces_brings_its_limits(settings: Any) -> None:
    settings.JOBS = {
        "latest": {
            "tasks": [TASK],
            "unique": ["day"],
            "unique_conflict": "replace",
            "concurrency": {"limit": 1, "key": "account"},
            "rate_limit": {"limit": "1/s", "key": "host"},
        }
    }
    job = create("latest", day=1, account=1, host="a")
    create("latest", day=1, account=2, host="b")
    job.refresh_from_db()
    assert (job.workspace["account"], job.concurrency_key, job.rate_key) == (2, "2", '"b"')


def test_what_replaces_brings_no_dependencies() -> None:
    with pytest.raises(ValueError, match="leave depends_on out, or use another unique_conflict"):
        Job.objects.create(name="latest", workspace={"account": 1}, depends_on=[create("plain")])


@pytest.mark.skipif(connection.vendor == "sqlite", reason="it has one writer at a time")
@pytest.mark.parametrize("verb", ["retry", "fork"])
def test_the_job_in_the_way_may_end_in_the_moment_of_its_refusal(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    first = create("whole", a=1)
    assert first.cancel()
    other = create("whole", a=1)
    storage = type(storage_for("default"))
    look = storage.unfinished

    def end() -> None:
        Job.objects.filter(pk=other.pk).update(state="COMPLETE")
        connections.close_all()

    def late(self: Storage, keys: Any) -> Any:
        thread = threading.Thread(target=end)
        thread.start()
        thread.join(20)
        return look(self, keys)

    monkeypatch.setattr(storage, "unfinished", late)
    assert getattr(first, verb)()
