"""What a round came to, for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from uuid import UUID

from . import checker
from .history import Finding, History, is_database_error
from .plan import LEASE, RESCUE_WITHIN, Action, Plan

SHOWN = 3  # findings of a kind that are told with all that is known of their job


@dataclass(frozen=True)
class Rescue:
    """A job that was lost with a killed worker, and taken from it."""

    job: UUID
    seconds: float  # from the kill
    measured: bool  # nothing else happened in that time
    watched: bool  # the worker's watchdog lived


@dataclass(frozen=True)
class Report:
    plan: Plan
    database: str
    restartable: bool
    seconds: float  # of disorder
    done: Counter[Action]
    history: History
    rescues: Sequence[Rescue]
    findings: Sequence[Finding]
    exits: Counter[int]  # the exit codes of the worker commands
    refused: Counter[str]  # what the database has said to those who wanted something of jobs

    @property
    def kills(self) -> int:
        return sum(n for action, n in self.done.items() if action in KILLS)

    def measured(self, watched: bool) -> list[float]:
        """Seconds from kill to rescue where nothing else was the matter."""
        return [r.seconds for r in self.rescues if r.measured and r.watched == watched]

    def __str__(self) -> str:
        history, done = self.history, self.done
        outcomes = Counter(attempt.outcome for attempt in history.attempts)
        states = Counter(job.state for job in history.jobs)
        there = {job.id for job in history.jobs}
        lost = sum(key not in there for key in history.planned)
        members = sum(job.parent is not None for job in history.jobs)
        deeds = Counter(deed.verb for deed in history.deeds if deed.done)
        refused = sum(not deed.done for deed in history.deeds)
        away = sum(map(is_database_error, history.attempts))
        froze = done[Action.FREEZE] + done[Action.FREEZE_ALL]
        told = done[Action.TERMINATE] + done[Action.TERMINATE_TWICE]
        restarts: object = done[Action.RESTART_SERVER]
        if not self.restartable:
            restarts = "left out, this round may not restart its database"
        lines = [
            ("seed", self.plan.seed),
            ("database", self.database),
            ("disorder", f"{self.seconds:.0f} s, {len(self.plan.workers)} worker commands"),
            ("jobs", f"{len(history.jobs)}, {members} of them members ({listed(states)})"),
            ("attempts", f"{len(history.attempts)} ({listed(outcomes)})"),
            (
                "survived kills",
                f"{self.kills} ({listed({a: n for a, n in done.items() if a in KILLS})})",
            ),
            ("survived freezes", froze),
            ("survived SIGTERMs", f"{told}, {done[Action.TERMINATE_TWICE]} of them twice"),
            ("server restarts", restarts),
            ("done to jobs", f"{listed(deeds)}; {refused} times there was nothing to be done"),
            ("", f"in the way: {listed(self.refused)}"),
            ("exit codes", listed(self.exits)),
            ("lost jobs", lost),
            ("doubled atomic effects", checker.doubled_atomic_effects(history)),
            ("zombie effects", f"{checker.zombie_effects(history)} of {len(history.effects)}"),
            ("failed by the database", f"{away} attempts"),
            ("kill to rescue", f"{times(self.measured(False))}, by the lease of {LEASE:g} s"),
            ("", f"{times(self.measured(True))}, by the watchdog"),
            ("", f"{times([r.seconds for r in self.rescues if not r.measured])}, in the disorder"),
            ("", f"at most {RESCUE_WITHIN:g} s wanted where nothing else is the matter"),
            ("findings", len(self.findings)),
        ]
        return "\n".join(f"{title:24}{value}" for title, value in lines)

    def details(self) -> str:
        """The findings: how many there are of each kind, and some in full."""
        lives = {life.job.id: life for life in self.history.lives}
        lines = [listed(Counter(finding.invariant for finding in self.findings))]
        told: Counter[str] = Counter()
        for finding in self.findings:
            told[finding.invariant] += 1
            if told[finding.invariant] <= SHOWN:
                lines.append(f"\n{finding.invariant}: {finding.text}")
                if finding.job in lives:
                    lines.append(lives[finding.job].text())
        return "\n".join(lines)


KILLS = (
    *(Action.KILL_WORKER, Action.KILL_WATCHDOG, Action.KILL_SUPERVISOR, Action.POWER_OFF),
    *(Action.MEASURE_KILL, Action.MEASURE_POWER_OFF),
)


def listed(counts: "Counter[object] | dict[object, int]") -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=str)) or "none"


def times(seconds: Sequence[float]) -> str:
    if not seconds:
        return "not measured"
    return f"{max(seconds):.2f} s at most, {median(seconds):.2f} s median, {len(seconds)} jobs"
