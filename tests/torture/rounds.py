"""One round: do to the workers what the plan says, let them finish, and judge what is left."""

import datetime
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from django_dbq.models import Attempt, Dependency, Job, JobEvent, Worker

from . import checker, history
from .errands import Errands
from .fleet import Fleet, parent_of
from .history import FINISHED, LOST, Deed, Finding, History
from .kinds import KINDS
from .models import Effect
from .plan import GRACE, LEASE, RESCUE_WITHIN, Action, Event, Plan, PlannedJob
from .report import Report, Rescue
from .servers import Server

T = TypeVar("T")

PATIENCE = 60.0  # seconds without any attempt, after which the rest of the work counts as stuck
LOOK_EVERY = 0.05  # seconds between two looks at the workers
# What no round may cause in a worker's log.
ALARMS = (
    "Exception in thread",
    "Fatal Python error",
    "The watchdog has failed",
    "Jobs waited for what is gone",  # and nobody has deleted anything
)

# Seconds in which the database carries out what a worker had sent before it was frozen.
IN_FLIGHT = 0.2


@dataclass(frozen=True)
class Kill:
    """Worker processes that were killed together.

    Args:
        at: when, on this machine's clock, which is the database's as well.
        labels: of the workers.
        measured: nothing else happened at the time, so the rescue has to be in time.
        watched: a watchdog was left.
    """

    at: datetime.datetime
    labels: frozenset[str]
    measured: bool
    watched: bool


class Round:
    """
    Args:
        plan: what is done.
        folder: for the logs of the workers.
        server: which the round may restart, if the plan says so.
    """

    def __init__(self, plan: Plan, folder: Path, server: Server | None = None) -> None:
        self.plan, self.server = plan, server
        self.done: Counter[Action] = Counter()
        self.kills: list[Kill] = []
        settings = connection.settings_dict
        keys = ("ENGINE", "NAME", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS")
        database = json.dumps({key: settings[key] for key in keys}, default=str)
        flags = ("--timeout", f"{LEASE:g}", "--grace", f"{GRACE:g}", "--tick", "0.2")
        workers = [(*one, *flags, "--reload", "never") for one in plan.workers]
        self.fleet = Fleet(folder, workers, {"TORTURE_DATABASE": database})
        self.errands = Errands(plan.errands)

    def run(self) -> Report:
        begun = due = time.monotonic()
        self.errands.start()
        try:
            for event in self.plan.events:
                while (left := due + event.at - time.monotonic()) > 0:
                    self.fleet.tend()
                    time.sleep(min(left, LOOK_EVERY))
                self.fleet.tend()
                # What is late puts off all that follows: a kill that is measured has to stay alone.
                due = max(due, time.monotonic() - event.at)
                if event.jobs:
                    patiently(lambda event=event: create(event.jobs))
                if self._do(event):
                    self.done[event.action] += 1
            disorder = time.monotonic() - begun
            self._let_them_finish()
        finally:
            left_behind = self.fleet.stop(GRACE + 15)
            self.errands.end()
        rows = patiently(lambda: read_history(self.plan, self.errands.deeds))
        rescues = list(self._rescues(rows))
        findings = [*self._judge_processes(left_behind), *checker.check(rows)]
        findings += [
            Finding("rescue_in_time", f"{rescue.seconds:.1f} s after the kill", rescue.job)
            for rescue in rescues
            if rescue.measured and rescue.seconds > RESCUE_WITHIN
        ]
        version = ".".join(map(str, connection.get_database_version()))
        return Report(
            plan=self.plan,
            database=f"{connection.display_name} {version}",
            restartable=self.server is not None,
            seconds=disorder,
            done=self.done,
            history=rows,
            rescues=rescues,
            findings=findings,
            exits=Counter(one.process.returncode for one in self.fleet.started),
            refused=self.errands.refused,
        )

    # -- the disorder --

    def _do(self, event: Event) -> bool:
        """Returns whether there was anybody whom it could happen to."""
        match event.action:
            case Action.CREATE:
                return True
            case Action.RESTART_SERVER:
                assert self.server is not None
                self.server.crash()
                time.sleep(event.seconds)
                self.server.start()
                return True
            case Action.TERMINATE | Action.TERMINATE_TWICE:
                return self._terminate(event)
            case Action.MEASURE_KILL | Action.MEASURE_POWER_OFF:
                return self._measure(event)
        victims = {
            Action.KILL_WATCHDOG: self.fleet.watchdogs,
            Action.KILL_SUPERVISOR: self.fleet.supervisors,
        }.get(event.action, lambda: list(self._workers()))()
        if not victims:
            return False
        pids = [pick(sorted(victims), event)]
        if event.action in (Action.POWER_OFF, Action.FREEZE_ALL):
            pids = self.fleet.family(pids[0])
        if event.action in (Action.FREEZE, Action.FREEZE_ALL):
            self.fleet.freeze(pids, event.seconds)
        elif event.action is Action.KILL_WATCHDOG:
            worker = parent_of(pids[0])
            self.fleet.kill(pids)
            self._kill([worker], after=event.seconds)
        else:
            self._kill(pids)
        return True

    def _terminate(self, event: Event) -> bool:
        running = [one for one in self.fleet.started if one.running and not one.told_to_stop]
        if not running:
            return False
        one = pick(running, event)
        self.fleet.terminate(one)
        if event.action is Action.TERMINATE_TWICE:
            self.fleet.later(event.seconds, lambda: self.fleet.terminate(one))
        return True

    def _measure(self, event: Event) -> bool:
        """Kill a worker while it runs something."""
        off = event.action is Action.MEASURE_POWER_OFF
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.fleet.tend()
            if busy := patiently(self._busy):
                pid = pick(sorted(busy), event)
                pids = self.fleet.family(pid) if off else [pid]
                # Its job may have ended since we looked: hold it, and look again.
                self.fleet.send(pids, signal.SIGSTOP)
                time.sleep(IN_FLIGHT)
                if pid in patiently(self._busy):
                    self._kill(pids, measured=True)
                    if self._has_lost(self.kills[-1]):
                        return True
                    continue  # on a busy machine it was declared dead before: there is nothing to measure
                self.fleet.send(pids, signal.SIGCONT)
            time.sleep(LOOK_EVERY)
        return False

    def _has_lost(self, kill: Kill) -> bool:
        """Wait for a rescue, for as long as one may take."""
        lost = Attempt.objects.filter(outcome=LOST, worker__in=kill.labels, finished__gte=kill.at)
        deadline = time.monotonic() + RESCUE_WITHIN
        while not patiently(lost.exists):
            if time.monotonic() > deadline:
                return False
            self.fleet.tend()
            time.sleep(LOOK_EVERY)
        return True

    def _kill(self, pids: Sequence[int], after: float = 0.0, measured: bool = False) -> None:
        workers = self._workers()
        labels = frozenset(workers[pid].label for pid in pids if pid in workers)
        watched = any(watchdog not in pids for watchdog in self.fleet.watchdogs(pids))

        def strike() -> None:
            self.kills.append(Kill(timezone.now(), labels, measured, watched))
            self.fleet.kill(pids)

        if after:
            self.fleet.later(after, strike)
        else:
            strike()

    def _workers(self) -> dict[int, Worker]:
        """The rows of the workers that are there, by process id."""
        rows = patiently(lambda: list(Worker.objects.filter(stopped=None)))
        ours = self.fleet.processes()
        return {row.pid: row for row in rows if row.pid in ours}

    def _busy(self) -> list[int]:
        """The workers that hold a job which has no timeout, so that it can only be lost, and were not told to stop."""
        slow = Job.objects.filter(state="PROCESSING", name="slow")
        holding = set(slow.values_list("worker_id", flat=True))
        stopping = {one.mark for one in self.fleet.started if one.told_to_stop}
        marks = self.fleet.processes()
        return [
            pid
            for pid, row in self._workers().items()
            if row.pk in holding and marks[pid] not in stopping
        ]

    # -- the end --

    def _let_them_finish(self) -> None:
        """No more disorder: let the workers do the rest, and close the rows of those that are no more."""
        self.fleet.settle()
        seen, deadline = None, 0.0
        while True:
            self.fleet.tend()
            errands = not self.errands.are_done  # first: the last of them may set jobs going
            unfinished = patiently(count_unfinished)
            pids = patiently(self._open_rows)
            dead, unready = pids - self.fleet.processes().keys(), self._unready(pids)
            if not (errands or unfinished or dead or unready):
                return
            now = errands, unfinished, dead, unready, patiently(Attempt.objects.count)
            if now != seen:
                seen, deadline = now, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                return  # the checker will say what is stuck
            time.sleep(LOOK_EVERY)

    def _open_rows(self) -> set[int]:
        """The process ids of all workers that have not ended, as far as the database knows."""
        return set(Worker.objects.filter(stopped=None).values_list("pid", flat=True))

    def _unready(self, pids: set[int]) -> set[int]:
        """Worker processes that live and have no open row: they are starting, or hang and are about to be killed."""
        commands = [slot.started[-1] for slot in self.fleet.slots]
        alone = {one.process.pid for one in commands if not one.supervised}
        return (alone | set(map(parent_of, self.fleet.watchdogs()))) - pids

    def _judge_processes(self, left_behind: Sequence[int]) -> list[Finding]:
        findings = []
        if left_behind:
            text = f"{len(left_behind)} processes did not end when they were told to"
            findings.append(Finding("processes_end", text))
        for slot in self.fleet.slots:
            last = slot.started[-1]
            code, log = last.process.returncode, last.log.read_text()
            # Told to stop before Django was there, it knows no better.
            if code and not (code == -signal.SIGTERM and "Worker started" not in log):
                text = f"{last.log.name}: exit code {code} after SIGTERM: {log[-1000:]}"
                findings.append(Finding("processes_end", text))
        for one in self.fleet.started:
            log = one.log.read_text()
            for alarm in ALARMS:
                if (place := log.find(alarm)) >= 0:
                    text = f"{one.log.name}: {log[place : place + 2000]}"
                    findings.append(Finding("no_alarms", text))
        return findings

    def _rescues(self, rows: History) -> list[Rescue]:
        """For each job that was lost with a killed worker, how long that took."""
        hanging = [
            (attempt.started, attempt.finished)
            for life in rows.lives
            if life.job.name == "hogging"
            for attempt in life.attempts
        ]
        rescues = []
        for kill in self.kills:
            for attempt in rows.attempts:
                taken = attempt.outcome == LOST and attempt.worker in kill.labels
                if not taken or attempt.finished < kill.at:
                    continue
                seconds = (attempt.finished - kill.at).total_seconds()
                # A hanging worker may hold a lock, which on SQLite is everybody's.
                hung = any(b <= attempt.finished and e >= kill.at for b, e in hanging)
                measured = kill.measured and not hung
                rescues.append(Rescue(attempt.job, seconds, measured, kill.watched))
        return rescues


def pick(among: Sequence[T], event: Event) -> T:
    """The one of these that the plan's number stands for."""
    return among[int(event.which * len(among))]


def patiently(function: Callable[[], T]) -> T:
    """Call a function that may be called again if the database goes away: until it comes back."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return function()
        except (OperationalError, InterfaceError):
            if time.monotonic() > deadline:
                raise
            connection.close()
            time.sleep(LOOK_EVERY)


def create(jobs: Sequence[PlannedJob]) -> None:
    """Create the jobs of an event, if they are not there yet: of an earlier try only the answer may have been lost."""
    if Job.objects.filter(pk=jobs[0].id).exists():
        return
    now = timezone.now()
    Job.objects.bulk_create(
        Job(
            id=job.id,
            name=job.name,
            workspace=job.workspace,
            depends_on=job.needs,
            depends_mode=job.mode,
            on_dependency_failure=job.on_failure,
            deadline=None
            if job.deadline is None
            else now + datetime.timedelta(seconds=job.deadline),
        )
        for job in jobs
    )


def count_unfinished() -> int:
    """How many jobs somebody will still move on."""
    unfinished = Job.objects.exclude(state__in=FINISHED).order_by()
    states = dict(unfinished.values_list("pk", "state"))
    edges = Dependency.objects.filter(state="open").values_list("job_id", "on_id", "state")
    return len(states.keys() - history.resting(states, list(edges)))


def read_history(plan: Plan, deeds: Sequence[Deed]) -> History:
    """All rows there are."""
    return History(
        planned={job.id: job.name for job in plan.jobs},
        kinds=KINDS,
        needs={job.id: job.needs for job in plan.jobs if job.needs},
        jobs=[
            history.JobRow(*row)
            for row in Job.objects.order_by("created").values_list(
                *("id", "name", "state", "attempt", "worker_id", "finished", "workspace"),
                *("parent_id", "position", "parent_round", "waiting_for", "result"),
            )
        ],
        attempts=[
            history.AttemptRow(*row)
            for row in Attempt.objects.order_by("pk").values_list(
                *("job_id", "number", "step", "outcome", "worker", "started", "finished", "error")
            )
        ],
        effects=[
            history.EffectRow(*row)
            for row in Effect.objects.values_list(
                "job", "step", "attempt", "worker", "kind", "pid", "at"
            )
        ],
        workers=[
            history.WorkerRow(*row) for row in Worker.objects.values_list("id", "label", "stopped")
        ],
        dependencies=[
            history.DependencyRow(*row)
            for row in Dependency.objects.order_by("pk").values_list(
                "job_id", "on_id", "mode", "on_failure", "state"
            )
        ],
        events=[
            history.EventRow(*row)
            for row in JobEvent.objects.order_by("pk").values_list("job_id", "payload", "taken")
        ],
        deeds=list(deeds),
    )
