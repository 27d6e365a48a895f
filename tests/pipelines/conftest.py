"""What the tests of pipelines share."""

from collections.abc import Iterator

import pytest

from tests.pipelines import tasks


@pytest.fixture(autouse=True)
def nothing_was_run() -> Iterator[None]:
    """The journal of the tasks is empty, and none of them is broken."""
    tasks.called.clear()  # tests elsewhere run some of them as well
    yield
    tasks.called.clear()
    tasks.broken.clear()


@pytest.fixture(
    params=[
        pytest.param("in a transaction", marks=pytest.mark.django_db),
        pytest.param("committed", marks=pytest.mark.django_db(transaction=True)),
    ]
)
def anywhere() -> None:
    """The test is run twice: within ``TestCase``'s transaction, and with a worker that commits."""
