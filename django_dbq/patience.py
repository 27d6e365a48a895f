"""How we put up with the database: try again after a deadlock and the like, and wait when it is away."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError, connections

from .storage import storage_for

T = TypeVar("T")

TRIES = 6
PAUSE = 0.02  # seconds before the second try, doubled for each further one, and jittered
RECONNECT = (
    0.5,
    30.0,
)  # seconds to wait for a database that is away, doubled up to the second number


def steadily(function: Callable[[], T], using: str) -> T:
    """Call a function that is one transaction, and again (a few times, with jitter) after a deadlock and the like.

    Raises:
        DatabaseError: any other, or still the same after the last try.
    """
    for number in range(TRIES):
        try:
            return function()
        except DatabaseError as error:
            # Within somebody's transaction there is nothing to try again: that is the one to be rolled back.
            if (
                number == TRIES - 1
                or connections[using].in_atomic_block
                or not storage_for(using).is_transient(error)
            ):
                raise
            pause(number)
    raise AssertionError("the last try returns or raises")


def pause(number: int) -> None:
    """Sleep before the try after this ``number`` (from 0): the longer, the more have gone wrong."""
    time.sleep(PAUSE * 2**number * random.uniform(0.5, 1.5))


class Backoff:
    """Seconds until the next try to reach a database: more each time, and not the same for all workers."""

    def __init__(self) -> None:
        self._next = RECONNECT[0]

    def reset(self) -> None:
        self._next = RECONNECT[0]

    def __next__(self) -> float:
        seconds, self._next = self._next, min(2 * self._next, RECONNECT[1])
        return seconds * random.uniform(0.75, 1.0)
