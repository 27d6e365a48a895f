"""Memory that a worker shares with its watchdog, who can read it also when the worker hangs or has been killed."""

import datetime
import mmap
import time
from dataclasses import dataclass
from uuid import UUID

# Everything is a word of eight aligned bytes, because a store of one is whole or not there: neither a signal nor a
# reader in the other process ever meets half of it.
WORD = 8
WORKER_ID, LEAVE_BY, ENDED, HEADER = range(4)  # the header's words, and how many they are
DEADLINE, ATTEMPT, STARTED, AWARE, JOB_ID, ENTRY = 0, 1, 2, 3, 4, 6  # a slot's; the id takes two


def now() -> float:
    """Seconds on the clock of deadlines: monotonic, and the same one in all processes of a machine (Linux, macOS)."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt that runs under a timeout."""

    slot: int
    job_id: UUID
    attempt: int
    started: datetime.datetime
    deadline: float  # by `now`


class Blackbox:
    """To be made before the fork; what is written on one side is seen on the other.

    Args:
        slots: how many attempts it can hold at a time; one more is not held, which costs it the watchdog's eye.
    """

    def __init__(self, slots: int = 256) -> None:
        self.slots = slots
        memory = memoryview(mmap.mmap(-1, WORD * (HEADER + slots * ENTRY)))  # zeros
        self._bytes, self._integers, self._floats = memory, memory.cast("q"), memory.cast("d")
        # Popping and appending are atomic, so that threads need no lock.
        self._free = list(reversed(range(slots)))

    # -- the header --

    @property
    def worker_id(self) -> int:
        """The primary key of the worker's row; 0 while there is none."""
        return self._integers[WORKER_ID]

    @worker_id.setter
    def worker_id(self, value: int) -> None:
        self._integers[WORKER_ID] = value

    @property
    def leave_by(self) -> float:
        """The time, by `now`, by which the process has to be gone; 0 for never."""
        return self._floats[LEAVE_BY]

    @leave_by.setter
    def leave_by(self, value: float) -> None:
        self._floats[LEAVE_BY] = value

    @property
    def ended(self) -> bool:
        """Whether the worker has ended in order: it holds nothing any more."""
        return bool(self._integers[ENDED])

    @ended.setter
    def ended(self, value: bool) -> None:
        self._integers[ENDED] = value

    # -- what runs --

    def enter(self, job_id: UUID, attempt: int, started: datetime.datetime, deadline: float) -> int:
        """Note an attempt that must have ended by ``deadline`` (by `now`); returns its slot, for `leave`.

        From any thread. Returns -1 if all slots are taken: nothing fails for that, nor waits.
        """
        try:
            slot = self._free.pop()
        except IndexError:
            return -1
        word = HEADER + slot * ENTRY
        self._bytes[WORD * (word + JOB_ID) : WORD * (word + ENTRY)] = job_id.bytes
        self._integers[word + ATTEMPT] = attempt
        self._floats[word + STARTED] = started.timestamp()  # to the microsecond, until 2242
        self._integers[word + AWARE] = started.tzinfo is not None
        self._floats[word + DEADLINE] = deadline  # last: from here on the slot counts
        return slot

    def leave(self, slot: int) -> None:
        """An attempt has ended, in whatever way."""
        if slot >= 0:
            self._floats[HEADER + slot * ENTRY + DEADLINE] = 0.0
            self._free.append(slot)

    def entries(self) -> list[Entry]:
        """What runs under a timeout."""
        return [entry for slot in range(self.slots) if (entry := self._entry(slot)) is not None]

    def overdue(self, now: float) -> list[Entry]:
        """What still runs at ``now`` although its deadline has passed."""
        return [entry for entry in self.entries() if entry.deadline < now]

    def _entry(self, slot: int) -> Entry | None:
        word = HEADER + slot * ENTRY
        deadline = self._floats[word + DEADLINE]
        if not deadline:
            return None
        entry = Entry(
            slot,
            UUID(bytes=bytes(self._bytes[WORD * (word + JOB_ID) : WORD * (word + ENTRY)])),
            self._integers[word + ATTEMPT],
            datetime.datetime.fromtimestamp(
                self._floats[word + STARTED], datetime.UTC if self._integers[word + AWARE] else None
            ),
            deadline,
        )
        # Another deadline now means another attempt in the same slot: we may have read some of either.
        return entry if self._floats[word + DEADLINE] == deadline else None
