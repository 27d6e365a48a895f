"""``concurrency`` and ``rate_limit``: exact over all workers, by name and by key."""

import datetime
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from django_dbq import engine
from django_dbq.limits import MOST_KEYS, PAGE
from django_dbq.models import Job, Start, Worker
from django_dbq.states import HELD
from django_dbq.storage import Queues, storage_for
from django_dbq.testing import drain
from tests.outcomes import outcome
from tests.storage.plans import plans, query_plans

pytestmark = pytest.mark.django_db(transaction=True)
TASK = "tests.pipelines.tasks.one"
SERVED = Queues((), exclude=True)
SECOND = datetime.timedelta(seconds=1)


def declare(settings: Any, **options: Any) -> None:
    settings.JOBS = {"it": {"tasks": [TASK], **options}, "plain": [TASK]}


def make_worker() -> Worker:
    worker = Worker(label="w", hostname="h", pid=1, queues="", started=timezone.now())
    engine.start_worker(worker, "default")
    return worker


def create(count: int, workspace: Callable[[int], Any] = lambda n: {}, **fields: Any) -> list[Job]:
    return list(
        Job.objects.bulk_create(
            Job(name="it", workspace=workspace(n), **fields) for n in range(count)
        )
    )


def claim(worker: Worker, limit: int = 100, served: Queues = SERVED) -> list[Job]:
    now = timezone.now()
    engine.admit(served, limit, now, "default")
    claimed = engine.claim(worker, served, limit, now, "default")
    return engine.park(worker, claimed, now, "default")


def finish(worker: Worker, jobs: list[Job]) -> None:
    assert len(
        engine.finish(worker, [outcome(job) for job in jobs], timezone.now(), "default")
    ) == len(jobs)


def test_so_many_of_a_name_run_at_once(settings: Any) -> None:
    declare(settings, concurrency=2)
    first, second = make_worker(), make_worker()
    jobs = create(5)
    plain = Job.objects.create(name="plain")
    assert {job.pk for job in claim(first)} == {jobs[0].pk, jobs[1].pk, plain.pk}
    assert claim(second) == []
    held = list(Job.objects.filter(name="it", state__in=HELD))
    mine = [job for job in held if job.pk == jobs[0].pk]
    for job in mine:
        job.claimed_from = "NEW"
    finish(first, mine)
    assert [job.pk for job in claim(second)] == [jobs[2].pk]
    assert claim(first) == []


def test_by_key(settings: Any) -> None:
    declare(settings, concurrency={"limit": 2, "key": "account"})
    worker = make_worker()
    create(9, lambda n: {"account": n % 3})
    jobs = claim(worker)
    assert Counter(job.workspace["account"] for job in jobs) == {0: 2, 1: 2, 2: 2}
    finish(worker, [job for job in jobs if job.workspace["account"] == 1])
    assert [job.workspace["account"] for job in claim(worker)] == [1]


def test_a_job_without_the_key_shares_with_those_where_it_is_null(settings: Any) -> None:
    declare(settings, concurrency={"limit": 1, "key": "account"})
    worker = make_worker()
    create(3, lambda n: [{}, {"account": None}, {"account": "null"}][n])
    assert len(claim(worker)) == 2


def test_priority_and_age_decide_who_is_let_in(settings: Any) -> None:
    declare(settings, concurrency=3)
    low, high = create(2), create(2, priority=5)
    assert {job.pk for job in claim(make_worker())} == {high[0].pk, high[1].pk, low[0].pk}


def test_what_is_not_due_is_not_let_in(settings: Any) -> None:
    declare(settings, concurrency=3)
    create(1, run_after=timezone.now() + datetime.timedelta(hours=1))
    worker = make_worker()
    assert claim(worker) == []
    later = timezone.now() + datetime.timedelta(hours=2)
    assert engine.stage_due(later, "default") == 1
    assert engine.claim(worker, SERVED, 10, later, "default") == []
    assert engine.admit(SERVED, 10, later, "default").count == 1
    assert len(engine.claim(worker, SERVED, 10, later, "default")) == 1


def test_a_queue_that_is_not_served_takes_no_slot(settings: Any) -> None:
    declare(settings, concurrency=1)
    create(1, queue_name="elsewhere")
    create(1, queue_name="here")
    assert [job.queue_name for job in claim(make_worker(), served=Queues(("here",)))] == ["here"]


def test_a_slot_that_nobody_takes_is_given_to_others(settings: Any) -> None:
    """Admitted for a worker that then dies, or that its queue is closed for."""
    declare(settings, concurrency=1)
    create(1, queue_name="a")
    create(1, queue_name="b")
    now = timezone.now()
    assert engine.admit(Queues(("a",)), 10, now, "default").count == 1
    assert [job.queue_name for job in claim(make_worker(), served=Queues(("b",)))] == ["b"]
    assert not Job.objects.get(queue_name="a").due


@pytest.mark.parametrize("way", ["retried", "lost", "released", "handed back", "saved", "moved"])
def test_no_way_leads_past_the_limit(settings: Any, way: str) -> None:
    """Whatever happens to a job that was let in, it is let in again before it runs again."""
    declare(settings, concurrency=1, retries=3)
    worker, other = make_worker(), make_worker()
    first, _second = create(2)
    (job,) = claim(worker)
    assert job.pk == first.pk
    now = timezone.now()
    if way == "retried":
        engine.finish(worker, [outcome(job, ValueError())], now, "default")
    elif way == "lost":
        engine.bury(worker.pk, "A test.", now, "default")
    elif way == "released":
        engine.release(worker.pk, [], now, "default")
    elif way == "handed back":
        engine.hand_back(worker, [job], now, "default")
    elif way == "saved":
        engine.hand_back(worker, [job], now, "default")
        Job.objects.get(pk=first.pk).save()
    elif way == "moved":
        engine.hand_back(worker, [job], now, "default")
        Job.objects.filter(pk=first.pk).update(run_after=now)
    assert len(engine.claim(other, SERVED, 10, now, "default")) <= 1
    claim(other)
    assert Job.objects.filter(state__in=HELD).count() == 1


def test_a_rate(settings: Any) -> None:
    declare(settings, rate_limit="3/h")
    worker = make_worker()
    create(5)
    jobs = claim(worker)
    assert len(jobs) == 3
    finish(worker, jobs)
    admission = engine.admit(SERVED, 10, timezone.now(), "default")
    assert admission.count == 0
    assert admission.wait is not None
    assert 3590 < admission.wait <= 3600
    Start.objects.order_by("at").first().delete()  # as if its hour were over
    assert len(claim(worker)) == 1
    assert Start.objects.count() == 3


def test_a_rate_by_key_beside_a_concurrency_for_all(settings: Any) -> None:
    declare(settings, rate_limit={"limit": "1/m", "key": "host"}, concurrency=3)
    worker = make_worker()
    create(8, lambda n: {"host": n % 4})
    jobs = claim(worker)
    assert sorted(job.workspace["host"] for job in jobs) == [0, 1, 2]
    finish(worker, jobs)
    assert [job.workspace["host"] for job in claim(worker)] == [3]


def test_starts_count_from_their_claim_and_not_from_their_admission(settings: Any) -> None:
    """What is admitted may be claimed a while later: in no minute begin more than so many."""
    declare(settings, rate_limit="2/m")
    worker = make_worker()
    create(6)
    assert engine.admit(SERVED, 10, timezone.now(), "default").count == 2
    Start.objects.update(
        admitted=timezone.now() - 0.9 * SECOND
    )  # the claim comes as late as it may
    jobs = engine.claim(worker, SERVED, 10, timezone.now(), "default")
    assert len(jobs) == 2
    assert not Start.objects.filter(at=None).exists()
    Start.objects.update(admitted=timezone.now() - 2 * SECOND)
    assert engine.admit(SERVED, 10, timezone.now(), "default").count == 0
    Start.objects.update(at=timezone.now() - 61 * SECOND)
    assert engine.admit(SERVED, 10, timezone.now(), "default").count == 2


def test_what_was_handed_back_is_let_in_anew(settings: Any) -> None:
    """Else its next claim would be a start that nobody counts."""
    declare(settings, rate_limit="1/m")
    worker = make_worker()
    create(1)
    (job,) = claim(worker)
    engine.hand_back(worker, [job], timezone.now(), "default")
    Start.objects.update(at=timezone.now() - 61 * SECOND)
    assert engine.claim(worker, SERVED, 10, timezone.now(), "default") == []
    assert len(claim(worker)) == 1
    create(1)
    assert claim(worker) == []


def test_a_start_that_nobody_has_lived_to_note_counts(settings: Any) -> None:
    declare(settings, rate_limit="2/h")
    worker = make_worker()
    create(4)
    assert len(claim(worker)) == 2
    Start.objects.update(at=None, admitted=timezone.now() - 3600 * SECOND)
    assert claim(worker) == []
    assert Start.objects.filter(at__isnull=False).count() == 2


@pytest.mark.parametrize("way", ["cancelled", "paused", "deleted"])
def test_a_start_that_did_not_come_about_is_given_back(settings: Any, way: str) -> None:
    declare(settings, rate_limit="1/h")
    first, second = create(2)
    assert engine.admit(SERVED, 10, timezone.now(), "default").count == 1
    getattr(first, {"cancelled": "cancel", "paused": "pause", "deleted": "delete"}[way])()
    assert [job.pk for job in claim(make_worker())] == [second.pk]
    assert Start.objects.get().job_id == second.pk


@pytest.mark.parametrize(
    "limits",
    [
        {"concurrency": {"limit": 1, "key": "account"}},
        {"rate_limit": {"limit": "1/h", "key": "account"}},
    ],
    ids=["concurrency", "rate"],
)
def test_keys_without_a_slot_are_in_no_other_keys_way(settings: Any, limits: Any) -> None:
    """More of them than one admission looks at, with a backlog each."""
    declare(settings, **limits)
    worker = make_worker()
    keys = 3 * MOST_KEYS
    create(2 * keys, lambda n: {"account": f"{n % keys:04}"})
    begun = [job for _ in range(4) for job in claim(worker, 1000)]
    assert len({job.workspace["account"] for job in begun}) == len(begun) == keys
    assert claim(worker, 1000) == []
    create(1, lambda n: {"account": "9999"})
    assert [job.workspace["account"] for job in claim(worker, 1000)] == ["9999"]


def test_keys_take_turns_where_there_are_many(settings: Any) -> None:
    """No key waits for others to have nothing left."""
    declare(settings, concurrency={"limit": 100, "key": "account"})
    worker = make_worker()
    keys = 2 * MOST_KEYS
    create(20 * keys, lambda n: {"account": f"{n % keys:04}"})
    begun = [job.workspace["account"] for _ in range(4) for job in claim(worker, MOST_KEYS)]
    assert len(begun) == 4 * MOST_KEYS
    assert min(begun) < f"{MOST_KEYS:04}" <= max(begun)


def test_full_keys_cost_an_admission_no_statement_each(
    settings: Any, django_assert_max_num_queries: Any
) -> None:
    declare(settings, concurrency={"limit": 1, "key": "account"})
    create(400, lambda n: {"account": n % 200})
    worker = make_worker()
    while claim(worker, 1000):
        pass
    with django_assert_max_num_queries(20):
        admission = engine.admit(SERVED, 1000, timezone.now(), "default")
    assert (admission.count, admission.full) == (0, True)


def test_an_admission_looks_jobs_up_however_many_are_parked_or_have_ended(settings: Any) -> None:
    declare(settings, concurrency={"limit": 2, "key": "account"}, rate_limit="100/m")
    settings.JOBS["plain"] = [TASK]
    create(3000, lambda n: {"account": n % 10})
    Job.objects.bulk_create(Job(name="plain") for _ in range(3000))
    Job.objects.filter(name="plain").update(state="COMPLETE")
    make = partial(engine.admit, SERVED, 20, timezone.now(), "default")
    if connection.vendor == "sqlite":
        with query_plans() as found:
            assert make().count == 20
        assert not [line for line in found if line.startswith("SCAN django_dbq_job")]
    elif connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE django_dbq_job")
        with plans() as read:
            assert make().count == 20
        assert max(plan.read for plan in read) <= PAGE
    else:
        assert make().count == 20


def test_old_starts_are_forgotten(settings: Any) -> None:
    declare(settings, rate_limit="2/s")
    create(2)
    claim(make_worker())
    Start.objects.update(at=timezone.now() - datetime.timedelta(seconds=5))
    create(1)
    claim(make_worker())
    assert Start.objects.count() == 1


def test_members_of_a_map_are_under_the_limit_of_its_name(settings: Any) -> None:
    declare(settings, concurrency=2)
    settings.JOBS = {
        "it": {
            "tasks": [{"map": "tests.pipelines.tasks.square", "over": "items", "into": "sent"}],
            "concurrency": 2,
        }
    }
    worker = make_worker()
    job = Job.objects.create(name="it", workspace={"items": [1, 2, 3, 4, 5]})
    from django_dbq import runner

    (claimed,) = claim(worker)
    engine.finish(worker, [runner.run(claimed, timezone.now)], timezone.now(), "default")
    assert len(claim(worker)) == 2
    engine.bury(worker.pk, "A test.", timezone.now(), "default")
    drain()
    job.refresh_from_db()
    assert job.workspace["sent"] == [1, 4, 9, 16, 25]


def test_drain_obeys_and_ends(settings: Any) -> None:
    declare(settings, concurrency=1)
    create(5)
    drain()
    assert set(Job.objects.values_list("state", flat=True)) == {"COMPLETE"}


def test_limits_that_the_settings_gain_and_lose(settings: Any) -> None:
    declare(settings)
    create(3, lambda n: {"account": n})
    declare(settings, concurrency={"limit": 1, "key": "account"})
    assert engine.follow_limits(timezone.now(), "default") == 3
    rows = set(Job.objects.values_list("limited", "due", "concurrency_key"))
    assert rows == {(True, False, str(n)) for n in range(3)}
    assert engine.follow_limits(timezone.now(), "default") == 0
    declare(settings)
    assert engine.mend(timezone.now(), "default") == 3
    assert set(Job.objects.values_list("limited", "due", "concurrency_key")) == {(False, True, "")}


def test_without_limits_nothing_is_asked(settings: Any, django_assert_num_queries: Any) -> None:
    declare(settings)
    with django_assert_num_queries(0):
        engine.admit(Queues(), 10, timezone.now(), "default")


def test_a_limit_that_holds_nobody_up_is_one_look(
    settings: Any, django_assert_num_queries: Any
) -> None:
    declare(settings, concurrency=1)
    with django_assert_num_queries(2):  # for paused queues, and for somebody who is parked
        engine.admit(Queues(), 10, timezone.now(), "default")


class Crew(threading.Thread):
    """One of several workers that claim, finish and lose jobs until nothing is left."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.errors: list[BaseException] = []
        self.most: Counter[str] = Counter()
        self.claimed: list[tuple[float, float]] = []  # between when and when, for each job

    def run(self) -> None:
        try:
            worker = make_worker()
            for _ in range(20000):
                if not Job.objects.exclude(state="COMPLETE").exists():
                    return
                begun = time.monotonic()
                jobs = self.retried(claim, worker, 1 + self.number % 3)
                self.claimed += [(begun, time.monotonic())] * len(jobs)
                self.look()
                if self.number == 0 and jobs:
                    self.retried(engine.bury, worker.pk, "A test.", timezone.now(), "default")
                    worker = make_worker()
                elif jobs:
                    self.retried(finish, worker, jobs)
            raise AssertionError("there is still something left")
        except BaseException as error:
            self.errors.append(error)
        finally:
            connections.close_all()

    def look(self) -> None:
        rows = Job.objects.filter(state__in=HELD).values_list("concurrency_key", flat=True)
        for key, count in Counter(rows).items():
            self.most[key] = max(self.most[key], count)

    def retried(self, function: Callable[..., Any], *args: Any) -> Any:
        for _ in range(50):
            try:
                return function(*args)
            except Exception as error:
                if not storage_for("default").is_transient(error):
                    raise
        raise AssertionError("somebody is in the way for ever")


def test_the_rate_holds_with_many_workers_at_once(settings: Any) -> None:
    """Of nine claims, the last ended a second after the first began, or later."""
    declare(settings, rate_limit="8/s", retries=9, on_lost="retry")
    create(40)
    crew = [Crew(number) for number in range(1, 6)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(200)
    assert [error for one in crew for error in one.errors] == []
    claims = sorted(claim for one in crew for claim in one.claimed)
    assert len(claims) == 40
    for nine in (claims[n : n + 9] for n in range(32)):
        assert max(ended for _, ended in nine) - nine[0][0] >= 1


def test_the_limit_holds_with_many_workers_at_once(settings: Any) -> None:
    declare(settings, concurrency={"limit": 2, "key": "account"}, retries=5, on_lost="retry")
    create(90, lambda n: {"account": n % 3})
    crew = [Crew(number) for number in range(6)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(200)
    assert [error for one in crew for error in one.errors] == []
    assert set(Job.objects.values_list("state", flat=True)) == {"COMPLETE"}
    assert any(one.most for one in crew)
    assert all(count <= 2 for one in crew for count in one.most.values())
