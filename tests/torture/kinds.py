"""The kinds of jobs: their entries in ``JOBS``, how many of each there are, and what may become of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from django_dbq.states import State


def _nothing(random: Random) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Kind:
    """One entry of ``JOBS``.

    Args:
        tasks: functions of `tests.torture.tasks`, one for each step.
        share: how many of a plan's jobs are of this kind, relative to the others.
        workspace: draws what its tasks need to be told.
        options: of the job.
        atomic: the places of its atomic steps.
        creates: the place of the step that creates a follow-on job, if one does.
        ends: its state at the end, if it is not lost too often.
    """

    tasks: tuple[str, ...]
    share: int
    workspace: Callable[[Random], dict[str, Any]] = _nothing
    options: Mapping[str, Any] = field(default_factory=dict)
    atomic: frozenset[int] = frozenset()
    creates: int | None = None
    ends: State = State.COMPLETE

    @property
    def on_lost(self) -> str:
        return str(self.options.get("on_lost", "retry"))

    def entry(self) -> dict[str, Any]:
        """As ``JOBS`` has it."""
        steps = [
            {"task": f"tests.torture.tasks.{task}", "atomic": place in self.atomic}
            for place, task in enumerate(self.tasks)
        ]
        return {"tasks": steps, "failure_hook": "tests.torture.tasks.failed", **self.options}


def _seconds(random: Random) -> dict[str, Any]:
    return {"seconds": round(random.uniform(0.05, 0.3), 2)}


def _fails(random: Random) -> dict[str, Any]:
    return {"fails": random.randint(1, 3)}


# More than a round can use up: a task that was frozen past its timeout has failed as well.
_RETRIES = {"retries": 20, "retry_delay": 0.05, "retry_max_delay": 0.4, "retry_jitter": True}
# A server that is restarted under the transaction of an atomic step fails the task.
_AGAIN = {"retries": 20, "retry_delay": 0.2}

KINDS: dict[str, Kind] = {
    # quick ones, of every sort
    "plain": Kind(("work",), 440),
    "chain": Kind(("work",) * 3, 200),
    "long chain": Kind(("work",) * 5, 100),
    "flaky": Kind(("flaky",), 200, _fails, _RETRIES),
    "asking": Kind(("asking",), 60, lambda random: {"asks": random.randint(1, 3)}),
    "async": Kind(("work_async", "work_async"), 120),
    "atomic": Kind(("work_atomic",), 280, options=_AGAIN, atomic=frozenset({0})),
    "flaky atomic": Kind(("flaky_atomic",), 100, _fails, _RETRIES, atomic=frozenset({0})),
    "creating": Kind(
        ("work_atomic", "create_atomic", "work_atomic"),
        120,
        options=_AGAIN,
        atomic=frozenset({0, 1, 2}),
        creates=1,
    ),
    "mixed": Kind(
        ("work", "flaky_atomic", "work_async", "flaky"), 100, _fails, _RETRIES, frozenset({1})
    ),
    "broken": Kind(("work", "broken"), 40, options={"retries": 1}, ends=State.FAILED),
    "aborting": Kind(("aborting",), 20, options={"retries": 5}, ends=State.FAILED),
    # slow ones, which most of the kills hit
    "slow": Kind(("work", "work"), 60, _seconds),
    "slow async": Kind(("work_async",), 60, _seconds),
    "slow atomic": Kind(("work_atomic",), 30, _seconds, _AGAIN, frozenset({0})),
    "slow creating": Kind(("work", "create_atomic"), 20, _seconds, _AGAIN, frozenset({1}), 1),
    "fragile": Kind(("work",), 20, _seconds, {"on_lost": "fail"}),
    "precious": Kind(("work",), 20, _seconds, {"on_lost": "hold"}),
    "overrunning": Kind(
        ("overrunning",), 20, lambda random: {"overruns": 1}, {**_RETRIES, "timeout": 0.4}
    ),
    "always overrunning": Kind(
        ("overrunning",),
        10,
        lambda random: {"overruns": 1000},
        {"retries": 1, "timeout": 0.4},
        ends=State.FAILED,
    ),
    # These cost their workers: the plan says how many there are.
    "stuck": Kind(("stuck",), 0, options={"timeout": 0.5}, ends=State.FAILED),
    "hogging": Kind(("hogging",), 0, options={"timeout": 0.5}, ends=State.FAILED),
    # Only created by other jobs.
    "follow-on": Kind(("work",), 0),
}

JOBS = {name: kind.entry() for name, kind in KINDS.items()}
