"""Workers that end by themselves after so many jobs or with so much memory, and the supervisor that replaces them."""

import re
import subprocess
import sys

import pytest

from django_dbq.models import Attempt, Job, Worker
from tests.process_jobs import journal, tell, told, until
from tests.processes import (
    ROOT,
    WorkerProcess,
    children,
    create,
    outcomes,
    states,
    until_states,
    worker,
)

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1")
THREADS = pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["main", "threads"])


@pytest.mark.parametrize("name", ["first", "use_orm_async"])
def test_max_jobs_counts_what_threads_and_coroutines_run(name: str) -> None:
    jobs = [create(name) for _ in range(20)]
    with worker(*QUICKLY, "--threads", "2", "--max_jobs", "7") as process:
        assert process.wait() == 0
        assert process.row.reason == "max_jobs: 7 tasks were run"
    assert sorted(states(*jobs)) == ["COMPLETE"] * 7 + ["NEW"] * 13
    assert Attempt.objects.count() == 7


@THREADS
def test_memory(threads: tuple[str, ...]) -> None:
    """One allocation that no machine has room for fails its task alone; growth ends the worker between two jobs."""
    with worker(*QUICKLY, "--max_memory", "300", *threads) as process:
        away, modest = create("run_away"), create("hoard", workspace={"mib": 10})
        until_states("FAILED", away)
        until_states("COMPLETE", modest)
        assert "MemoryError" in away.attempts.get().error
        assert process.running
        large = create("hoard", workspace={"mib": 300})
        assert process.wait() == 0
        assert outcomes(large) == [(1, "succeeded")]
        reason = process.row.reason
        assert reason.startswith("max_memory: ")
        assert reason.endswith(" MiB are in use, 300 are allowed")
        assert 300 < int(reason.split()[1]) < 450
    assert not Job.objects.filter(state="PROCESSING").exists()


@pytest.mark.parametrize("several", [(), ("--processes", "2")], ids=["one", "supervisor"])
def test_less_memory_than_is_used_already(several: tuple[str, ...]) -> None:
    with worker("--max_memory", "1", *several) as process:
        assert process.wait() == 2
        (line,) = process.output().splitlines()
        assert re.fullmatch(
            r"CommandError: --max_memory 1: this process uses \d+ MiB already\.", line
        )
    assert not Worker.objects.exists()


def test_the_limit_leaves_room_for_all_threads() -> None:
    """Those of the tasks, and the worker's own, however little memory is allowed beside."""
    script = """if True:
        import threading
        from django_dbq.workers import memory
        memory.limit_address_space(1, 2)
        end = threading.Event()
        for _ in range(2 + memory.OWN_THREADS):
            threading.Thread(target=end.wait, daemon=True).start()
    """
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_a_supervisor_replaces_who_was_killed_and_his_job_goes_on() -> None:
    jobs = [create("stand", str(n)) for n in range(2)]
    with worker(*QUICKLY, "--processes", "2", "--timeout", "1000") as supervisor:
        pids = [int(told(f"started {n} 1")) for n in range(2)]
        assert sorted(pids) == sorted(children(supervisor.pid))
        supervisor.kill_child(pids[0])
        until(lambda: outcomes(jobs[0]) == [(1, "lost")], "the rescue")
        # The other one is busy: this is the work of the new one.
        again = int(told("started 0 2"))
        assert again not in pids
        tell("go on 0 2")
        tell("go on 1 1")
        until_states("COMPLETE", *jobs)
        assert f"Worker process died: pid={pids[0]} by=SIGKILL" in supervisor.output()
    assert outcomes(jobs[0]) == [(1, "lost"), (2, "succeeded")]
    assert outcomes(jobs[1]) == [(1, "succeeded")]
    rows = Worker.objects.order_by("pk").values_list("pid", "reason")
    reasons = {pid: reason for pid, reason in rows if pid != pids[0]}
    assert reasons == {pids[1]: "told to stop", again: "told to stop"}


def begun(supervisor: WorkerProcess) -> int:
    return supervisor.output().count("Worker process started")


def test_a_supervisor_replaces_who_has_done_his_part() -> None:
    jobs = [create("first") for _ in range(40)]
    with worker(*QUICKLY, "--processes", "2", "--max_jobs", "8") as supervisor:
        until_states("COMPLETE", *jobs)
        # 40 are five times 8, so that somebody may have just begun.
        until(lambda: Worker.objects.filter(reason__startswith="max_jobs").count() >= 4)
        until(lambda: len(children(supervisor.pid)) == 2, "two worker processes")
        until(lambda: supervisor.output().count("Worker started") == begun(supervisor), "both")
        assert "ERROR" not in supervisor.output()
    shares = [Attempt.objects.filter(worker=row.label).count() for row in Worker.objects.all()]
    assert sum(shares) == 40
    assert max(shares) <= 8
    assert sorted(journal()) == sorted(f"{job.pk} first" for job in jobs)
    assert not Worker.objects.filter(stopped=None).exists()
