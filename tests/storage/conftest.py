"""What the tests of the storage share: workers to claim for, jobs in known places, outcomes to write."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_dbq import conf
from django_dbq.models import Worker
from django_dbq.storage import Storage, storage_for
from tests import process_jobs
from tests.storage.plans import FINISHED, FUTURE, HOUR, NOW, READY, fill


@pytest.fixture(autouse=True)
def jobs_setting(settings: Any) -> None:
    settings.JOBS = process_jobs.JOBS


@pytest.fixture
def storage() -> Storage:
    return storage_for("default")


@pytest.fixture
def known() -> tuple[str, ...]:
    return conf.configuration().known_steps


@pytest.fixture
def new_worker(transactional_db: None) -> Callable[[str], Worker]:
    def make(label: str) -> Worker:
        return Worker.objects.create(
            label=label, hostname="here", pid=1, queues="default", started=timezone.now()
        )

    return make


@pytest.fixture
def worker(new_worker: Callable[[str], Worker]) -> Worker:
    return new_worker("ours")


@pytest.fixture
def other_worker(new_worker: Callable[[str], Worker]) -> Worker:
    return new_worker("another's")


@pytest.fixture(params=["empty", "young", "full"])
def statistics(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    """A full table whose statistics were taken when it was as the parameter says: young is with ready jobs only."""
    if connection.vendor == "mysql":
        pytest.skip("MySQL and MariaDB take statistics when they like: no plan can be relied on")
    postgresql = connection.vendor == "postgresql"
    keep = "ALTER TABLE django_dbq_job SET (autovacuum_enabled = {})"
    with connection.cursor() as cursor:
        if postgresql:
            cursor.execute(keep.format("false"))
            # To analyse an empty table leaves the statistics of the test before. Its pages, if tests that were rolled
            # back have left some, would be taken to hold one row for ever, and plans for that read all of them.
            cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'django_dbq_job'::regclass")
            cursor.execute("TRUNCATE django_dbq_job")
        cursor.execute("ANALYZE")
        fill(cursor, READY, "NEW")
        if request.param == "young":
            cursor.execute("ANALYZE")
        fill(cursor, FUTURE, "NEW", due=False, run_after=NOW + HOUR)
        fill(cursor, FINISHED, "COMPLETE")
        if request.param == "full":
            cursor.execute("ANALYZE")
        yield request.param
        if postgresql:
            cursor.execute(keep.format("true"))
