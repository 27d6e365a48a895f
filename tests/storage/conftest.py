"""What the tests of the storage share: workers to claim for, jobs in known places, outcomes to write."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from django_dbq import conf
from django_dbq.models import Worker
from django_dbq.storage import Storage, storage_for
from tests import process_jobs


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
