"""A worker's right to its jobs, as the worker itself can know it: until when nobody can have taken them."""

import math
import time

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
LATE = 0.8  # of the lease: somebody else's last heartbeat may have been a fifth of it, one pause, before ours
MARGIN = 0.9  # of the lease: a write that is begun within it reaches the database before the lease is over


def now() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps, where there is such a clock."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class Lease:
    """
    Args:
        timeout: seconds from a heartbeat until other workers may take the jobs; infinity if nobody else can see them.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.restored = (
            -math.inf
        )  # when a heartbeat succeeded last that was so late that others may be late as well
        self._renewed = now()

    def renew(self, begun: float) -> None:
        """A heartbeat has succeeded that was ``begun`` then; the database's clock had that time or a later one."""
        if now() - self._renewed >= LATE * self.timeout:
            self.restored = now()
        self._renewed = max(begun, self._renewed)

    @property
    def held(self) -> bool:
        return now() - self._renewed < MARGIN * self.timeout
