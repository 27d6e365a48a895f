"""The only writer of job state.

Each function is one change: its transaction, its transition, its fence, then its signals and its wake-ups
on commit. None of them loops, sleeps or calls user code, and none looks at a clock: ``now`` comes from the
caller.
"""

from .creation import announcing, created, insert, notify
from .rescuing import bury, record_timeouts, release, rescue, sweep
from .running import (
    announce,
    beat,
    checkpoint,
    claim,
    finish,
    hand_back,
    is_recorded,
    save_progress,
    start_worker,
    stop_worker,
    stopping,
)
from .upkeep import delete_old, next_due, stage_due, stranded

__all__ = [
    "announce",
    "announcing",
    "beat",
    "bury",
    "checkpoint",
    "claim",
    "created",
    "delete_old",
    "finish",
    "hand_back",
    "insert",
    "is_recorded",
    "next_due",
    "notify",
    "record_timeouts",
    "release",
    "rescue",
    "save_progress",
    "stage_due",
    "start_worker",
    "stop_worker",
    "stopping",
    "stranded",
    "sweep",
]
