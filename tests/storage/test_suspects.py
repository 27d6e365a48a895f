"""Suspects, jobs that were lost with a worker: claimed alone, so that one that kills its worker takes no other too."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections, transaction
from django.utils import timezone

from django_dbq.models import Job, Worker
from django_dbq.storage import Position, Queues, Storage, Suspects

pytestmark = pytest.mark.django_db(transaction=True)

DEFAULT = Queues()
ALONE, AWAITED, PASSED = Suspects.ALONE, Suspects.AWAITED, Suspects.PASSED


def create(*keys: str, queue: str = "default", priority: int = 0) -> None:
    """One job for each key; one with a question mark is a suspect."""
    for key in keys:
        job = Job.objects.create(
            name="quick", workspace={"key": key}, queue_name=queue, priority=priority
        )
        if "?" in key:
            Job.objects.filter(pk=job.pk).update(state="READY", lost=1, attempt=1)


Claim = Callable[..., list[str]]


@pytest.fixture
def claim(storage: Storage, worker: Worker, known: tuple[str, ...]) -> Claim:
    """Claim for our worker; the keys of what it gets."""

    def take(
        suspects: Suspects, limit: int = 10, served: Queues = DEFAULT, by: Worker = worker
    ) -> list[str]:
        jobs = storage.claim(by.pk, served, limit, timezone.now(), known, suspects=suspects)
        return [job.workspace["key"] for job in jobs]

    return take


@pytest.mark.parametrize(
    ("suspects", "jobs", "expected"),
    [
        (ALONE, "a b", "a b"),
        (ALONE, "a? b", "a?"),
        (ALONE, "a? b? c", "a?"),
        (ALONE, "a b? c", "a c"),
        (ALONE, "a b?", "a"),
        (AWAITED, "a b", "a b"),
        (AWAITED, "a? b", ""),
        (AWAITED, "a? b?", ""),
        (AWAITED, "a b? c", "a c"),
        (PASSED, "a b", "a b"),
        (PASSED, "a? b", "b"),
        (PASSED, "a b? c d?", "a c"),
        (PASSED, "a? b?", ""),
    ],
)
def test_what_a_claim_takes(claim: Claim, suspects: Suspects, jobs: str, expected: str) -> None:
    create(*jobs.split())
    before = dict(Job.objects.values_list("workspace__key", "attempt"))
    assert claim(suspects) == expected.split()
    for job in Job.objects.all():
        key, taken = job.workspace["key"], job.workspace["key"] in expected.split()
        assert (job.state == "PROCESSING") == taken, "what is not taken stays as it is"
        assert (job.worker_id is not None) == taken
        assert job.attempt == before[key] + taken
        assert job.lost == ("?" in key)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_suspects_do_not_stand_in_the_way_of_who_passes_them(claim: Claim, limit: int) -> None:
    """A worker that is busy in one thread goes on in the others, however many suspects come first."""
    create("a?", "b?", "c?", "d", "e", "f")
    assert claim(PASSED, limit) == ["d", "e", "f"][:limit]


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_everything_is_taken_in_turn(claim: Claim, limit: int) -> None:
    create("a?", "b", "c", "d?", "e", "f?")
    claims = []
    while got := claim(ALONE, limit):
        claims.append(got)
        assert len(got) <= limit
        assert len(got) == 1 or "?" not in str(got)
    assert sorted(key for keys in claims for key in keys) == ["a?", "b", "c", "d?", "e", "f?"]
    assert claims[0] == ["a?"]


def test_a_suspect_waits_for_more_urgent_jobs(claim: Claim) -> None:
    create("suspect?")
    create("urgent", priority=1)
    create("urgent suspect?", priority=2)
    assert claim(AWAITED) == []
    assert claim(ALONE) == ["urgent suspect?"]
    assert claim(ALONE) == ["urgent"]
    assert claim(ALONE) == ["suspect?"]


@pytest.mark.parametrize("served", [Queues(("x", "y")), Queues(("z",), exclude=True)], ids=str)
@pytest.mark.parametrize("limit", [1, 10])
def test_several_queues(claim: Claim, served: Queues, limit: int) -> None:
    """One suspect at most, and only if it is the first of them all."""
    create("z1?", queue="z", priority=9)
    create("x1", queue="x")
    create("y1?", "y2", queue="y")
    create("x2?", queue="x")
    assert claim(AWAITED, limit, served) == ["x1", "y2"][:limit]
    while claim(AWAITED, limit, served):
        pass
    taken = Job.objects.filter(state="PROCESSING").values_list("workspace__key", flat=True)
    assert set(taken) == ({"x1"} if limit == 1 else {"x1", "y2"})
    assert claim(ALONE, limit, served) == ["y1?"]
    if limit == 1:
        assert claim(ALONE, limit, served) == ["y2"]
    assert claim(ALONE, limit, served) == ["x2?"]
    assert claim(ALONE, limit, served) == []


@pytest.mark.parametrize("served", [Queues(("x", "y")), Queues(("z",), exclude=True)], ids=str)
def test_suspects_of_several_queues_can_be_passed(claim: Claim, served: Queues) -> None:
    create("z1", queue="z")
    create("x1?", "x2?", "x3", queue="x")
    create("y1?", "y2", queue="y")
    assert claim(PASSED, 2, served) == ["x3", "y2"]
    assert claim(PASSED, 2, served) == []


def test_a_claim_from_a_position_takes_a_suspect_alone_too(
    claim: Claim, storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    create("a", "b?", "c")
    jobs = storage.claim(worker.pk, Queues(), 1, timezone.now(), known)
    position = Position()
    position.remember(jobs)
    for suspects, expected in ((AWAITED, []), (PASSED, ["c"]), (ALONE, ["b?"])):
        got = storage.claim(
            worker.pk, Queues(), 10, timezone.now(), known, None, position, suspects
        )
        assert [job.workspace["key"] for job in got] == expected
        assert suspects is not PASSED or storage.hand_back(worker.pk, got, timezone.now()) == 1


def test_a_suspect_is_claimed_like_any_other_job(
    storage: Storage, worker: Worker, known: tuple[str, ...]
) -> None:
    create("a?")
    (job,) = storage.claim(worker.pk, Queues(), 10, timezone.now(), known)
    row = Job.objects.get()
    for field in Job._meta.concrete_fields:
        assert getattr(job, field.attname) == getattr(row, field.attname), field.attname
    assert (job.claimed_from, job.attempt, job.lost) == ("READY", 2, 1)
    assert storage.hand_back(worker.pk, [job], timezone.now()) == 1
    row.refresh_from_db()
    assert (row.state, row.attempt, row.lost) == ("READY", 1, 1), "it is a suspect still"


def test_two_workers_take_one_suspect_each(
    storage: Storage,
    worker: Worker,
    other_worker: Worker,
    known: tuple[str, ...],
    claim: Claim,
) -> None:
    """The second comes while the first has not committed: it may find nothing, but never the same."""
    create("a?", "b?", "c")

    def second() -> list[str]:
        try:
            return claim(ALONE, by=other_worker)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            assert claim(ALONE) == ["a?"]
            theirs = pool.submit(second)
            if connections["default"].features.has_select_for_update_skip_locked:
                assert theirs.result(30) in ([], ["b?"])
        assert theirs.result(30) in ([], ["b?"])
    assert theirs.result() or claim(ALONE, by=other_worker) == ["b?"]
    assert claim(ALONE) == ["c"]
    for job in Job.objects.filter(lost=1):
        assert (job.state, job.attempt) == ("PROCESSING", 2)
