"""Maps: one member for each item of a list, and what their task returns, in order."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_dbq.models import Job
from django_dbq.testing import drain
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


def over(task: str = "square_item", **options: Any) -> dict[str, Any]:
    """A map over ``workspace["items"]`` into ``"out"``."""
    return {"map": T + task, "over": "items", "into": "out", **options}


MAP = [("map " + T + "square_item", "waited"), ("map " + T + "square_item", "succeeded")]


# -- items and results --


@pytest.mark.parametrize("count", [1, 2, 7])
def test_results_are_in_the_order_of_the_items(settings: Any, count: int) -> None:
    items = list(range(count, 0, -1))
    job = run(settings, T + "a", over(), T + "b", items=items, base=0)
    assert job.state == "COMPLETE"
    assert job.workspace == {
        "items": items,
        "base": 0,
        "a": ["base", "items"],
        "out": [item**2 for item in items],
        "b": ["a", "base", "items", "out"],
    }
    assert called == ["a", *items, "b"]
    assert history(job) == [("a", "succeeded"), *MAP, ("b", "succeeded")]
    assert list(job.attempts.order_by("pk").values_list("step", flat=True)) == [0, 1, 1, 3]
    for number, member in enumerate(members(job)):
        assert (member.name, member.state, member.step) == ("it", "COMPLETE", 2)
        assert (member.parent_id, member.position, member.parent_round) == (job.pk, number, 2)
        assert member.result == items[number] ** 2
        assert history(member) == [("square_item", "succeeded")]


def test_what_members_are_given(settings: Any) -> None:
    """All of the workspace but the list, which would make it n times as large for each of n items."""
    job = run(settings, over("tell_workspace"), items=["x", "y"], base=[1], other={"k": 0})
    common = {"base": [1], "other": {"k": 0}}
    given = [{**common, "item": "x", "index": 0}, {**common, "item": "y", "index": 1}]
    assert called == given
    assert job.workspace["out"] == given
    assert [m.workspace for m in members(job)] == given


def test_what_members_leave_in_their_workspace_stays_there(settings: Any) -> None:
    job = run(settings, over("a"), items=[1, 2])
    assert job.workspace == {"items": [1, 2], "out": [None, None]}
    assert [sorted(m.workspace) for m in members(job)] == [["a", "index", "item"]] * 2


ITEMS: list[Any] = [None, 0, "", "é", [], {}, [1, [2, None]], {"k": {"l": [1.5]}}, True, -1, 0.25]


def test_items_and_results_of_every_kind(settings: Any) -> None:
    job = run(settings, over("return_item"), items=ITEMS)
    assert job.workspace == {"items": ITEMS, "out": ITEMS}
    assert repr(job.workspace["out"]) == repr(ITEMS)
    assert [m.result for m in members(job)] == ITEMS
    assert [m.workspace["item"] for m in members(job)] == ITEMS


def test_an_empty_map_completes_at_once(settings: Any) -> None:
    job = run(settings, over(), T + "a", items=[])
    assert job.state == "COMPLETE"
    assert job.workspace == {"items": [], "out": [], "a": ["items", "out"]}
    assert history(job) == [MAP[1], ("a", "succeeded")]
    assert not members(job)


def test_an_empty_map_replaces_what_was_there(settings: Any) -> None:
    assert run(settings, over(), items=[], out="old").workspace == {"items": [], "out": []}


def test_without_into_nothing_is_collected(settings: Any) -> None:
    step = over()
    del step["into"]
    for items in ([1, 2], []):
        job = run(settings, step, items=items)
        assert (job.state, job.workspace) == ("COMPLETE", {"items": items})
        assert [m.result for m in members(job)] == [None for _ in items]


def test_into_may_be_the_list_itself(settings: Any) -> None:
    job = run(settings, over(into="items"), over(into="items"), items=[2, 3])
    assert job.workspace == {"items": [16, 81]}


@pytest.mark.parametrize(
    ("workspace", "said"),
    [
        ({}, "is missing"),
        ({"items": None}, "is a NoneType"),
        ({"items": "abc"}, "is a str"),
        ({"items": {"k": 1}}, "is a dict"),
        ({"items": 3}, "is a int"),
    ],
)
def test_a_map_needs_a_list(settings: Any, workspace: dict[str, Any], said: str) -> None:
    declare(settings, over(), **HOOKS)
    job = drained(create(**workspace))
    assert job.state == "FAILED"
    assert history(job) == [(MAP[0][0], "failed")]
    assert f"workspace['items'] {said}. map {T}square_item needs a list there." in last_error(job)
    assert called[-1] == "failed, job: Abort"
    assert not members(job)
    Job.objects.filter(pk=job.pk).update(workspace={"items": [3]})
    assert job.retry()
    assert drained(job).workspace == {"items": [3], "out": [9]}


@pytest.mark.parametrize("chunk", [3, 1000])
def test_members_are_inserted_in_batches(
    settings: Any, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("django_dbq.members.BATCH", chunk)
    declare(settings, over())
    job = create(items=list(range(10)))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        step_on()
    inserts = [
        q["sql"] for q in queries if q["sql"].startswith(f"INSERT INTO {quoted('django_dbq_job')} ")
    ]
    assert len(inserts) == -(-10 // chunk)
    assert [m.position for m in members(job)] == list(range(10))
    assert drained(job).workspace["out"] == [n**2 for n in range(10)]


def quoted(name: str) -> str:
    return connection.ops.quote_name(name)


# -- where maps may stand --


def test_a_map_in_a_branch(settings: Any) -> None:
    job = run(settings, [[over(), T + "a"], T + "b"], T + "c", items=[1, 2, 3])
    assert job.state == "COMPLETE"
    assert job.workspace["out"] == [1, 4, 9]
    branch, _ = members(job)
    assert history(branch) == [*MAP, ("a", "succeeded")]
    assert [(m.position, m.step, m.result) for m in members(branch)] == [
        (0, 2, 1),
        (1, 2, 4),
        (2, 2, 9),
    ]
    assert not members(members(branch)[0])


def test_maps_in_a_row_and_side_by_side(settings: Any) -> None:
    second = {"map": T + "square_item", "over": "out", "into": "again"}
    third = {"map": T + "square_item", "over": "items", "into": "beside"}
    job = run(settings, over(), [second, third], items=[1, 2])
    assert job.workspace == {"items": [1, 2], "out": [1, 4], "again": [1, 16], "beside": [1, 4]}


def test_one_map_may_be_run_again(settings: Any) -> None:
    """Members of another round are not those of this one."""
    job = run(settings, {**over(), "name": "squares"}, items=[1, 2])
    Job.objects.filter(pk=job.pk).update(state="FAILED", workspace={"items": [3, 4, 5]})
    assert job.retry(from_step="squares")
    assert drained(job).workspace["out"] == [9, 16, 25]
    assert [(m.parent_round, m.position) for m in members(job)] == [
        *((1, 0), (1, 1)),
        *((3, 0), (3, 1), (3, 2)),
    ]


# -- options of the task --


def test_the_queue_is_that_of_the_members(settings: Any) -> None:
    declare(settings, over(queue="many"), T + "a", queue="mine")
    job = create(items=[1, 2])
    assert drain("mine") == 1
    assert [(m.queue_name, m.state) for m in members(job)] == [("many", "NEW")] * 2
    assert now_is(job).queue_name == "mine"
    assert drain("many") == 2
    assert states(job) == ["READY"]
    assert drain("mine") == 2
    assert states(job) == ["COMPLETE"]


def test_the_retries_are_those_of_the_members(settings: Any) -> None:
    job = run(settings, over("fail_at_first", retries=1), items=[1, 2])
    assert job.state == "COMPLETE"
    assert [[outcome for _, outcome in history(m)] for m in members(job)] == [
        ["failed", "succeeded"]
    ] * 2


def test_what_members_may_return(settings: Any) -> None:
    job = run(settings, over("return_wish"), items=["Finish", "Retry", "nothing"])
    assert job.state == "COMPLETE"
    assert job.workspace["out"] == [None, "retried", None]
    assert [[outcome for _, outcome in history(m)] for m in members(job)] == [
        ["succeeded"],
        ["retried", "succeeded"],
        ["succeeded"],
    ]


def test_a_result_that_is_no_json(settings: Any) -> None:
    job = run(settings, over("return_no_json"), items=[1])
    assert job.state == "FAILED"
    (member,) = members(job)
    assert member.state == "FAILED"
    assert "the result['is'] is of type object, which JSON does not know" in last_error(member)
    assert member.result is None


def test_a_result_that_would_be_too_deep_in_the_list_of_all(settings: Any) -> None:
    """Refused where it comes from, and not at the join, which no retry could ever pass."""
    declare(settings, over("return_nested"))
    job = drained(create(items=[29, 30]))
    assert states(job, *members(job)) == ["FAILED", "COMPLETE", "FAILED"]
    assert "the result" in last_error(members(job)[1])
    assert "nested too deeply" in last_error(members(job)[1])


def test_a_result_that_nobody_collects_may_be_anything(settings: Any) -> None:
    step = over("return_no_json")
    del step["into"]
    assert run(settings, step, items=[1]).state == "COMPLETE"


def test_a_task_elsewhere_returns_nothing(settings: Any) -> None:
    """What a plain task or a branch returns is nobody's, as ever."""
    job = run(settings, T + "return_no_json", [T + "return_no_json"])
    assert job.state == "COMPLETE"
    assert job.result is None


def test_coroutines_as_members(settings: Any) -> None:
    job = run(settings, over("square_item_async"), items=list(range(30)))
    assert job.workspace["out"] == [n**2 for n in range(30)]


def test_atomic_members(settings: Any) -> None:
    broken.add(2)
    job = run(settings, over(atomic=True, on_failure="ignore"), items=[1, 2, 3])
    assert job.workspace["out"] == [1, None, 9]


def test_which_hooks_are_called(settings: Any) -> None:
    declare(settings, over(), **HOOKS)
    drained(create(items=[5, 6]))
    assert called == [
        "created, job",
        *("before, member 0", 5, "after, member 0"),
        *("before, member 1", 6, "after, member 1"),
        "completed, job",
    ]


# -- members fail --


def test_the_job_fails_after_all_members_have_ended(settings: Any) -> None:
    declare(settings, over(), T + "a", **HOOKS)
    broken.update({2, 4})
    job = drained(create(items=[1, 2, 3, 4, 5]))
    assert job.state == "FAILED"
    assert job.workspace == {"items": [1, 2, 3, 4, 5]}
    assert states(*members(job)) == ["COMPLETE", "FAILED", "COMPLETE", "FAILED", "COMPLETE"]
    assert [line for line in called if isinstance(line, int)] == [1, 2, 3, 4, 5]
    assert called[-1] == "failed, job: MembersFailed"
    assert [line for line in called if str(line).startswith("failed")] == called[-1:]
    assert (
        f"2 of the 5 members of map {T}square_item have not completed: 1, 3 (counted from 0)."
        in last_error(job)
    )


def test_a_retry_runs_only_what_had_not_succeeded(settings: Any) -> None:
    broken.update({2, 4})
    job = run(settings, over(), items=[1, 2, 3, 4, 5])
    for still, state, again in (({4}, "FAILED", [2, 4]), (set(), "COMPLETE", [4])):
        broken.clear()
        broken.update(still)
        called.clear()
        assert job.retry()
        assert (job.state, job.waiting_for) == ("WAITING", len(again))
        assert drained(job).state == state
        assert called == again
    assert job.workspace["out"] == [1, 4, 9, 16, 25]
    assert len(members(job)) == 5


def test_ignore(settings: Any) -> None:
    broken.update({1, 3})
    job = run(settings, over(on_failure="ignore"), items=[1, 2, 3])
    assert job.state == "COMPLETE"
    assert job.workspace["out"] == [None, 4, None]
    assert states(*members(job)) == ["FAILED", "COMPLETE", "FAILED"]


def test_what_is_cancelled_while_members_run(settings: Any) -> None:
    declare(settings, over(), T + "a")
    job = create(items=[1, 2, 3, 4])
    step_on()
    hands = Hands()
    claimed = hands.claim(2)
    assert job.cancel()
    assert states(job, *members(job)) == ["CANCELLED"] * 5
    assert hands.write(*map(hands.perform, claimed)) == []
    assert [[outcome for _, outcome in history(m)] for m in members(job)] == [
        *(["cancelled"], ["cancelled"]),
        *([], []),
    ]
    called.clear()
    assert job.retry()
    assert drained(job).workspace["out"] == [1, 4, 9, 16]
    assert called == [1, 2, 3, 4, "a"]


def test_members_that_somebody_has_deleted(settings: Any) -> None:
    """Nothing tells the job; what mends it looks once a minute. Results stay at the places of their items."""
    declare(settings, over())
    job = create(items=[1, 2, 3, 4])
    step_on()
    job.children.filter(position__in=[1, 3]).delete()
    step_on()
    assert (states(job), now_is(job).waiting_for) == (["WAITING"], 2)
    assert drained(job).state == "COMPLETE"
    assert job.workspace["out"] == [1, None, 9, None]


@pytest.mark.parametrize("names", ["a b", "a"])
def test_the_steps_after_a_map_get_its_results(settings: Any, names: str) -> None:
    job = run(settings, over(), *tasks(names), items=[1])
    assert job.workspace[names[-1]] == sorted({"items", "out", *names.split()} - {names[-1]})


def test_cancel_rest(settings: Any) -> None:
    declare(settings, over(on_failure="cancel_rest"), T + "a", **HOOKS)
    broken.add(2)
    job = create(items=[1, 2, 3, 4])
    step_on()
    hands = Hands()
    one, two, three = hands.claim(3)
    hands.write(hands.perform(one), hands.perform(two))
    assert states(job, *members(job)) == [
        *("READY", "COMPLETE", "FAILED"),
        *("CANCELLED", "CANCELLED"),
    ]
    assert hands.write(hands.perform(three)) == []
    assert drained(job).state == "FAILED"
    assert "3 of the 4 members" in last_error(job)
    assert [line for line in called if str(line).startswith("failed")] == [
        "failed, job: MembersFailed"
    ]
    broken.clear()
    called.clear()
    assert job.retry()
    assert drained(job).workspace["out"] == [1, 4, 9, 16]
    assert [line for line in called if isinstance(line, int)] == [2, 3, 4]
