"""Paused queues: nothing is claimed from them, by anybody, from the next claim on."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from django_dbq import conf, engine
from django_dbq.models import Job, Queue, Worker
from django_dbq.storage import Position, Queues, storage_for
from django_dbq.testing import drain

pytestmark = pytest.mark.django_db(transaction=True)
TASK = "tests.pipelines.tasks.one"


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {"it": [TASK, TASK]}


def create(queue: str) -> Job:
    job: Job = Job.objects.create(name="it", queue_name=queue)
    return job


def states() -> dict[str, str]:
    return dict(Job.objects.order_by("queue_name").values_list("queue_name", "state"))


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("queues", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.parametrize(
    "served",
    [
        Queues(("a",)),
        Queues(("a", "b", "c")),
        Queues((), exclude=True),
        Queues(("c",), exclude=True),
    ],
)
def test_nothing_is_claimed_from_a_paused_queue(served: Queues) -> None:
    worker = Worker(label="w", hostname="h", pid=1, queues="", started=timezone.now())
    engine.start_worker(worker, "default")
    for queue in "abc":
        create(queue)
    assert engine.pause_queue("a", timezone.now(), "default")
    known, now = conf.configuration().known_steps, timezone.now()
    storage = storage_for("default")
    for position in (None, Position()):
        jobs = storage.claim(worker.pk, served, 10, now, known, None, position)
        expected = [name for name in "abc" if served.serves(name) and name != "a"]
        assert [job.queue_name for job in jobs] == expected
        storage.hand_back(worker.pk, jobs, now)
    position = Position()
    position.heads = {"a": (0, 0, now.replace(year=2000))}
    if connection.vendor == "postgresql":
        assert storage.claim(worker.pk, served, 10, now, known, None, position) == []


def test_resumed_it_goes_on_where_it_was() -> None:
    create("a")
    create("b")
    command("pause", "a")
    drain()
    assert states() == {"a": "NEW", "b": "COMPLETE"}
    command("resume", "a")
    drain()
    assert states() == {"a": "COMPLETE", "b": "COMPLETE"}


def test_a_job_stops_between_two_steps(settings: Any) -> None:
    settings.JOBS = {"it": [f"{__name__}.pauses", TASK]}
    create("a")
    drain()
    assert states() == {"a": "READY"}
    command("resume", "a")
    drain()
    assert states() == {"a": "COMPLETE"}


def pauses(job: Job) -> None:
    assert engine.pause_queue(job.queue_name, timezone.now(), "default")


def test_the_command_says_what_it_has_done() -> None:
    assert command("pause", "a", "b") == "a: now paused\nb: now paused\n"
    assert command("pause", "a") == "a: already paused\n"
    assert command("resume", "a", "c") == "a: now not paused\nc: already not paused\n"
    assert command("pause", "a") == "a: now paused\n"
    assert set(Queue.objects.filter(paused__isnull=False)) == {Queue("a"), Queue("b")}
    with pytest.raises(CommandError, match="'' is no queue"):
        command("pause", "x", "")
    assert not Queue.objects.filter(name="x").exists(), "nothing was done"


def test_the_list() -> None:
    create("a")
    create("longer")
    create("longer")
    command("pause", "idle", "longer")
    lines = command().splitlines()
    assert lines[0] == "a              1"
    assert lines[1].startswith("idle           0  paused since 20")
    assert lines[2].startswith("longer         2  paused since 20")
    found = json.loads(command("list", "--json"))
    assert found["a"] == {"waiting": 1, "paused": None}
    assert found["longer"]["waiting"] == 2
    assert found["longer"]["paused"].startswith("20")
