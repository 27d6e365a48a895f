"""Workers that are killed or frozen: their jobs go on, and nothing of the dead comes back."""

import time

import pytest
from django.db import connection

from django_dbq.models import Attempt, Job, Worker
from tests.process_jobs import effects, journal, tell, told, told_before, until
from tests.processes import create, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

LEASE = 2  # seconds
WITHIN = ("--timeout", str(LEASE), "--tick", "0.1")


def until_lost(job: Job, number: int) -> Attempt:
    """Wait until the loss of this attempt has been recorded."""
    lost = job.attempts.filter(number=number, outcome="lost")
    return until(lost.first, f"attempt {number} to be lost")


# -- killed --


def test_another_worker_rescues_what_a_dead_machine_has_held() -> None:
    """Worker and watchdog gone at once: only the lease tells. The other one is busy with a task of its own."""
    busy, job = create("stand", "busy"), create("stand", "job")
    with worker(*WITHIN, "--label", "other") as other:
        told("started busy 1")
        with worker(*WITHIN, "--label", "killed") as killed:
            told("started job 1")
            killed.kill_all()
            begun = time.monotonic()
        until_lost(job, 1)
        assert time.monotonic() - begun <= LEASE + 2
        assert states(job, busy) == ["READY", "PROCESSING"]
        row = Worker.objects.get(label="killed")
        assert row.stopped is not None
        assert row.reason == "Declared dead. It has stopped reporting."
        assert "killed" in job.attempts.get().error
        tell("go on busy 1")
        tell("go on job 2")
        until_states("COMPLETE", busy, job)
        assert other.running
    assert outcomes(job) == [(1, "lost"), (2, "succeeded")]
    assert outcomes(busy) == [(1, "succeeded")]
    job.refresh_from_db()
    assert (job.lost, job.failures, job.workspace["by"]) == (0, 0, 2)


def test_a_watchdog_rescues_at_once() -> None:
    job = create("stand", "job")
    with worker("--timeout", "1000") as killed:
        told("started job 1")
        killed.kill()
        begun = time.monotonic()
        until_lost(job, 1)
        assert time.monotonic() - begun < 20, "it waits for no lease"
        assert killed.row.stopped is not None
        assert "SIGKILL" in killed.row.reason
    assert states(job) == ["READY"]
    job.refresh_from_db()
    assert (job.attempt, job.lost, job.worker) == (1, 1, None)


def test_the_job_of_a_killed_worker_that_was_told_to_stop_is_handed_back() -> None:
    """The shutdown was it, and not the job: no attempt is lost."""
    job = create("stand", "job")
    with worker("--timeout", "1000") as killed:
        told("started job 1")
        killed.process.terminate()
        until_states("STOPPING", job)
        killed.kill()
        until_states("NEW", job)
    job.refresh_from_db()
    assert (job.attempt, job.lost, job.worker) == (0, 0, None)
    assert outcomes(job) == []


def test_three_losses_end_in_failure() -> None:
    job = create("kill_itself", "killer")
    for number in (1, 2, 3):
        with worker() as killed:
            until_lost(job, number)
            killed.wait()
    assert states(job) == ["READY"]
    with worker("--until_done") as last:
        assert last.wait() == 0
    assert states(job) == ["FAILED"]
    assert outcomes(job) == [(1, "lost"), (2, "lost"), (3, "lost"), (4, "failed")]
    assert "lost 3 times" in job.attempts.last().error
    assert journal() == [f"{job.pk} killer"] * 3 + ["failed killer Exhausted"]


@pytest.mark.parametrize(("on_lost", "state"), [("fail", "READY"), ("hold", "PAUSED")])
def test_a_single_loss_may_be_too_many(on_lost: str, state: str) -> None:
    job = create(f"stand, {on_lost}", "job")
    with worker() as killed:
        told("started job 1")
        killed.kill()
        until_lost(job, 1)
    assert states(job) == [state]
    with worker("--until_done") as other:
        assert other.wait() == 0
    assert not told_before("started job 2")
    if on_lost == "hold":
        assert states(job) == ["PAUSED"]
        assert outcomes(job) == [(1, "lost")]
        assert "lost while it ran this task" in job.attempts.get().error
        # A person has looked at it, and sends it on.
        Job.objects.filter(pk=job.pk).update(state="READY")
        tell("go on job 2")
        with worker("--until_done") as other:
            assert other.wait() == 0
        assert outcomes(job) == [(1, "lost"), (2, "succeeded")]
    else:
        assert states(job) == ["FAILED"]
        assert outcomes(job) == [(1, "lost"), (2, "failed")]
        assert journal().count("failed job Exhausted") == 1


def test_a_job_that_kills_its_worker_takes_others_with_it_only_once() -> None:
    """It was claimed in the middle of a batch. All of that are suspects then, and run alone."""
    before = [create("first") for _ in range(12)]
    killer = create("kill_itself", "killer")
    behind = [create("first") for _ in range(30)]
    for number in (1, 2, 3):
        with worker("--tick", "0.1") as killed:
            until_lost(killer, number)
            killed.wait()
    lost = Attempt.objects.filter(outcome="lost").exclude(job=killer)
    assert lost.filter(job__in=behind).exists(), "the batch was too small for this test"
    with worker("--until_done") as last:
        assert last.wait() == 0
    assert set(states(*before, *behind)) == {"COMPLETE"}
    assert states(killer) == ["FAILED"]
    assert set(lost.values_list("number", flat=True)) == {1}
    assert lost.values("job").distinct().count() == lost.count()
    ran = [line for line in journal() if line.endswith("first")]
    assert max(ran.count(f"{job.pk} first") for job in before) <= 2
    assert {ran.count(f"{job.pk} first") for job in behind} == {1}
    assert not Job.objects.filter(lost__gt=0, state="COMPLETE").exists()


def test_a_suspect_runs_while_threads_are_kept_free_of_others() -> None:
    """A worker with threads, that was never idle, makes room for it."""
    suspect, others = create("quick"), [create("stand", str(n)) for n in range(3)]
    Job.objects.filter(pk=suspect.pk).update(lost=1, state="READY", attempt=1, priority=1)
    ahead = create("stand", "ahead", priority=2)
    with worker("--threads", "2", "--tick", "0.1"):
        told("started ahead 1")
        tell("go on ahead 1")
        until_states("COMPLETE", ahead, suspect)
        for other in others:
            tell(f"go on {other.workspace['key']} 1")
        until_states("COMPLETE", *others)
    suspect_ran = suspect.attempts.get()
    for attempt in Attempt.objects.exclude(pk=suspect_ran.pk):
        assert attempt.finished <= suspect_ran.started or attempt.started >= suspect_ran.finished


# -- frozen --


def shows_progress(job: Job) -> bool:
    job.refresh_from_db()
    return job.progress is not None


KINDS = ["stand", "atomic", "stand_saving", "stand_telling", "stand_async"]


@pytest.mark.parametrize(
    ("kind", "threads"),
    [*((kind, "0") for kind in KINDS), *((kind, "2") for kind in KINDS[:-1])],
)
def test_a_worker_that_was_frozen_past_its_lease_saves_nothing(kind: str, threads: str) -> None:
    if kind == "atomic" and connection.vendor == "sqlite":
        pytest.skip("its transaction keeps everybody else out, so that nobody can take the job")
    job = create(kind, "job")
    mine = ("--timeout", "1", "--tick", "0.1", "--queue", "default")
    own = ("--queue", "own", "--label", "frozen")
    if threads != "0":
        own += ("--threads", threads)
    with worker(*mine, *own) as frozen:
        told("started job 1")
        if kind == "stand_saving":
            told("saved job 1")
        if kind == "stand_telling":
            until(lambda: shows_progress(job), "progress")
        frozen.freeze()
        with worker(*mine, "--label", "other") as other:
            tell("go on job 2")
            until_states("COMPLETE", job)
            job.refresh_from_db()
            done = dict(job.__dict__)
            frozen.thaw()
            heard = "CancelledError" if kind == "stand_async" else "ClaimLost"
            assert told("heard job 1") == heard
            # It begins anew, with a row of its own, and runs what only it can run.
            after = create("quick", queue_name="own")
            until_states("COMPLETE", after)
            assert after.attempts.get().worker == "frozen"
            assert other.running
        rows = list(Worker.objects.filter(label="frozen").order_by("pk"))
        assert [row.pid for row in rows] == [frozen.pid] * 2
        assert rows[0].reason.startswith("Declared dead")
        assert rows[1].stopped is None
        frozen.stop()
    attempts = job.attempts.order_by("pk").values_list("number", "outcome", "worker")
    assert list(attempts) == [(1, "lost", "frozen"), (2, "succeeded", "other")]
    job.refresh_from_db()
    assert {key: value for key, value in job.__dict__.items() if key != "_state"} == {
        key: value for key, value in done.items() if key != "_state"
    }
    assert job.workspace["by"] == 2
    if kind == "stand_telling":
        assert job.progress_message in ("attempt 2", "attempt 1")
    if kind == "atomic":
        assert effects(job) == ["row 2", "job 2", "workspace 2"]
    assert "end job 1" in journal()


def test_on_sqlite_a_frozen_atomic_step_keeps_everybody_out_and_is_done_once() -> None:
    if connection.vendor != "sqlite":
        pytest.skip("other databases have more than one writer")
    arguments = ("--timeout", "1", "--tick", "0.1", "--queue", "default")
    impatient = {"OPTIONS": connection.settings_dict["OPTIONS"] | {"timeout": 0.3}}
    with (
        worker(*arguments, **impatient) as other,
        worker(*arguments, "--queue", "own", **impatient) as frozen,
    ):
        assert other.row.pk != frozen.row.pk, "both have started"
        until_states("COMPLETE", create("quick"), create("quick", queue_name="own"))
        job = create("atomic", "job", queue_name="own")
        told("started job 1")
        frozen.freeze(locking=True)
        until(lambda: "database is locked" in other.output(), "the other worker to be kept out")
        tell("go on job 1")
        frozen.thaw()
        until_states("COMPLETE", job)
        until_states("COMPLETE", create("quick"), create("quick", queue_name="own"))
    assert outcomes(job) == [(1, "succeeded")]
    assert effects(job) == ["row 1", "job 1", "workspace 1"]
    assert Worker.objects.count() == 2, "nobody was declared dead"


def test_a_frozen_worker_takes_none_of_the_jobs_with_it_that_it_had() -> None:
    """In the middle of a batch: what is behind the frozen task, and what was done before and not yet written."""
    before, frozen_job = [create("first") for _ in range(12)], create("stand", "job")
    behind = [create("first") for _ in range(30)]
    with worker("--timeout", "1", "--tick", "0.1", "--label", "frozen") as frozen:
        told("started job 1")
        frozen.freeze()
        with worker("--timeout", "1", "--tick", "0.1", "--label", "other"):
            tell("go on job 2")
            until_states("COMPLETE", *before, frozen_job, *behind)
        frozen.thaw()
        assert told("heard job 1") == "ClaimLost"
    for job in (*before, *behind):
        assert [outcome for _, outcome in outcomes(job)][-1] == "succeeded"
        assert len(outcomes(job)) <= 2
    assert outcomes(frozen_job) == [(1, "lost"), (2, "succeeded")]
    assert {journal().count(f"{job.pk} first") for job in behind} == {1}
