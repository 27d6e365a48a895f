"""What a worker knows of its lease without asking anybody."""

import pytest

from django_dbq.workers import lease
from django_dbq.workers.lease import LATE, Lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says; set the one item of the list."""
    says = [1000.0]
    monkeypatch.setattr(lease, "now", lambda: says[0])
    return says


def test_a_heartbeat_in_time_is_no_news(clock: list[float]) -> None:
    mine = Lease(10)
    for _ in range(5):
        clock[0] += LATE * 10 - 0.1
        mine.renew(clock[0])
    assert mine.restored + 10 < clock[0]


def test_the_end_of_an_outage_is_known_whichever_thread_has_beaten_first(
    clock: list[float],
) -> None:
    """The next heartbeat, of another thread, is in time again."""
    mine = Lease(10)
    clock[0] += LATE * 10
    mine.renew(clock[0])
    clock[0] += 0.1
    mine.renew(clock[0])
    assert mine.restored == clock[0] - 0.1


def test_a_heartbeat_that_took_long_counts_from_its_beginning(clock: list[float]) -> None:
    mine = Lease(10)
    begun = clock[0]
    clock[0] += 5
    mine.renew(begun)
    assert mine.held
    clock[0] += 4
    assert not mine.held
    mine.renew(begun + 5)
    assert (mine.held, mine.restored) == (True, clock[0])
