"""Worker processes from start to end: signals, kills, two at once, and that nothing is left running."""

import datetime
import itertools
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import autoreload

from django_dbq.management.commands.worker import RELOAD_EXIT
from django_dbq.models import Attempt, Job, Worker
from tests.process_jobs import journal, tell, told, until
from tests.processes import create, outcomes, states, until_states, worker
from tests.workers.scenarios import playing

pytestmark = pytest.mark.django_db(transaction=True)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def create_batch(held: str = "hold") -> tuple[list[Job], Job, list[Job]]:
    """Jobs of which a worker claims several at once: quick ones, one that holds it up, and quick ones behind.

    The batch grows by four times at most, 1, 4, 16: the job that holds stands in the middle of the third.
    """
    before = [create("first") for _ in range(12)]
    held_job = create(held, "held")
    behind = [create("first") for _ in range(30)]
    return before, held_job, behind


# -- the first signal --


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("hold", signal.SIGTERM),
        ("hold", signal.SIGINT),
        ("hold then second", signal.SIGQUIT),
    ],
)
def test_a_signal_lets_the_running_task_finish(name: str, number: signal.Signals) -> None:
    before, held, behind = create_batch(name)
    with worker("--label", "first") as stopped:
        told("started held")
        stopped.send(number)
        until_states("STOPPING", held)
        until_states("NEW", *behind)
        assert stopped.running
        handed_back = Job.objects.filter(pk__in=[job.pk for job in behind])
        assert set(handed_back.values_list("attempt", "worker")) == {(0, None)}
        with worker("--until_done", "--label", "second") as other:
            assert other.wait() == 0
        assert set(states(*behind)) == {"COMPLETE"}, "another worker can have them at once"
        assert states(held) == ["STOPPING"]
        assert stopped.running
        tell("go on held")
        assert stopped.wait() == 0
    assert states(held) == ["COMPLETE" if name == "hold" else "READY"]
    assert set(states(*before)) == {"COMPLETE"}
    attempt = held.attempts.get()
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "succeeded", "first")
    assert Attempt.objects.filter(job__in=behind, worker="second").count() == len(behind)
    assert Attempt.objects.count() == len(before) + 1 + len(behind)
    row = Worker.objects.get(pid=stopped.pid)
    assert row.stopped is not None
    assert row.stopped >= attempt.finished


@pytest.mark.parametrize("wakeup", ["poll", "auto"])
def test_an_idle_worker_stops_at_once(wakeup: str) -> None:
    job = create("quick")
    with worker("--tick", "1000", dbq={"WAKEUP": wakeup}) as idle:
        until_states("COMPLETE", job)
        idle.send(signal.SIGTERM)
        assert idle.wait(10) == 0
        assert idle.row.stopped is not None


def test_a_worker_that_waits_for_its_rate_limit_stops_at_once() -> None:
    jobs = [create("quick"), create("quick")]
    with worker("--rate_limit", "1000") as slow:
        until_states("COMPLETE", jobs[0])
        slow.send(signal.SIGTERM)
        assert slow.wait(10) == 0
    assert states(*jobs) == ["COMPLETE", "NEW"]


# -- the second signal, and the one that cannot be caught --


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    held = create("hold", "held")
    with worker() as stopped:
        told("started held")
        stopped.send(signal.SIGTERM)
        until_states("STOPPING", held)
        stopped.send(number)
        assert stopped.wait(10) == -number
        until_states("NEW", held)
    assert Attempt.objects.count() == 0


def test_a_kill_in_the_middle_of_a_task_loses_nothing_else() -> None:
    before, held, behind = create_batch()
    with worker() as killed:
        told("started held")
        # Whatever the task does, these are written, and those are handed back.
        until_states("COMPLETE", *before)
        until_states("NEW", *behind)
        killed.kill()
        until_states("READY", held)
    assert outcomes(held) == [(1, "lost")]
    assert Attempt.objects.count() == len(before) + 1
    tell("go on held")
    with worker("--until_done") as other:
        assert other.wait() == 0
    assert set(states(held, *behind)) == {"COMPLETE"}
    assert outcomes(held) == [(1, "lost"), (2, "succeeded")]
    assert Attempt.objects.count() == len(before) + 2 + len(behind)
    assert sorted(line.split()[0] for line in journal()) == sorted(
        str(job.pk) for job in (*before, *behind)
    )


def test_a_kill_between_tasks_leaves_no_job_without_its_outcome_or_its_worker() -> None:
    """Killed at any moment, a job is done and recorded, not begun, or recorded as lost with its worker."""
    Job.objects.bulk_create(Job(name="steps") for _ in range(500))
    with worker() as killed:
        until(lambda: len(journal()) > 300)
        killed.kill()
        until(lambda: killed.row.stopped, "the rescue")
    assert not Job.objects.filter(state="PROCESSING").exists()
    steps = {"tests.process_jobs.first": 0, "tests.process_jobs.second": 1}
    steps |= {"tests.process_jobs.third": 2, "": 3}
    for job in Job.objects.prefetch_related("attempts"):
        attempts = list(job.attempts.all())
        done = [attempt.step for attempt in attempts if attempt.outcome == "succeeded"]
        assert done == list(range(steps[job.next_task])), job.state
        assert len(attempts) == job.attempt == len(done) + job.lost
    lost = set(Job.objects.filter(lost=1).values_list("pk", flat=True))
    with worker("--until_done") as other:
        assert other.wait() == 0
    assert set(Job.objects.values_list("state", flat=True)) == {"COMPLETE"}
    runs = Counter(journal())
    assert len(runs) == 3 * 500
    twice = {line.split()[0] for line, count in runs.items() if count > 1}
    assert twice <= {str(pk) for pk in lost}
    assert max(runs.values()) <= 2


# -- two at once --


def test_two_workers_run_every_step_of_every_job_once_and_in_order() -> None:
    gates = [create("hold", str(n), priority=1) for n in range(2)]
    jobs = Job.objects.bulk_create(Job(name="steps") for _ in range(2000))

    def shares() -> list[int]:
        return [Attempt.objects.filter(worker=label).count() for label in ("one", "two")]

    with worker("--label", "one") as one, worker("--label", "two") as two:
        for gate in gates:
            told(f"started {gate.workspace['key']}")  # now both are here
        for gate in gates:
            tell(f"go on {gate.workspace['key']}")
        until(lambda: not Job.objects.exclude(state="COMPLETE").exists(), "all jobs")
        for _ in range(10):
            # On a busy machine the one may have been held up for as long as all this takes.
            if min(shares()) > 50:
                break
            jobs += Job.objects.bulk_create(Job(name="steps") for _ in range(500))
            until(lambda: not Job.objects.exclude(state="COMPLETE").exists(), "more jobs")
        for process in (one, two):
            process.stop()
    ran = defaultdict(list)
    for line in journal():
        key, step = line.split()
        ran[key].append(step)
    assert ran == {str(job.pk): ["first", "second", "third"] for job in jobs}
    attempts: dict[Any, list[tuple[int, int, str]]] = defaultdict(list)
    for attempt in Attempt.objects.exclude(job__in=gates).order_by("pk"):
        attempts[attempt.job_id].append((attempt.number, attempt.step, attempt.outcome))
    steps = [(1, 0, "succeeded"), (2, 1, "succeeded"), (3, 2, "succeeded")]
    assert attempts == {job.pk: steps for job in jobs}
    assert sum(shares()) == 3 * len(jobs) + 2
    assert min(shares()) > 50, "one worker did next to nothing"


# -- a long task holds up nothing else --


def test_a_long_task_holds_up_nothing_before_or_behind_it() -> None:
    before, held, behind = create_batch()
    with worker("--label", "busy"):
        told("started held")
        until_states("COMPLETE", *before)
        assert Attempt.objects.count() == len(before)
        until_states("NEW", *behind)
        with worker("--until_done", "--label", "free") as other:
            assert other.wait() == 0
        assert set(states(*behind)) == {"COMPLETE"}
        assert states(held) == ["PROCESSING"]
        tell("go on held")
        until_states("COMPLETE", held)
    assert set(Attempt.objects.filter(job__in=behind).values_list("worker", "number")) == {
        ("free", 1)
    }


# -- ends by itself --


def test_once_runs_one_step_of_each_ready_job() -> None:
    jobs = [create("steps") for _ in range(20)]
    later = create("quick", run_after=datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC))
    with worker("--once") as process:
        assert process.wait() == 0
        assert process.row.stopped is not None
    assert set(states(*jobs)) == {"READY"}
    assert sorted(line.split()[1] for line in journal()) == ["first"] * 20
    assert states(later) == ["NEW"]


def test_once_runs_also_what_was_handed_back_behind_a_long_task() -> None:
    before, held, behind = create_batch()
    with worker("--once") as process:
        told("started held")
        until_states("NEW", *behind)
        tell("go on held")
        assert process.wait() == 0
    assert set(states(*before, held, *behind)) == {"COMPLETE"}


def test_until_done_ends_with_the_last_ready_job() -> None:
    jobs = [create("steps") for _ in range(20)]
    later = create("quick", run_after=datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC))
    other = create("quick", queue_name="other")
    with worker("--until_done") as process:
        assert process.wait() == 0
        assert process.row.stopped is not None
        assert "█" not in process.output(), "a bar is for terminals"
    assert set(states(*jobs)) == {"COMPLETE"}
    assert states(later, other) == ["NEW", "NEW"]


def test_until_done_ends_in_front_of_jobs_that_nobody_knows() -> None:
    jobs = [create("quick") for _ in range(3)]
    Job.objects.filter(pk=jobs[0].pk).update(name="removed")
    Job.objects.filter(pk=jobs[1].pk).update(next_task="tests.process_jobs.gone")
    with worker("--until_done") as process:
        assert process.wait() == 0
        assert "Stranded jobs" in process.output()
    assert states(*jobs) == ["NEW", "NEW", "COMPLETE"]


@pytest.mark.parametrize("count", [1, 7])
def test_max_jobs_leaves_the_rest(count: int) -> None:
    jobs = [create("first") for _ in range(20)]
    with worker("--max_jobs", str(count)) as process:
        assert process.wait() == 0
        assert process.row.stopped is not None
    assert states(*jobs) == ["COMPLETE"] * count + ["NEW"] * (20 - count)
    assert len(journal()) == count
    assert set(Job.objects.filter(state="NEW").values_list("attempt", "worker")) == {(0, None)}


def test_rate_limit_keeps_starts_apart() -> None:
    for _ in range(4):
        create("quick")
    with worker("--rate_limit", "0.5", "--until_done") as process:
        assert process.wait() == 0
    starts = list(Attempt.objects.order_by("started").values_list("started", flat=True))
    assert len(starts) == 4
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(starts)]
    assert min(gaps) > 0.3  # a start is recorded after it, on a busy machine a while after it
    assert max(gaps) < 10


# -- restarts when code changes --


class EditedModule:
    """A module with one task, in a project whose worker restarts when that changes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "edited_task.py"
        self._edits = 0
        self.write("before")

    def write(self, event: str) -> None:
        """The task tells this event."""
        text = f"from tests.process_jobs import tell\n\n\ndef run(job):\n    tell({event!r})\n"
        self.path.write_text(text)
        self.touch()

    def touch(self) -> None:
        """Give it a later time of modification, however fast we are: that is what the reloader looks at."""
        self._edits += 1
        stamp = time.time_ns() + self._edits * 10**9
        os.utime(self.path, ns=(stamp, stamp))

    def until(self, condition: Callable[[], object]) -> None:
        """Edit until the reloader has seen it: a module that was imported just now it may not know yet."""

        def met() -> object:
            self.touch()
            return condition()

        until(met, "a reload")


RELOADED = {
    "DJANGO_SETTINGS_MODULE": "reload_settings",
    "PYTHONDONTWRITEBYTECODE": "1",  # code is compiled anew, whatever the times of modification
}


@pytest.fixture
def edited(tmp_path: Path, settings: Any) -> EditedModule:
    (tmp_path / "reload_settings.py").write_text(
        'from tests.process_settings import *\nJOBS = {**JOBS, "edited": ["edited_task.run"]}\n'
    )
    settings.JOBS = {**settings.JOBS, "edited": ["edited_task.run"]}
    return EditedModule(tmp_path)


def test_a_change_of_code_restarts_the_worker(edited: EditedModule) -> None:
    with worker("--reload", "always", environment=RELOADED) as process:
        create("edited")
        told("before")
        edited.write("after")
        edited.until(lambda: Worker.objects.count() >= 2)
        create("edited")
        told("after")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert not process.alive()
    assert set(Job.objects.values_list("state", flat=True)) == {"COMPLETE"}
    assert not Worker.objects.filter(stopped=None).exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_with_reload_a_signal_lets_the_task_finish(
    edited: EditedModule, number: signal.Signals
) -> None:
    held = create("hold", "held")
    with worker("--reload", "always", environment=RELOADED) as process:
        told("started held")
        process.send(number)
        until_states("STOPPING", held)
        tell("go on held")
        assert process.wait() == 0
        assert not process.alive()
    assert states(held) == ["COMPLETE"]
    assert not Worker.objects.filter(stopped=None).exists()


def test_with_reload_ctrl_c_lets_the_task_finish(edited: EditedModule) -> None:
    """A terminal sends the signal to the whole group: to the parent, who passes it on, and to the child itself."""
    held = create("hold", "held")
    with worker("--reload", "always", environment=RELOADED) as process:
        told("started held")
        os.killpg(process.pid, signal.SIGINT)
        until_states("STOPPING", held)
        tell("go on held")
        assert process.wait() == 0
    assert states(held) == ["COMPLETE"]
    assert not Worker.objects.filter(stopped=None).exists()


LEAVING = f"""
import signal, sys
import django
django.setup()
from tests.process_jobs import tell, told
signal.signal(signal.SIGTERM, lambda *_: tell("heard"))
tell("leaving")
told("go on")
sys.exit({RELOAD_EXIT})
"""


def reload_as_a_signal_comes() -> None:
    """With a child that is ending already, for a change of code."""
    autoreload.get_child_arguments = lambda: [sys.executable, "-c", LEAVING]
    call_command("worker", "--reload", "always")


def test_with_reload_a_signal_that_comes_while_a_child_ends_is_not_forgotten() -> None:
    with playing(reload_as_a_signal_comes) as process:
        told("leaving")
        process.send(signal.SIGTERM)
        told("heard")
        tell("go on")
        assert process.wait() == 0


def test_a_reload_waits_for_the_running_task(edited: EditedModule) -> None:
    with worker("--reload", "always", environment=RELOADED) as process:
        create("edited")
        told("before")
        held = create("hold", "held")
        told("started held")
        edited.write("after")
        edited.until(lambda: states(held) == ["STOPPING"])
        tell("go on held")
        create("edited")
        told("after")
        process.stop()
    assert states(held) == ["COMPLETE"]
    assert held.attempts.get().outcome == "succeeded"
