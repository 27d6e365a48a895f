"""Steps: their conditions, queues, names and order, and jobs that stand at one while a deploy changes them."""

import logging
from typing import Any

import pytest
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Job
from django_dbq.storage import Queues
from django_dbq.testing import advance, drain
from django_dbq.workers.worker import Worker
from tests.pipelines.flow import (
    EVERY,
    HOOKS,
    Hands,
    T,
    create,
    declare,
    drained,
    history,
    last_error,
    members,
    now_is,
    run,
    states,
    step_on,
    tasks,
)
from tests.pipelines.tasks import broken, called
from tests.pipelines.test_waits import SECOND

pytestmark = pytest.mark.usefixtures("anywhere")


def ok(*names: str) -> list[tuple[str, str]]:
    return [(name, "succeeded") for name in names]


def skipped(*names: str) -> list[tuple[str, str]]:
    return [(name, "skipped") for name in names]


WHEN = {"when": T + "is_wanted"}


# -- when --


@pytest.mark.parametrize("wanted", [True, False])
def test_a_condition(settings: Any, wanted: bool) -> None:
    steps = [T + "a", {"task": T + "b", **WHEN}, T + "c"]
    declare(settings, *steps, **HOOKS)
    job = drained(create(wanted=wanted))
    assert job.state == "COMPLETE"
    assert history(job) == [*ok("a"), *(ok("b") if wanted else skipped("b")), *ok("c")]
    ran = ["before, job", "b", "after, job"] if wanted else []
    assert called == [
        *("created, job", "before, job", "a", "after, job", "is_wanted", *ran),
        *("before, job", "c", "completed, job", "after, job"),
    ]


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(
    "step",
    [
        {"sleep": 0},
        {"wait_for": "approval"},
        {"group": [T + "a", T + "b"]},
        {"map": T + "square_item", "over": "items", "into": "out"},
    ],
    ids=["sleep", "wait_for", "group", "map"],
)
def test_every_form_may_have_a_condition(settings: Any, step: dict[str, Any], wanted: bool) -> None:
    """It is asked once, when the job comes to the step; what it says later is no matter."""
    declare(settings, {**step, **WHEN}, T + "c")
    job = create(wanted=wanted, items=[3])
    job.send("approval", "yes")
    step_on()
    Job.objects.filter(pk=job.pk).update(workspace={**now_is(job).workspace, "wanted": not wanted})
    advance(SECOND)
    assert drained(job).state == "COMPLETE"
    assert called.count("is_wanted") == 1
    assert (history(job)[0][1] == "skipped") is not wanted
    assert bool(job.children.exists()) is (
        wanted and step.keys() <= {"group", "map", "over", "into"}
    )
    brought = {"a", "b", "out", "approval"} & job.workspace.keys()
    assert bool(brought) is (wanted and "sleep" not in step)


def test_conditions_in_branches(settings: Any) -> None:
    job = run(
        settings,
        [[{"task": T + "a", **WHEN}], [{"task": T + "b", **WHEN}, T + "c"], T + "d"],
        T + "e",
    )
    assert job.state == "COMPLETE"
    assert [history(m) for m in members(job)] == [
        skipped("a"),
        [*skipped("b"), *ok("c")],
        ok("d"),
    ]
    assert sorted(job.workspace) == ["c", "d", "e"]


@pytest.mark.parametrize("place", ["first", "last", "alone", "all"])
def test_where_a_skipped_step_stands(settings: Any, place: str) -> None:
    unwanted = {"task": T + "b", **WHEN}
    places: dict[str, list[Any]] = {
        "first": [unwanted, T + "a"],
        "last": [T + "a", unwanted],
        "alone": [unwanted],
        "all": [unwanted, unwanted, unwanted],
    }
    steps = places[place]
    declare(settings, *steps, **HOOKS)
    job = drained(create())
    assert job.state == "COMPLETE"
    assert "b" not in called
    assert called.count("completed, job") == 1
    assert len(history(job)) == len(steps)


def test_a_condition_sees_what_was_done_before(settings: Any) -> None:
    set_wanted = {"task": T + "first_set"}
    job = run(settings, set_wanted, {"task": T + "a", **WHEN}, sets=[{"wanted": True}])
    assert history(job) == ok("first_set", "a")


def test_a_condition_that_raises_fails_the_step(settings: Any) -> None:
    declare(settings, {"task": T + "a", "when": T + "is_wanted_at_second"}, T + "b", **HOOKS)
    job = drained(create())
    assert job.state == "FAILED"
    assert history(job) == [("a", "failed")]
    assert "Broken: the predicate" in last_error(job)
    assert "failed, job: Broken" in called
    assert job.retry()
    assert drained(job).state == "COMPLETE"
    assert history(job) == [("a", "failed"), *ok("a", "b")]


def test_a_condition_that_there_is_not_fails_the_step(settings: Any) -> None:
    job = run(settings, {"sleep": 0, "when": T + "no_such_predicate"})
    assert job.state == "FAILED"
    assert "ImportError" in last_error(job)


def test_a_condition_that_raises_uses_up_a_retry(settings: Any) -> None:
    step = {"task": T + "a", "when": T + "is_wanted_at_second", "retries": 1}
    job = run(settings, step)
    assert history(job) == [("a", "failed"), *ok("a")]
    assert called == ["is_wanted_at_second", "is_wanted_at_second", "a"]


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ({"group": [T + "a", T + "b"]}, "group"),
        ({"map": T + "square_item", "over": "items", "into": "out"}, f"map {T}square_item"),
        ({"wait_for": "approval"}, "wait_for approval"),
        ({"sleep": 3600}, "sleep"),
    ],
    ids=["group", "map", "wait_for", "sleep"],
)
def test_a_condition_that_raises_is_asked_again_and_the_step_is_not_passed_over(
    settings: Any, step: dict[str, Any], path: str
) -> None:
    """Where the worker has retries for steps that say nothing of them, as ``worker --retry 1``."""
    declare(settings, {**step, "when": T + "is_wanted_at_second"}, T + "c")
    job = create(items=[3])
    Worker(EVERY, until_done=True, retries=1).run()
    assert called[:2] == ["is_wanted_at_second"] * 2
    assert history(job)[:2] == [(path, "failed"), (path, "waited")]
    if "sleep" in step:
        assert "c" not in called
        advance(3601 * SECOND)
    elif "wait_for" in step:
        assert job.send("approval")
    assert drained(job).state == "COMPLETE"
    assert bool(members(job)) is ("group" in step or "map" in step)
    assert called[-1] == "c"


FORMS = [
    pytest.param({"group": [T + "a", T + "b"]}, id="group"),
    pytest.param({"map": T + "square_item", "over": "items", "into": "out"}, id="map"),
    pytest.param({"wait_for": "approval"}, id="wait_for"),
    pytest.param({"sleep": 3600}, id="sleep"),
    pytest.param({"task": T + "a"}, id="task"),
]


@pytest.mark.parametrize("step", FORMS)
def test_a_condition_that_waits_is_asked_again_and_the_step_is_not_passed_over(
    settings: Any, step: dict[str, Any]
) -> None:
    declare(settings, {**step, "when": T + "is_wanted_after_the_other"}, T + "c")
    settings.JOBS["other"] = [T + "d"]
    other = Job.objects.create(name="other", queue_name="elsewhere")
    job = create(items=[3], other=str(other.pk))
    drain("default")
    assert (*states(job), now_is(job).round) == ("WAITING", None)
    drain()
    assert called.count("is_wanted_after_the_other") == 2
    if "sleep" in step:
        assert (*states(job), called[-1]) == ("READY", "is_wanted_after_the_other")
        advance(3601 * SECOND)
    elif "wait_for" in step:
        assert states(job) == ["WAITING"]
        assert job.send("approval")
    assert drained(job).state == "COMPLETE"
    assert bool(members(job)) is ("group" in step or "map" in step)
    assert called[-1] == "c"


@pytest.mark.parametrize("step", FORMS)
def test_a_step_whose_condition_leaves_no_json_does_not_begin(
    settings: Any, step: dict[str, Any]
) -> None:
    declare(settings, {**step, "when": T + "leaves_no_json"}, T + "c")
    job = create(items=[3])
    assert job.send("approval", "early")
    assert drained(job).state == "FAILED"
    assert "InvalidWorkspace" in last_error(job)
    assert (members(job), job.round) == ([], None)
    assert "square_item" not in called
    # The event is there for the wait that begins when that is mended.
    deploy(settings, step, T + "c")
    assert job.retry()
    if "sleep" not in step:
        assert drained(job).state == "COMPLETE"
    if "wait_for" in step:
        assert job.workspace["approval"] == "early"


# -- finish --


@pytest.mark.parametrize("finish", ["return_finish", "raise_finish"])
def test_finish(settings: Any, finish: str) -> None:
    declare(settings, T + "a", T + finish, T + "b", tasks("c d"), **HOOKS)
    job = drained(create())
    assert (job.state, job.next_task) == ("COMPLETE", "")
    assert history(job) == ok("a", finish)
    assert job.workspace == {"a": [], finish: ["a"]}
    assert called[-3:] == [finish, "completed, job", "after, job"]
    assert called.count("completed, job") == 1


def test_finish_of_a_retried_step(settings: Any) -> None:
    declare(settings, {"task": T + "raise_finish", "retries": 3, "atomic": True}, T + "b")
    job = drained(create())
    assert history(job) == ok("raise_finish")
    assert job.workspace == {"raise_finish": []}


# -- queues of steps --


def test_a_step_in_its_own_queue_and_back(settings: Any) -> None:
    declare(
        settings,
        T + "a",
        {"task": T + "b", "queue": "slow"},
        {"task": T + "c", "queue": "slower"},
        T + "d",
        queue="mine",
    )
    job = create()
    seen = []
    for queue in ("mine", "slow", "slower", "mine"):
        seen.append(now_is(job).queue_name)
        assert sum(drain(other) for other in {"mine", "slow", "slower"} - {queue}) == 0
        assert drain(queue) == 1
    assert seen == ["mine", "slow", "slower", "mine"]
    job = now_is(job)
    assert (job.state, job.queue_name, job.home_queue) == ("COMPLETE", "mine", "")
    assert called == ["a", "b", "c", "d"]


def test_a_job_in_a_queue_of_its_own_returns_to_that(settings: Any) -> None:
    declare(settings, {"task": T + "a", "queue": "slow"}, T + "b")
    job: Job = Job.objects.create(name="it", queue_name="special")
    assert job.queue_name == "slow"
    assert drain("special") == 0
    assert drain("slow") == 1
    assert drain("special") == 1
    assert states(job) == ["COMPLETE"]


def test_jobs_that_are_created_at_once_start_in_the_queue_of_their_first_step(
    settings: Any,
) -> None:
    declare(settings, {"task": T + "a", "queue": "slow"}, T + "b")
    jobs = Job.objects.bulk_create(Job(name="it") for _ in range(60))
    assert set(Job.objects.values_list("queue_name", "home_queue")) == {("slow", "default")}
    assert drain("slow") == 60
    assert drain("default") == 60
    assert set(states(*jobs)) == {"COMPLETE"}


def test_a_retry_stays_in_the_queue_of_its_step(settings: Any) -> None:
    declare(settings, {"task": T + "fail_at_first", "queue": "slow", "retries": 1}, T + "b")
    job = create()
    assert drain("slow") == 2
    assert drain("default") == 1
    assert states(job) == ["COMPLETE"]


def test_a_job_that_is_retried_by_hand_stays_in_the_queue_of_its_step(settings: Any) -> None:
    declare(settings, T + "a", {"task": T + "b", "queue": "slow"}, T + "c")
    broken.add("b")
    job = drained(create())
    assert (job.state, job.queue_name) == ("FAILED", "slow")
    broken.clear()
    assert job.retry(from_step="a")
    assert (job.queue_name, job.home_queue) == ("default", "")
    assert drained(job).state == "COMPLETE"


def test_branches_in_queues(settings: Any) -> None:
    declare(
        settings,
        T + "a",
        [{"task": T + "b", "queue": "slow"}, [T + "c", {"task": T + "d", "queue": "slower"}]],
        {"task": T + "e", "queue": "slow"},
    )
    job = create()
    assert drain("default") == 3  # a, the group, c
    assert drain("slow") == 1
    assert drain("default") == 0
    assert drain("slower") == 1
    assert drain("default") == 1  # the join
    assert drain("slow") == 1
    assert states(job) == ["COMPLETE"]
    assert [m.queue_name for m in members(job)] == ["slow", "slower"]


def test_a_group_after_a_step_in_a_queue_of_its_own(settings: Any) -> None:
    """Its members are in the job's own queue, and so is the job."""
    declare(settings, {"task": T + "a", "queue": "slow"}, tasks("b c"), T + "d", queue="mine")
    job = create()
    assert drain("slow") == 1
    assert drain("mine") == 5
    assert states(job) == ["COMPLETE"]
    assert {m.queue_name for m in members(job)} == {"mine"}


def test_a_skipped_step_in_a_queue_of_its_own(settings: Any) -> None:
    declare(settings, T + "a", {"task": T + "b", "queue": "slow", **WHEN}, T + "c")
    job = drained(create())
    assert (job.state, job.queue_name) == ("COMPLETE", "default")


# -- names --


def test_steps_by_name_path_and_place(settings: Any) -> None:
    steps = [T + "a", {"task": T + "b", "name": "second"}, tasks("c d"), {"sleep": 0}]
    job = run(settings, *steps)
    advance(SECOND)
    assert drained(job).state == "COMPLETE"
    step: str | int
    for step, place in (("a", 0), (T + "a", 0), ("second", 1), (T + "b", 1), ("group", 2)):
        assert job.fork(from_step=step).step == place
    for step in ("b", "c", 3, "third"):
        with pytest.raises(LookupError, match=r"has no step .* it has: 0 \(a\), 1 \(second\)"):
            job.fork(from_step=step)


def test_a_path_that_stands_twice(settings: Any) -> None:
    job = run(settings, T + "a", T + "b", T + "a")
    assert called == ["a", "b", "a"]
    assert list(job.attempts.order_by("pk").values_list("step", flat=True)) == [0, 1, 2]
    with pytest.raises(LookupError, match="several steps"):
        job.fork(from_step="a")
    assert job.fork(from_step=2).step == 2


# -- deploys, while jobs are in flight --


def deploy(settings: Any, *steps: Any) -> None:
    settings.JOBS = {**settings.JOBS, "it": list(steps)}


def stands_at(settings: Any, *steps: Any, steps_run: int = 1, **workspace: Any) -> Job:
    """A job of these steps after so many of them."""
    declare(settings, *steps)
    job = create(**workspace)
    for _ in range(steps_run):
        step_on()
    called.clear()
    return now_is(job)


@pytest.mark.parametrize(
    ("after", "ran"),
    [
        (["a", "b", "c"], ["b", "c"]),
        (["b", "c"], ["b", "c"]),
        (["d", "a", "b", "c"], ["b", "c"]),
        (["a", "d", "b", "c"], ["b", "c"]),
        (["a", "b", "d", "c"], ["b", "d", "c"]),
        (["c", "b"], ["b"]),
        (["b"], ["b"]),
        (["b", "a", "c", "b"], ["b", "a", "c", "b"]),
    ],
)
def test_a_job_resumes_at_its_step(settings: Any, after: list[str], ran: list[str]) -> None:
    """By place if its path still stands there, else wherever that stands now; the nearest counts."""
    job = stands_at(settings, *tasks("a b c"))
    assert (job.next_task, job.step) == (T + "b", 1)
    deploy(settings, *tasks(" ".join(after)))
    assert drained(job).state == "COMPLETE"
    assert called == ran


def test_a_step_that_was_renamed(settings: Any) -> None:
    job = stands_at(settings, *tasks("a b c"))
    deploy(settings, T + "a", {"task": T + "d", "renamed_from": T + "b"}, T + "c")
    assert drained(job).state == "COMPLETE"
    assert called == ["d", "c"]


def test_a_step_that_was_renamed_more_than_once_and_moved(settings: Any) -> None:
    job = stands_at(settings, *tasks("a b c"))
    deploy(settings, T + "c", T + "a", {"task": T + "e", "renamed_from": [T + "d", T + "b"]})
    assert drained(job).state == "COMPLETE"
    assert called == ["e"]


@pytest.mark.parametrize("former", ["group old", "old"])
def test_a_group_that_was_renamed(settings: Any, former: str) -> None:
    """``renamed_from`` takes an earlier path or name that jobs in flight may still carry."""
    job = stands_at(settings, {"group": tasks("a b"), "name": "old"}, T + "c")
    assert job.next_task == "group old"
    group = {"group": tasks("a b"), "name": "new", "renamed_from": former}
    deploy(settings, T + "d", group, T + "c")
    assert drained(job).state == "COMPLETE"
    assert called == ["a", "b", "c"]


def test_a_members_step_that_has_moved_into_a_group_is_run_as_that_group(settings: Any) -> None:
    """And the steps that follow in its branch are run after it, none is passed over."""
    declare(settings, [tasks("a b c"), T + "d"])
    job = create()
    step_on()
    step_on()
    assert states(*members(job)) == ["READY", "COMPLETE"]
    deploy(settings, [[T + "a", tasks("b e"), T + "c"], T + "d"])
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["a", "b", "c", "d", "e"]
    assert called[-1] == "c"


def test_a_members_step_that_is_still_where_it_was_is_that_step(settings: Any) -> None:
    """Also where the same task stands in a group further in."""
    declare(settings, [[T + "a", tasks("b c"), T + "b"], T + "d"])
    job = create()
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["a", "b", "b", "c", "d"]


def test_a_job_at_a_step_that_is_gone_waits_for_it(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = stands_at(settings, *tasks("a b c"))
    deploy(settings, *tasks("a c"))
    with caplog.at_level(logging.WARNING, "django_dbq"):
        assert drain() == 0
    assert "Stranded jobs" in caplog.text
    assert (states(job), now_is(job).next_task) == (["READY"], T + "b")
    deploy(settings, *tasks("a b"))
    assert drained(job).state == "COMPLETE"


def test_an_older_worker_hands_back_what_it_does_not_know(settings: Any) -> None:
    """It has claimed the job when the settings still knew the step."""
    job = stands_at(settings, *tasks("a b c"))
    worker = Worker(EVERY, until_done=True)
    claim = worker._claim

    def claim_and_deploy(*args: Any) -> list[Job]:
        jobs = claim(*args)
        deploy(settings, *tasks("a c"))
        return jobs

    worker._claim = claim_and_deploy  # type: ignore[assignment,method-assign]
    worker.run()
    assert (states(job), now_is(job).attempt) == (["READY"], 1)
    assert called == []
    deploy(settings, *tasks("a b"))
    assert drained(job).state == "COMPLETE"


def test_an_older_worker_runs_members_of_a_group_that_it_does_not_know(settings: Any) -> None:
    """And each of them is what it was made as: what is around that group is not run once more."""
    inner = {"group": tasks("c d"), "name": "former"}
    renamed = {**inner, "name": "later", "renamed_from": "former"}
    declare(settings, [T + "a", renamed], T + "b")
    job = create()
    step_on()
    step_on()
    deploy(settings, [T + "a", inner], T + "b")
    step_on()
    deploy(settings, [T + "a", renamed], T + "b")
    assert drained(job).state == "COMPLETE"
    assert called == ["a", "c", "d", "b"]


def test_a_step_moves_into_a_group(settings: Any) -> None:
    """A job that is no member stands at the group, and runs all of its branches."""
    job = stands_at(settings, *tasks("a b c"))
    deploy(settings, T + "a", tasks("b d"), T + "c")
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["b", "c", "d"]
    assert history(job)[1:] == [("group", "waited"), ("group", "succeeded"), ("c", "succeeded")]


def test_a_step_moves_into_an_inner_group(settings: Any) -> None:
    job = stands_at(settings, *tasks("a b"))
    deploy(settings, T + "a", [[T + "c", [T + "b", T + "d"]], T + "e"])
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["b", "c", "d", "e"]


def test_a_step_moves_out_of_a_group(settings: Any) -> None:
    """Members that stand at it run it, and end; the job itself waits for its group."""
    group = {"group": [T + "a", tasks("b c")], "name": "both"}
    job = stands_at(settings, group, T + "d", steps_run=2)
    assert [m.next_task for m in members(job)] == ["", T + "c"]
    deploy(settings, {"group": [T + "a", T + "b"], "name": "both"}, T + "c", T + "d")
    assert drained(job).state == "COMPLETE"
    assert called == ["c", "c", "d"]


def test_members_follow_their_steps(settings: Any) -> None:
    job = stands_at(settings, [T + "a", tasks("b c")], T + "d", steps_run=2)
    deploy(settings, T + "e", [tasks("e b f c"), T + "f", T + "a"], T + "d")
    assert drained(job).state == "COMPLETE"
    assert called == ["c", "d"]
    assert len(members(job)) == 2, "a branch that has come in meanwhile is for jobs to come"


def test_a_path_inside_and_outside_of_a_group(settings: Any) -> None:
    """A member goes on inside, the job outside, whatever is nearer."""
    group = {"group": [tasks("a b"), T + "c"], "name": "both"}
    job = stands_at(settings, group, T + "d", steps_run=1)
    deploy(settings, T + "a", T + "e", {"group": [T + "f", tasks("a b"), T + "c"], "name": "both"})
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["a", "b", "c"]


def test_the_job_goes_on_outside_although_its_step_stands_inside_at_its_place(
    settings: Any,
) -> None:
    job = stands_at(settings, *tasks("a b"))
    deploy(settings, tasks("b c"), T + "b", T + "d")
    assert drained(job).state == "COMPLETE"
    assert called == ["b", "d"]


def test_a_group_that_is_gone_while_its_members_run(settings: Any) -> None:
    """The members run to their ends as far as they are known; the job is stranded until the group is back."""
    job = stands_at(settings, [T + "a", T + "b"], T + "c")
    deploy(settings, *tasks("a b c"))
    assert drained(job).state == "READY"
    assert sorted(called) == ["a", "b"]
    deploy(settings, [T + "a", T + "b"], T + "c")
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["a", "b", "c"]


def test_a_map_that_changes_where_it_collects(settings: Any) -> None:
    before = {"map": T + "square_item", "over": "items"}
    job = stands_at(settings, before, items=[1, 2], steps_run=1)
    deploy(settings, T + "a", {**before, "into": "out"}, T + "b")
    assert drained(job).workspace["out"] == [1, 4]


def test_a_wait_that_moves(settings: Any) -> None:
    job = stands_at(settings, T + "a", {"wait_for": "approval"}, T + "b", steps_run=2)
    deploy(settings, T + "a", T + "c", T + "d", {"wait_for": "approval"}, T + "b")
    assert job.send("approval", 1)
    assert drained(job).state == "COMPLETE"
    assert called == ["b"]


def test_a_sleep_that_moves(settings: Any) -> None:
    job = stands_at(settings, T + "a", {"sleep": 3600}, T + "b", steps_run=2)
    deploy(settings, T + "c", T + "d", T + "a", {"sleep": 1}, T + "b")
    assert drain() == 0
    advance(3601 * SECOND)
    assert drained(job).state == "COMPLETE"
    assert called == ["b"]


def test_a_job_is_sent_elsewhere_by_hand(settings: Any) -> None:
    """As the documentation allows: what it had begun at its former step does not count at another."""
    steps = [
        T + "a",
        {"group": tasks("b c"), "name": "one"},
        {"group": tasks("d e"), "name": "two"},
    ]
    broken.add("b")
    job = run(settings, *steps)
    assert (job.state, job.next_task, job.round) == ("FAILED", "group one", 2)
    called.clear()
    Job.objects.filter(pk=job.pk).update(state="READY", next_task="group two", step=4)
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["d", "e"]


def test_a_job_is_sent_by_hand_to_a_step_with_a_condition(settings: Any) -> None:
    broken.add("b")
    job = run(settings, tasks("b c"), {"task": T + "d", **WHEN}, T + "e")
    assert job.state == "FAILED"
    called.clear()
    Job.objects.filter(pk=job.pk).update(state="READY", next_task=T + "d", step=3)
    assert drained(job).state == "COMPLETE"
    assert called == ["is_wanted", "e"]


@pytest.mark.parametrize("form", ["group", "map", "wait_for", "sleep"])
def test_a_place_takes_another_form(settings: Any, form: str) -> None:
    """A job that stands at a task which has become something else stands nowhere, and is not taken for the other."""
    other: Any = {
        "group": tasks("c d"),
        "map": {"map": T + "c", "over": "items"},
        "wait_for": {"wait_for": "approval"},
        "sleep": {"sleep": 1},
    }[form]
    job = stands_at(settings, *tasks("a b"))
    deploy(settings, T + "a", other)
    assert drain() == 0
    assert states(job) == ["READY"]
    assert engine.stranded(EVERY, now_is(job).modified, "default") == {("it", T + "b"): 1}


def test_a_member_that_nobody_knows_is_left_and_told_of(settings: Any) -> None:
    job = stands_at(settings, [T + "a", tasks("b c")], T + "d", steps_run=2)
    deploy(settings, [T + "a", T + "b"], T + "d")
    assert drained(job).state == "WAITING"
    now = members(job)[1].modified
    assert engine.stranded(EVERY, now, "default") == {("it", T + "c"): 1}


def test_hands_do_not_claim_what_nobody_knows(settings: Any) -> None:
    stands_at(settings, *tasks("a b"))
    deploy(settings, T + "a")
    assert Hands().claim() == []
    assert engine.stranded(Queues(("other",)), now_is(Job.objects.get()).modified, "default") == {}


def test_a_cancel_that_had_to_wait_ends_a_job_after_what_it_has_done(settings: Any) -> None:
    """The time comes from before the wait for the job's row, in which the job went on."""
    declare(settings, T + "a", T + "b")
    waits, held = create(), create()
    before = timezone.now()
    assert step_on() == [waits, held]
    (claimed, *_) = [job for job in Hands().claim() if job.pk == held.pk]
    assert engine.cancel([waits.pk, held.pk], before, "default") == 2
    for job in (now_is(waits), now_is(held)):
        assert job.finished == job.modified > before
        assert all(
            job.finished >= attempt.finished >= attempt.started for attempt in job.attempts.all()
        )
    assert claimed.attempts.get(outcome="cancelled").started > before
