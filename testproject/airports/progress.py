"""Jobs as lines of text: how far they are, while they run, and what became of them."""

import json
import shutil
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TextIO

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from django_dbq.models import Attempt, Job

FINISHED = [Job.STATES.COMPLETE, Job.STATES.FAILED, Job.STATES.CANCELLED]
BAR = 10  # characters


class Progress:
    """Shows jobs line by line: in place on a terminal, elsewhere a line whenever something has changed."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.in_place = out.isatty()
        self.shown: list[str] = []

    def show(self, jobs: Sequence[Job]) -> None:
        lines = [line(job) for job in jobs]
        if self.in_place:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps would be two
            up = f"\x1b[{len(self.shown)}A" if self.shown else ""
            self.out.write(up + "".join(f"\x1b[2K{text[:width]}\n" for text in lines))
        else:
            self.out.write("".join(f"{text}\n" for text in lines if text not in self.shown))
        self.out.flush()
        self.shown = lines

    def say(self, text: str) -> None:
        """Put something between; what is shown from now on stands below it."""
        self.out.write(f"{text}\n")
        self.out.flush()
        if self.in_place:
            self.shown = []


def line(job: Job) -> str:
    """How far a job is."""
    pipeline: Any = settings.JOBS[job.name]
    steps = len(pipeline["tasks"])
    done = sum(attempt.outcome == "succeeded" for attempt in job.attempts.all())
    return f"  {title(job):<18} {_bar(done, steps)} {done}/{steps}  {job.state:<10}  {_now(job)}".rstrip()


def title(job: Job) -> str:
    """The pipeline's name, and the country that the job is about."""
    return f"{job.name} {job.workspace.get('country', '')}".strip()


def outcome(job: Job) -> list[str]:
    """What became of a job: its steps and how long each took, its workspace, its error."""
    attempts = list(job.attempts.all())
    steps = ", ".join(_took(list(of_step)) for _, of_step in groupby(attempts, lambda a: a.step))
    facts = {key: job.workspace[key] for key in sorted(job.workspace.keys() - {"run", "country"})}
    lines = [f"steps: {steps or 'none'}"]
    if facts:
        lines.append("workspace: " + ", ".join(f"{k} {_brief(v)}" for k, v in facts.items()))
    lines += [
        f"error: {attempt.error.strip().splitlines()[-1]}" for attempt in attempts if attempt.error
    ]
    return lines


def _now(job: Job) -> str:
    """What there is to say about this moment."""
    if job.state == Job.STATES.FAILED:
        return f"in {', '.join(_task(a) for a in job.attempts.all() if a.error)}"
    if job.state == Job.STATES.COMPLETE:
        return ""
    if job.state == Job.STATES.WAITING:
        return _waits_for(job)
    if job.run_after and job.run_after > timezone.now():
        return f"from {job.run_after:%H:%M:%S} UTC"
    return job.next_task.rpartition(".")[2]


def _waits_for(job: Job) -> str:
    others = [title(other) for other in job.depends_on]
    if others:
        return f"for {', '.join(others)}"
    inside = Job.objects.filter(Q(parent=job) | Q(parent__parent=job))
    if inside and job.next_task == "group":
        done = inside.filter(state__in=FINISHED).count()
        return f"for {len(inside)} members {_bar(done, len(inside))}"
    return job.next_task.replace("wait_for", "for")


def _took(attempts: Sequence[Attempt]) -> str:
    """A step with all its attempts, from the first one's begin to the last one's end."""
    duration = attempts[-1].finished - attempts[0].started
    return f"{_task(attempts[0])} {duration.total_seconds():.2f} s"


def _task(attempt: Attempt) -> str:
    return attempt.task.rpartition(".")[2]


def _bar(done: int, total: int) -> str:
    return "[" + ("#" * (BAR * done // total)).ljust(BAR, "-") + "]"


def _brief(value: object) -> str:
    if isinstance(value, list):
        return f"({len(value)})"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
