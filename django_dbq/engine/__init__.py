"""The only writer of job state.

Each function is one change: its transaction, its transition, its fence, then its signals and its wake-ups
on commit. None of them loops, sleeps or calls user code, and none looks at a clock: ``now`` comes from the
caller.
"""

from .creation import created, creating, insert, insert_unique, notify
from .intervening import cancel, fork, hasten, pause, resume, retry, send, still_held
from .rescuing import bury, record_timeouts, release, rescue, sweep
from .running import (
    admit,
    announce,
    beat,
    checkpoint,
    claim,
    finish,
    hand_back,
    is_recorded,
    park,
    save_progress,
    start_worker,
    stop_worker,
    stopping,
)
from .upkeep import (
    delete_old,
    follow_limits,
    mend,
    next_due,
    pause_queue,
    resume_queue,
    stage_due,
    stranded,
)

__all__ = [
    "admit",
    "announce",
    "beat",
    "bury",
    "cancel",
    "checkpoint",
    "claim",
    "created",
    "creating",
    "delete_old",
    "finish",
    "follow_limits",
    "fork",
    "hand_back",
    "hasten",
    "insert",
    "insert_unique",
    "is_recorded",
    "mend",
    "next_due",
    "notify",
    "park",
    "pause",
    "pause_queue",
    "record_timeouts",
    "release",
    "rescue",
    "resume",
    "resume_queue",
    "retry",
    "save_progress",
    "send",
    "stage_due",
    "start_worker",
    "still_held",
    "stop_worker",
    "stopping",
    "stranded",
    "sweep",
]
