"""What an explanation looks at: the jobs and workers of one database at one moment; and what it finds."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from django.db.models import Count, QuerySet

from ..members import members
from ..models import Attempt, Job, Worker
from ..states import State
from ..storage import Living, Storage
from .wording import moment

CHOICE = 100  # of the jobs that one waits for, those that are looked at for one that needs somebody
HEAD = 1000  # jobs of a queue that are looked at for those before one
NAMED = 5  # jobs that are listed one by one


class Finding(NamedTuple):
    """What keeps a job, with nothing at the ends of its texts: the clause follows an "It" or a "which".

    ``other`` is the job that keeps it, if one does: that one's clause follows this one's, and ``to_do`` says only what
    may be done besides what is to be done there.
    """

    cause: str
    clause: str
    to_do: str
    facts: dict[str, Any]
    other: Job | None = None

    def due_to(self, clause: str, to_do: str, **facts: Any) -> "Finding":
        """The same, with what keeps the other job."""
        return Finding(
            self.cause,
            f"{self.clause}, which {clause}",
            f"{to_do}; {self.to_do}" if self.to_do else to_do,
            {**self.facts, **facts},
        )


@dataclass(frozen=True)
class Look:
    """One look into a database, from one job to those that it waits for."""

    storage: Storage
    now: datetime.datetime

    @property
    def jobs(self) -> "QuerySet[Job]":
        return self.storage.jobs.defer("workspace", "result")

    @cached_property
    def reporting(self) -> list[Living]:
        """The workers that have not ended, as far as anybody knows; also those that have fallen silent."""
        return self.storage.living()

    @cached_property
    def workers(self) -> list[Worker]:
        """The rows of those whose lease is not over."""
        keys = [one.pk for one in self.reporting if one.left > 0]
        return list(self.storage.workers.filter(pk__in=keys[:HEAD]).order_by("pk"))

    def serving(self, queue: str) -> list[Worker]:
        return [worker for worker in self.workers if serves(worker, queue)]

    def holder(self, job: Job) -> Worker | None:
        """The worker that holds or held a job; one that is gone has its key as its label, and has ended."""
        if job.worker_id is None:
            return None
        worker: Worker | None = self.storage.workers.filter(pk=job.worker_id).first()
        return worker or Worker(pk=job.worker_id, label=str(job.worker_id), stopped=self.now)

    def members(self, job: Job) -> "QuerySet[Job]":
        return members(job, self.storage.alias).defer("workspace", "result")

    def member_states(self, job: Job) -> dict[str, int]:
        """How many of its members are in each state."""
        states = self.members(job).order_by().values_list("state")
        return dict(states.annotate(Count("pk")))

    def failed_members(self, job: Job) -> list[dict[str, Any]]:
        """The first of those that keep a group or map from succeeding; those that have failed by themselves first."""
        found: list[dict[str, Any]] = []
        for state in (State.FAILED, State.CANCELLED):
            rows = self.members(job).filter(state=state).values("position", "id", "state")
            found += [dict(row) for row in rows.order_by("position")[: NAMED - len(found)]]
        return found

    def lineage(self, job: Job) -> list[Job]:
        """The job, its parent if it is a member, that one's parent, and so on."""
        line = [job]
        while (key := line[-1].parent_id) is not None:
            if (parent := self.jobs.filter(pk=key).first()) is None:
                break
            line.append(parent)
        return line

    def when(self, time: datetime.datetime) -> str:
        return moment(time, self.now)


def serves(worker: Worker, queue: str) -> bool:
    """Whether a worker serves a queue, from what its row says for people.

    A list that was cut to the column's length might name any queue: such a worker is taken to serve it.
    """
    listed, exclude = worker.queues, worker.queues == "all"
    if listed.startswith("all but "):
        listed, exclude = listed.removeprefix("all but "), True
    if f", {queue}, " in f", {listed}, ":
        return not exclude
    return exclude or len(worker.queues) >= (Worker._meta.get_field("queues").max_length or 0)


def last_attempt(job: Job) -> Attempt | None:
    found: Attempt | None = job.attempts.order_by("-number", "-pk").first()
    return found
