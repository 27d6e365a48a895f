"""Parallel groups: what their branches are given, what is joined, who fails when, and what is run again."""

from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Job
from django_dbq.steps import MembersFailed, WorkspaceConflict
from django_dbq.storage import Overdue
from tests.pipelines.flow import (
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

pytestmark = pytest.mark.usefixtures("anywhere")


def by_position(job: Job) -> list[list[tuple[str, str]]]:
    """The histories of its members."""
    return [history(member) for member in members(job)]


def ok(*names: str) -> list[tuple[str, str]]:
    return [(name, "succeeded") for name in names]


GROUP = [("group", "waited"), ("group", "succeeded")]


def test_the_two_ways_to_run_these_tests(request: pytest.FixtureRequest) -> None:
    assert connection.in_atomic_block is ("in a transaction" in request.node.name)


# -- branches and the join --


def test_branches_and_what_is_left_of_them(settings: Any) -> None:
    job = run(settings, T + "a", [T + "b", tasks("c d")], T + "e", base=0)
    assert job.state == "COMPLETE"
    assert called == ["a", "b", "c", "d", "e"]
    assert job.workspace == {
        "base": 0,
        "a": ["base"],
        "b": ["a", "base"],
        "c": ["a", "base"],
        "d": ["a", "base", "c"],
        "e": ["a", "b", "base", "c", "d"],
    }
    assert history(job) == [*ok("a"), *GROUP, *ok("e")]
    assert list(job.attempts.order_by("pk").values_list("step", flat=True)) == [0, 1, 1, 5]
    assert by_position(job) == [ok("b"), ok("c", "d")]
    one, two = members(job)
    assert one.workspace == {"base": 0, "a": ["base"], "b": ["a", "base"]}
    assert two.workspace == {
        "base": 0,
        "a": ["base"],
        "c": ["a", "base"],
        "d": ["a", "base", "c"],
    }
    for number, member in enumerate((one, two)):
        assert (member.name, member.state, member.next_task) == ("it", "COMPLETE", "")
        assert (member.parent_id, member.position, member.parent_round) == (job.pk, number, 2)
        assert (member.round, member.waiting_for, member.result) == (None, 0, None)
        assert member.finished is not None
    assert (job.round, job.waiting_for, job.parent_id, job.next_task) == (None, 0, None, "")


def test_the_rows_while_it_waits(settings: Any) -> None:
    declare(settings, [T + "a", tasks("b c")], T + "d")
    job = create()
    assert (job.state, job.next_task, job.step) == ("NEW", "group", 0)
    step_on()
    job = now_is(job)
    assert (job.state, job.next_task, job.step) == ("WAITING", "group", 0)
    assert (job.attempt, job.round, job.waiting_for) == (1, 1, 2)
    assert [(m.state, m.next_task, m.step) for m in members(job)] == [
        ("NEW", T + "a", 1),
        ("NEW", T + "b", 2),
    ]
    step_on()
    job = now_is(job)
    assert (job.state, job.waiting_for) == ("WAITING", 1)
    assert [(m.state, m.next_task, m.step) for m in members(job)] == [
        ("COMPLETE", "", 1),
        ("READY", T + "c", 3),
    ]
    step_on()
    job = now_is(job)
    assert (job.state, job.waiting_for, job.round, job.attempt) == ("READY", 0, 1, 1)
    step_on()
    job = now_is(job)
    assert (job.state, job.next_task, job.step) == ("READY", T + "d", 4)
    assert (job.round, job.attempt) == (None, 2)


def test_branches_take_after_their_job(settings: Any) -> None:
    """Name, queue, priority and urgency are its own."""
    declare(settings, [T + "a", T + "b"], queue="mine", priority=7)
    job = create()
    Job.objects.filter(pk=job.pk).update(urgency=99)
    step_on()
    assert {(m.name, m.queue_name, m.priority, m.urgency) for m in members(job)} == {
        ("it", "mine", 7, 99)
    }


@pytest.mark.parametrize(
    ("sets", "joined"),
    [
        ([{"x": 1}, {"y": 2}, {}], {"x": 1, "y": 2}),
        ([{"old": 1}, {}, {}], {"old": 1}),
        ([{"old": None}, {"x": 1}, {}], {"old": ..., "x": 1}),
        ([{"old": None}, {"old": None}, {}], {"old": ...}),
        ([{"x": [1, {"k": None}]}, {"x": [1, {"k": None}]}, {"old": 0}], {"x": [1, {"k": None}]}),
        ([{"deep": {"k": 2}}, {}, {"x": ""}], {"deep": {"k": 2}, "x": ""}),
        ([{"old": True}, {}, {}], {"old": True}),
        ([{"old": False}, {}, {}], {"old": False}),
        ([{"old": 0.0}, {}, {}], {"old": 0.0}),
        ([{}, {"sets": 0}, {}], {"sets": 0}),
        ([{}, {}, {}], {}),
    ],
)
def test_what_branches_set_change_and_remove_is_merged(
    settings: Any, sets: Any, joined: dict[str, Any]
) -> None:
    """A value that equals another for Python (True and 1, 0 and 0.0) is another one for JSON all the same."""
    base = {"old": 0, "deep": {"k": 1}, "sets": sets}
    job = run(settings, tasks("first_set second_set third_set"), **base)
    assert job.state == "COMPLETE", last_error(job)
    wanted = {key: value for key, value in {**base, **joined}.items() if value is not ...}
    assert repr(sorted(job.workspace.items())) == repr(sorted(wanted.items()))


@pytest.mark.parametrize(
    ("sets", "branches"),
    [
        ([{"x": 1}, {"x": 2}, {}], "0 and 1"),
        ([{"x": 1}, {}, {"x": 2}], "0 and 2"),
        ([{"x": 1}, {"x": 1}, {"x": 2}], "0 and 2"),
        ([{}, {"x": {"k": 1}}, {"x": {"k": 1, "l": 1}}], "1 and 2"),
        ([{"x": 1}, {"x": True}, {}], "0 and 1"),
        ([{"x": None}, {"x": 1}, {}], "0 and 1"),
        ([{"x": 1}, {"x": None}, {}], "0 and 1"),
    ],
)
def test_a_conflict_names_the_key_and_the_branches(settings: Any, sets: Any, branches: str) -> None:
    base = {"x": 0, "sets": sets}
    declare(settings, [*tasks("first_set second_set third_set")], T + "a", **HOOKS)
    job = drained(create(**base))
    assert job.state == "FAILED"
    assert job.workspace == base, "nothing of a join that has failed is kept"
    assert history(job) == [("group", "waited"), ("group", "failed")]
    assert last_error(job) == (
        f"{WorkspaceConflict.__module__}.WorkspaceConflict: The branches {branches} of group have set 'x' to "
        "different values: have one of them set it, or each a key of its own."
    )
    assert [line for line in called if "failed" in line] == ["failed, job: WorkspaceConflict"]
    assert "a" not in called
    assert set(states(*members(job))) == {"COMPLETE"}


def test_a_conflict_can_be_resolved_by_hand(settings: Any) -> None:
    sets = [{"x": 1}, {"x": 2}, {}]
    job = run(settings, tasks("first_set second_set"), sets=sets)
    assert job.retry()
    assert drained(job).state == "FAILED", "it is as it was"
    job.children.filter(position=1).update(workspace={"sets": sets, "x": 1})
    assert job.retry()
    assert drained(job).state == "COMPLETE"
    assert job.workspace["x"] == 1


def test_a_branch_that_leaves_no_dict_is_not_dropped_in_silence(settings: Any) -> None:
    job = run(settings, tasks("a become_a_list"))
    assert job.state == "FAILED"
    assert "branch" in last_error(job)
    assert "1" in last_error(job)


def test_a_group_needs_a_dict(settings: Any) -> None:
    job = run(settings, T + "become_a_list", tasks("a b"))
    assert job.state == "FAILED"
    assert last_error(job).endswith("The workspace is no dict, which group needs.")
    assert not members(job)


def test_an_empty_workspace_is_enough(settings: Any) -> None:
    job = run(settings, [T + "first_set"], sets=[{"sets": None}])
    assert (job.state, job.workspace) == ("COMPLETE", {})


# -- where groups may stand --


def test_nested_groups(settings: Any) -> None:
    """In a group, a list is a sequence; a list in that is a group again."""
    job = run(settings, [T + "a", [T + "b", [T + "c", tasks("d e")]]], T + "f")
    assert job.state == "COMPLETE"
    assert called == ["a", "b", "c", "d", "e", "f"]
    assert job.workspace == {
        "a": [],
        "b": [],
        "c": ["b"],
        "d": ["b"],
        "e": ["b", "d"],
        "f": ["a", "b", "c", "d", "e"],
    }
    outer, inner = members(job)
    assert history(job) == [*GROUP, *ok("f")]
    assert history(outer) == ok("a")
    assert history(inner) == [*ok("b"), *GROUP]
    assert by_position(inner) == [ok("c"), ok("d", "e")]
    assert {m.parent_round for m in members(inner)} == {2}
    assert [m.step for m in members(inner)] == [4, 6]


def test_groups_in_groups_in_groups(settings: Any) -> None:
    job = run(settings, [[[[[[T + "a"]]], T + "b"]], T + "c"])
    assert job.state == "COMPLETE"
    assert sorted(called) == ["a", "b", "c"]
    assert job.workspace == {"a": [], "b": [], "c": []}
    assert Job.objects.count() == 6


@pytest.mark.parametrize(
    "steps",
    [
        [tasks("a b")],
        [tasks("a b"), T + "c"],
        [T + "c", tasks("a b")],
        [tasks("a b"), tasks("c d")],
        [[T + "a"], [T + "a"]],
        [{"group": tasks("a b"), "name": "both"}, tasks("a b")],
        [[tasks("a a"), tasks("b b")]],
    ],
    ids=["alone", "first", "last", "in a row", "of one", "twice", "a path twice"],
)
def test_groups_stand_anywhere(settings: Any, steps: list[Any]) -> None:
    job = run(settings, *steps)
    assert job.state == "COMPLETE"
    assert not Job.objects.exclude(state="COMPLETE").exists()
    outcomes = [outcome for _, outcome in history(job)]
    groups = sum(not isinstance(step, str) for step in steps)
    assert outcomes.count("waited") == groups
    assert len({m.parent_round for m in members(job)}) == groups


def test_the_name_of_a_group(settings: Any) -> None:
    job = run(settings, {"group": tasks("a b"), "name": "both"})
    assert history(job) == [("group both", "waited"), ("group both", "succeeded")]


def test_many_branches(settings: Any) -> None:
    job = run(settings, [{"task": T + "note", "name": f"branch {n}"} for n in range(120)])
    assert job.state == "COMPLETE"
    assert [m.position for m in members(job)] == list(range(120))
    assert set(states(*members(job))) == {"COMPLETE"}


# -- what tasks in branches may ask for --


@pytest.mark.parametrize("finish", ["return_finish", "raise_finish"])
def test_finish_skips_the_rest_of_its_branch_alone(settings: Any, finish: str) -> None:
    job = run(settings, [tasks(f"a {finish} b"), tasks("c d")], T + "e")
    assert job.state == "COMPLETE"
    assert sorted(called) == ["a", "c", "d", "e", finish]
    assert by_position(job) == [ok("a", finish), ok("c", "d")]
    assert job.workspace[finish] == ["a"]


def test_finish_in_an_inner_branch(settings: Any) -> None:
    job = run(settings, [[[tasks("raise_finish a"), T + "b"], T + "c"]], T + "d")
    assert job.state == "COMPLETE"
    assert sorted(called) == ["b", "c", "d", "raise_finish"]


def test_retry_in_a_branch(settings: Any) -> None:
    job = run(settings, tasks("retry_twice a"), T + "b")
    assert job.state == "COMPLETE"
    assert by_position(job) == [
        [("retry_twice", "retried"), ("retry_twice", "retried"), ("retry_twice", "succeeded")],
        ok("a"),
    ]
    assert called[-1] == "b"


def test_retries_of_a_step_in_a_branch(settings: Any) -> None:
    job = run(settings, [{"task": T + "fail_at_first", "retries": 1}, T + "a"])
    assert job.state == "COMPLETE"
    assert by_position(job)[0] == [("fail_at_first", "failed"), ("fail_at_first", "succeeded")]


def test_the_retries_of_the_job_are_those_of_its_branches(settings: Any) -> None:
    declare(settings, tasks("fail_at_first a"), retries=1)
    job = drained(create())
    assert job.state == "COMPLETE"


def test_abort_in_a_branch(settings: Any) -> None:
    declare(settings, tasks("abort a"), retries=5)
    job = drained(create())
    assert job.state == "FAILED"
    assert by_position(job) == [[("abort", "failed")], ok("a")]
    assert history(job) == [("group", "waited"), ("group", "failed")]


def test_atomic_steps_in_branches(settings: Any) -> None:
    broken.add("b")
    job = run(settings, [{"task": T + name, "atomic": True} for name in "abc"])
    assert job.state == "FAILED"
    assert states(*members(job)) == ["COMPLETE", "FAILED", "COMPLETE"]
    assert [m.workspace for m in members(job)] == [{"a": []}, {}, {"c": []}]
    broken.clear()
    job.retry()
    assert drained(job).state == "COMPLETE"
    assert job.workspace == {"a": [], "b": [], "c": []}


# -- hooks --


def test_which_hooks_are_called(settings: Any) -> None:
    """A branch's tasks have their hooks; its end is nobody's, and a group is no task."""
    declare(settings, [T + "a", tasks("b c")], T + "d", **HOOKS)
    drained(create())
    assert called == [
        "created, job",
        *("before, member 0", "a", "after, member 0"),
        *("before, member 1", "b", "after, member 1"),
        *("before, member 1", "c", "after, member 1"),
        *("before, job", "d", "completed, job", "after, job"),
    ]


def test_which_hooks_are_called_of_a_failure(settings: Any) -> None:
    declare(settings, [T + "a", [T + "b", tasks("c d")]], T + "e", **HOOKS)
    broken.add("c")
    drained(create())
    assert called == [
        "created, job",
        *("before, member 0", "a", "after, member 0"),
        *("before, member 1", "b", "after, member 1"),
        *("before, member 0", "c", "after, member 0"),
        *("before, member 1", "d", "after, member 1"),
        "failed, job: MembersFailed",
    ]


def test_the_completion_hook_of_a_job_that_ends_with_a_group(settings: Any) -> None:
    declare(settings, tasks("a b"), **HOOKS)
    drained(create())
    assert called[-1] == "completed, job"
    assert called.count("completed, job") == 1


# -- a branch fails --


def test_the_job_fails_after_all_branches_have_ended(settings: Any) -> None:
    declare(settings, [T + "a", tasks("b c d")], T + "e", **HOOKS)
    broken.add("a")
    job = drained(create())
    assert job.state == "FAILED"
    assert [line for line in called if "after" not in line and "before" not in line] == [
        *("created, job", "a", "b", "c", "d", "failed, job: MembersFailed")
    ]
    assert states(*members(job)) == ["FAILED", "COMPLETE"]
    assert last_error(job) == (
        f"{MembersFailed.__module__}.MembersFailed: 1 of the 2 members of group have not completed: 0 "
        "(counted from 0). Retrying this job retries those."
    )
    assert history(job) == [("group", "waited"), ("group", "failed")]
    assert (job.next_task, job.step, job.round) == ("group", 0, 1)


def test_the_error_names_a_few_of_many(settings: Any) -> None:
    broken.add("b")
    job = run(settings, {"group": tasks("a b b a b b b b b"), "name": "nine"})
    assert "7 of the 9 members of group nine have not completed: 1, 2, 4, 5, 6 and 2 more" in (
        last_error(job)
    )


def test_a_failure_in_a_nested_group_fails_all_around_it(settings: Any) -> None:
    broken.add("d")
    job = run(settings, [[[T + "c", T + "d"], T + "e"], T + "a"], T + "f")
    assert job.state == "FAILED"
    assert states(*members(job)) == ["FAILED", "COMPLETE"]
    inner = members(job)[0]
    assert states(*members(inner)) == ["COMPLETE", "FAILED"]
    assert sorted(called) == ["a", "c", "d"]


def test_cancel_rest(settings: Any) -> None:
    group = {"group": [T + "a", tasks("b c")], "on_failure": "cancel_rest"}
    declare(settings, group, T + "d", **HOOKS)
    broken.add("a")
    job = drained(create())
    assert job.state == "FAILED"
    assert states(*members(job)) == ["FAILED", "CANCELLED"]
    assert "c" not in called, "of what had not begun"
    assert [line for line in called if line.startswith(("failed", "completed"))] == [
        "failed, job: MembersFailed"
    ]
    assert "2 of the 2 members" in last_error(job)


def test_cancel_rest_reaches_what_runs_and_what_is_inside(settings: Any) -> None:
    group = {"group": [T + "a", T + "b", [tasks("c d")]], "on_failure": "cancel_rest"}
    declare(settings, group)
    broken.add("a")
    job = create()
    hands = Hands()
    hands.step()
    fails, runs, opens = hands.claim()
    hands.write(hands.perform(opens))
    hands.write(hands.perform(fails))
    assert states(job, *members(job)) == ["READY", "FAILED", "CANCELLED", "CANCELLED"]
    inner = members(job)[2]
    assert states(*members(inner)) == ["CANCELLED", "CANCELLED"]
    assert history(runs) == [("b", "cancelled")]
    assert hands.write(hands.perform(runs)) == [], "nothing more is written of it"
    assert drained(job).state == "FAILED"
    broken.clear()
    called.clear()
    assert job.retry()
    assert drained(job).state == "COMPLETE"
    assert sorted(called) == ["a", "b", "c", "d"]


def test_cancel_rest_when_all_fail_in_one_batch(settings: Any) -> None:
    declare(settings, {"group": tasks("a b c"), "on_failure": "cancel_rest"})
    broken.update("abc")
    job = create()
    hands = Hands()
    hands.step()
    hands.step()
    assert states(job, *members(job)) == ["READY", "FAILED", "FAILED", "FAILED"]
    assert drained(job).state == "FAILED"
    assert history(job) == [("group", "waited"), ("group", "failed")]


def test_cancel_rest_of_a_nested_group_is_its_own(settings: Any) -> None:
    inner = {"group": [T + "a", tasks("b e")], "on_failure": "cancel_rest"}
    broken.add("a")
    job = run(settings, [[inner], tasks("c d")])
    assert job.state == "FAILED"
    assert states(*members(job)) == ["FAILED", "COMPLETE"]
    assert states(*members(members(job)[0])) == ["FAILED", "CANCELLED"]
    assert "d" in called
    assert "e" not in called


def test_ignore(settings: Any) -> None:
    group = {"group": [tasks("a b"), tasks("c d")], "on_failure": "ignore"}
    declare(settings, group, T + "e", **HOOKS)
    broken.add("b")
    job = drained(create())
    assert job.state == "COMPLETE"
    assert history(job) == [*GROUP, *ok("e")]
    assert states(*members(job)) == ["FAILED", "COMPLETE"]
    assert job.workspace == {"c": [], "d": ["c"], "e": ["c", "d"]}, "nothing of what has failed"
    assert [line for line in called if line.startswith("failed")] == []


def test_ignore_although_all_have_failed(settings: Any) -> None:
    broken.update("ab")
    job = run(settings, {"group": tasks("a b"), "on_failure": "ignore"}, T + "c", base=1)
    assert (job.state, job.workspace) == ("COMPLETE", {"base": 1, "c": ["base"]})


# -- tried again --


def test_a_retry_runs_only_what_had_not_succeeded(settings: Any) -> None:
    broken.add("c")
    job = run(settings, T + "a", [T + "b", tasks("d c e")], T + "f")
    assert job.state == "FAILED"
    broken.clear()
    called.clear()
    assert job.retry()
    assert (job.state, job.waiting_for) == ("WAITING", 1)
    assert states(*members(job)) == ["COMPLETE", "READY"]
    assert drained(job).state == "COMPLETE"
    assert called == ["c", "e", "f"]
    assert history(job) == [
        *ok("a"),
        *(("group", "waited"), ("group", "failed"), ("group", "succeeded")),
        *ok("f"),
    ]
    assert by_position(job) == [ok("b"), [*ok("d"), ("c", "failed"), *ok("c", "e")]]
    assert job.workspace["f"] == ["a", "b", "c", "d", "e"]
    assert len(members(job)) == 2


def test_a_retry_of_a_nested_failure(settings: Any) -> None:
    broken.add("d")
    job = run(settings, [[T + "b", [T + "c", tasks("d e")]], T + "a"], T + "f")
    broken.clear()
    called.clear()
    for _ in range(2):  # only the first does anything
        job.retry()
        job.refresh_from_db()
        assert (job.state, job.waiting_for) == ("WAITING", 1)
    inner = members(job)[0]
    assert (inner.state, inner.waiting_for) == ("WAITING", 1)
    assert drained(job).state == "COMPLETE"
    assert called == ["d", "e", "f"]
    assert sorted(job.workspace) == ["a", "b", "c", "d", "e", "f"]


def test_retries_that_fail_again(settings: Any) -> None:
    declare(settings, tasks("a b c"), **HOOKS)
    broken.update("ab")
    job = drained(create())
    for still in ("b", "b", ""):
        broken.clear()
        broken.update(still)
        called.clear()
        assert job.retry()
        drained(job)
        hooks = [line for line in called if line.startswith(("failed", "completed"))]
        assert (job.state, hooks) == (
            ("FAILED", ["failed, job: MembersFailed"])
            if still
            else ("COMPLETE", ["completed, job"])
        )
    outcomes = [[outcome for _, outcome in one] for one in by_position(job)]
    assert outcomes == [
        ["failed", "succeeded"],
        ["failed", "failed", "failed", "succeeded"],
        ["succeeded"],
    ]


def test_a_retry_with_nothing_left_to_run_joins_at_once(settings: Any) -> None:
    broken.add("a")
    job = run(settings, tasks("a b"), T + "c")
    broken.clear()
    assert members(job)[0].retry()
    assert drained(job).state == "FAILED", "what has failed stays so until it is retried itself"
    assert states(*members(job)) == ["COMPLETE", "COMPLETE"]
    called.clear()
    assert job.retry()
    assert (job.state, job.waiting_for) == ("READY", 0)
    assert drained(job).state == "COMPLETE"
    assert called == ["c"]


def test_a_member_is_retried_while_others_run(settings: Any) -> None:
    declare(settings, [T + "a", tasks("b c")])
    broken.add("a")
    job = create()
    for _ in range(2):
        step_on()
    assert states(job, *members(job)) == ["WAITING", "FAILED", "READY"]
    assert now_is(job).waiting_for == 1
    broken.clear()
    assert members(job)[0].retry()
    assert now_is(job).waiting_for == 2
    assert drained(job).state == "COMPLETE"
    assert history(job) == GROUP
    assert sorted(job.workspace) == ["a", "b", "c"]


def test_a_member_is_retried_between_the_last_end_and_the_join(settings: Any) -> None:
    declare(settings, tasks("a b"), T + "c")
    broken.add("a")
    job = create()
    for _ in range(2):
        step_on()
    assert states(job, *members(job)) == ["READY", "FAILED", "COMPLETE"]
    assert members(job)[0].retry()
    hands = Hands()
    (parent,) = [one for one in hands.claim() if one.pk == job.pk]
    hands.write(hands.perform(parent))
    job.refresh_from_db()
    assert (job.state, job.waiting_for, job.round) == ("WAITING", 1, 1), "it waits once more"
    hands.die()
    broken.clear()
    assert drained(job).state == "COMPLETE"
    assert [outcome for _, outcome in history(job)] == [
        *("waited", "waited", "succeeded"),
        "succeeded",
    ]


def test_a_member_is_retried_while_its_failure_is_being_joined(settings: Any) -> None:
    declare(settings, tasks("a b"), T + "c")
    broken.add("a")
    job = create()
    for _ in range(2):
        step_on()
    hands = Hands()
    (parent,) = hands.claim()
    outcome = hands.perform(parent)
    assert members(job)[0].retry()
    hands.write(outcome)
    assert states(job, *members(job)) == ["FAILED", "READY", "COMPLETE"]
    broken.clear()
    assert drained(job).state == "FAILED"
    assert job.retry()
    assert drained(job).state == "COMPLETE"
    assert called.count("b") == 1


def test_a_retried_member_that_ends_before_its_job_waits_again(settings: Any) -> None:
    """The join sees it unfinished, but when the job begins to wait for it there is nothing left to wait for."""
    declare(settings, tasks("a b"), T + "c")
    broken.add("a")
    job = create()
    for _ in range(2):
        step_on()
    broken.clear()
    assert members(job)[0].retry()
    hands = Hands()
    parent, member = sorted(hands.claim(), key=lambda one: one.parent_id is not None)
    outcome = hands.perform(parent)
    hands.write(hands.perform(member))
    assert states(job, *members(job)) == ["PROCESSING", "COMPLETE", "COMPLETE"]
    hands.write(outcome)
    assert states(job) == ["READY"]
    assert drained(job).state == "COMPLETE"


def test_a_retry_from_a_step_begins_a_group_anew(settings: Any) -> None:
    declare(settings, T + "a", {"group": [T + "b", tasks("c d")], "name": "both"}, T + "e")
    broken.add("c")
    job = drained(create())
    broken.clear()
    called.clear()
    assert job.retry(from_step="both")
    assert (job.state, job.round) == ("READY", None)
    assert drained(job).state == "COMPLETE"
    assert called == ["b", "c", "d", "e"]
    assert states(*members(job)) == ["COMPLETE", "FAILED", "COMPLETE", "COMPLETE"]
    assert [m.parent_round for m in members(job)] == [2, 2, 4, 4]


# -- cancelled --


def test_a_cancelled_job_takes_its_members_along(settings: Any) -> None:
    declare(settings, [T + "a", [T + "b", tasks("c d")], tasks("e f")], **HOOKS)
    job = create()
    hands = Hands()
    for _ in range(3):
        hands.step()
    assert states(*members(job)) == ["COMPLETE", "WAITING", "COMPLETE"]
    c, d = hands.claim()
    outcome = hands.perform(c)
    assert job.cancel()
    assert job.state == "CANCELLED"
    assert states(*members(job)) == ["COMPLETE", "CANCELLED", "COMPLETE"]
    assert states(c, d) == ["CANCELLED", "CANCELLED"]
    assert history(c) == [("c", "cancelled")]
    assert hands.write(outcome) == []
    assert history(c) == [("c", "cancelled")]
    assert drained(job).state == "CANCELLED"
    assert [line for line in called if line.startswith(("failed", "completed"))] == []
    called.clear()
    assert job.retry()
    assert drained(job).state == "COMPLETE"
    assert [line for line in called if line in "abcdef"] == ["c", "d"]


def test_a_cancelled_member_counts_as_failed(settings: Any) -> None:
    declare(settings, [T + "a", tasks("b c")])
    job = create()
    step_on()
    assert members(job)[1].cancel()
    assert drained(job).state == "FAILED"
    assert "1 of the 2 members of group have not completed: 1 " in last_error(job)


def test_the_last_member_is_cancelled(settings: Any) -> None:
    job = create_waiting(settings, {"group": tasks("a b"), "on_failure": "ignore"}, T + "c")
    for member in members(job):
        assert member.cancel()
    assert states(job) == ["READY"]
    assert drained(job).state == "COMPLETE"
    assert called == ["c"]


def create_waiting(settings: Any, *steps: Any) -> Job:
    declare(settings, *steps)
    job = create()
    step_on()
    return job


# -- paused --


def test_a_paused_job_takes_its_members_along(settings: Any) -> None:
    job = create_waiting(settings, [T + "a", tasks("b c")], T + "d")
    assert job.pause()
    assert states(job, *members(job)) == ["PAUSED", "PAUSED", "PAUSED"]
    assert drained(job).state == "PAUSED"
    assert called == []
    assert job.resume()
    assert states(job, *members(job)) == ["WAITING", "NEW", "NEW"]
    assert drained(job).state == "COMPLETE"
    assert called == ["a", "b", "c", "d"]


def test_a_running_member_is_paused_after_its_step(settings: Any) -> None:
    job = create_waiting(settings, [T + "a", tasks("b c")], T + "d")
    hands = Hands()
    one, two = hands.claim()
    assert job.pause()
    assert states(job, one, two) == ["PAUSED", "PROCESSING", "PROCESSING"]
    hands.write(hands.perform(one), hands.perform(two))
    assert states(job, one, two) == ["PAUSED", "COMPLETE", "PAUSED"]
    assert called == ["a", "b"]
    assert job.resume()
    assert states(job, one, two) == ["WAITING", "COMPLETE", "READY"]
    assert drained(job).state == "COMPLETE"


def test_a_job_whose_members_end_while_it_is_paused(settings: Any) -> None:
    job = create_waiting(settings, tasks("a b"), T + "c")
    hands = Hands()
    claimed = hands.claim()
    assert job.pause()
    hands.write(*map(hands.perform, claimed))
    assert states(job, *claimed) == ["PAUSED", "COMPLETE", "COMPLETE"]
    assert job.resume()
    assert job.state == "READY"
    assert drained(job).state == "COMPLETE"


# -- lost --


def test_a_job_is_lost_while_it_opens_a_group(settings: Any) -> None:
    declare(settings, tasks("a b"))
    job = create()
    hands = Hands()
    (claimed,) = hands.claim()
    outcome = hands.perform(claimed)
    hands.die()
    assert hands.write(outcome) == []
    assert not members(job)
    assert drained(job).state == "COMPLETE"
    assert history(job) == [("group", "lost"), *GROUP]
    assert [m.parent_round for m in members(job)] == [2, 2]


def test_a_job_is_cancelled_while_it_opens_a_group(settings: Any) -> None:
    declare(settings, tasks("a b"))
    job = create()
    hands = Hands()
    outcome = hands.perform(*hands.claim())
    assert job.cancel()
    assert hands.write(outcome) == []
    assert (states(job), members(job)) == (["CANCELLED"], [])
    assert job.retry()
    assert drained(job).state == "COMPLETE"


def test_a_job_is_paused_while_it_opens_a_group(settings: Any) -> None:
    declare(settings, tasks("a b"))
    job = create()
    hands = Hands()
    outcome = hands.perform(*hands.claim())
    assert job.pause()
    hands.write(outcome)
    assert states(job, *members(job)) == ["PAUSED"] * 3
    assert job.resume()
    assert states(job, *members(job)) == ["WAITING", "NEW", "NEW"]
    assert drained(job).state == "COMPLETE"


def test_a_job_is_paused_while_it_joins(settings: Any) -> None:
    job = create_waiting(settings, tasks("a b"), T + "c")
    step_on()
    hands = Hands()
    outcome = hands.perform(*hands.claim())
    assert job.pause()
    hands.write(outcome)
    assert (states(job), now_is(job).next_task) == (["PAUSED"], T + "c")
    assert job.resume()
    assert drained(job).state == "COMPLETE"


def test_an_outcome_whose_answer_was_lost_is_not_written_twice(settings: Any) -> None:
    """The worker asks whether it was, and takes yes for an answer."""
    declare(settings, tasks("a b"))
    job = create()
    hands = Hands()
    outcome = hands.perform(*hands.claim())
    hands.write(outcome)
    outcome.in_doubt = True
    assert hands.write(outcome) == [outcome]
    assert len(members(job)) == 2
    last = [hands.perform(one) for one in hands.claim()]
    for _ in range(2):
        assert hands.write(*last) == last
        for outcome in last:
            outcome.in_doubt = True
    assert (states(job), now_is(job).waiting_for) == (["READY"], 0)
    assert history(job) == [("group", "waited")]
    assert drained(job).state == "COMPLETE"


def test_a_job_is_lost_while_it_joins(settings: Any) -> None:
    job = create_waiting(settings, tasks("a b"), T + "c")
    step_on()
    hands = Hands()
    hands.claim()
    hands.die()
    assert drained(job).state == "COMPLETE"
    assert history(job) == [
        *(("group", "waited"), ("group", "lost"), ("group", "succeeded")),
        *ok("c"),
    ]
    assert called == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("policy", "state", "ends"),
    [("retry", "READY", "COMPLETE"), ("fail", "READY", "FAILED"), ("hold", "PAUSED", "WAITING")],
)
def test_on_lost_of_a_step_in_a_branch(settings: Any, policy: str, state: str, ends: str) -> None:
    job = create_waiting(settings, [{"task": T + "a", "on_lost": policy}, T + "b"])
    hands = Hands()
    hands.claim()
    hands.die()
    assert states(*members(job)) == [state, "READY"]
    assert drained(job).state == ends


def test_the_delay_of_a_step_in_a_branch_counts_after_a_timeout_that_killed(settings: Any) -> None:
    """The policy is that of the member's own step, whoever applies it."""
    step = {"task": T + "a", "timeout": 1, "retries": 3, "retry_delay": 500}
    create_waiting(settings, [step, T + "b"])
    hands = Hands()
    late, _ = hands.claim()
    now = timezone.now()
    overdue = Overdue(late.pk, late.attempt, now, "It stands there.")
    assert engine.record_timeouts(hands.row.pk, [overdue], now, "default") == {late.pk}
    hands.die()
    late = now_is(late)
    assert (late.state, late.failures) == ("READY", 1)
    assert late.run_after is not None
    assert (late.run_after - now).total_seconds() >= 500
