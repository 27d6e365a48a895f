"""``JOBS`` in both of its forms: what it becomes, and what every option makes of right and wrong values."""

import dataclasses
import math
from typing import Any

import pytest

from django_dbq.options import FORMS, JOB_OPTIONS, SHARED
from django_dbq.parsing import parse
from django_dbq.pipelines import (
    Catalogue,
    Group,
    Limit,
    Map,
    Pipeline,
    Sleep,
    Step,
    UnknownJob,
    WaitFor,
    Written,
    nearest,
)

PATH = "shop.jobs.pack"


def found(catalogue: Catalogue) -> list[tuple[str, str]]:
    """The problems as (code, key path)."""
    return [(problem.code, problem.where) for problem in catalogue.problems]


# -- what is right --


@pytest.mark.parametrize(
    "entry",
    [
        ["shop.jobs.pack", "shop.jobs.send"],
        ("shop.jobs.pack", "shop.jobs.send"),
        {"tasks": ["shop.jobs.pack", "shop.jobs.send"]},
        {"tasks": ("shop.jobs.pack", {"task": "shop.jobs.send"})},
    ],
    ids=["list", "tuple", "dict", "dict of dicts"],
)
def test_every_form_becomes_the_same_pipeline(entry: Any) -> None:
    catalogue = parse({"order": entry})
    assert catalogue.problems == ()
    assert catalogue["order"] == Pipeline(
        "order", (Step(0, "shop.jobs.pack", "pack"), Step(1, "shop.jobs.send", "send"))
    )


def test_everything_that_a_pipeline_may_carry() -> None:
    options = {
        "creation_hook": "shop.hooks.created",
        "pre_task_hook": "shop.hooks.before",
        "post_task_hook": "shop.hooks.after",
        "failure_hook": "shop.hooks.failed",
        "completion_hook": "shop.hooks.completed",
        "queue": "slow",
        "priority": -3,
        "description": "Pack and send",
        "unique": ("parcel",),
        "unique_conflict": "raise",
        "workspace_schema": {"type": "object"},
    }
    pipeline = parse({"order": {"tasks": [PATH], **options}})["order"]
    assert pipeline == Pipeline("order", (Step(0, PATH, "pack"),), **options)  # type: ignore[arg-type]


def test_without_options_the_defaults_are_those_of_the_documentation() -> None:
    pipeline = parse({"order": [PATH]})["order"]
    assert (pipeline.queue, pipeline.priority, pipeline.description) == ("default", 0, "")
    assert (pipeline.unique, pipeline.unique_conflict) == (False, "return")
    assert (pipeline.concurrency, pipeline.rate_limit, pipeline.workspace_schema) == (None,) * 3
    hooks = {field.name for field in dataclasses.fields(Pipeline) if field.name.endswith("_hook")}
    assert len(hooks) == 5
    assert {getattr(pipeline, hook) for hook in hooks} == {None}


def test_defaults_hold_for_entries_that_do_not_say() -> None:
    jobs = {"short": [PATH], "long": {"tasks": [PATH], "queue": "fast", "priority": 0}}
    catalogue = parse(jobs, {"queue": "slow", "priority": 7, "failure_hook": "shop.hooks.failed"})
    assert catalogue.problems == ()
    assert (catalogue["short"].queue, catalogue["short"].priority) == ("slow", 7)
    assert (catalogue["long"].queue, catalogue["long"].priority) == ("fast", 0)
    assert {p.failure_hook for p in catalogue.values()} == {"shop.hooks.failed"}


def test_everything_that_a_step_may_carry() -> None:
    options = {
        "name": "parcel",
        "renamed_from": ("shop.jobs.wrap", "shop.tasks.wrap"),
        "when": "shop.jobs.is_paid",
        "queue": "slow",
        "retries": 5,
        "retry_delay": 1.5,
        "retry_backoff": 3,
        "retry_max_delay": 60,
        "retry_jitter": True,
        "retry_on": ("OSError", "shop.errors.Closed"),
        "timeout": 300,
        "atomic": True,
        "on_lost": "hold",
    }
    step = parse({"order": [{"task": PATH, **options}]})["order"].steps[0]
    assert step == Step(0, PATH, **options)  # type: ignore[arg-type]
    assert {f.name for f in dataclasses.fields(Step)} == {"place", "path", *options, "collected"}


def test_a_step_without_options_has_the_defaults_of_the_documentation() -> None:
    assert dataclasses.asdict(parse({"order": [PATH]})["order"].steps[0]) == {
        "place": 0,
        "path": PATH,
        "name": "pack",
        "renamed_from": (),
        "when": None,
        "queue": None,
        "retries": None,
        "retry_delay": 0,
        "retry_backoff": 2,
        "retry_max_delay": 600,
        "retry_jitter": False,
        "retry_on": (),
        "timeout": None,
        "atomic": False,
        "on_lost": "retry",
        "collected": False,
    }


def test_what_a_step_says_counts_more_than_its_job_and_that_more_than_the_defaults() -> None:
    defaults = {"retries": 1, "timeout": 10, "on_lost": "hold", "retry_on": ["OSError"]}
    job = {
        "tasks": ["m.a", {"task": "m.b"}, {"task": "m.c", "retries": 0, "timeout": None}],
        "retries": 2,
        "atomic": True,
    }
    catalogue = parse({"long": job, "short": ["m.a"]}, defaults)
    assert catalogue.problems == ()
    shared: dict[str, Any] = {"on_lost": "hold", "retry_on": ("OSError",)}
    assert catalogue["long"].steps == (
        Step(0, "m.a", "a", retries=2, timeout=10, atomic=True, **shared),
        Step(1, "m.b", "b", retries=2, timeout=10, atomic=True, **shared),
        Step(2, "m.c", "c", retries=0, timeout=None, atomic=True, **shared),
    )
    assert catalogue["short"].steps == (Step(0, "m.a", "a", retries=1, timeout=10, **shared),)


def test_steps_are_values() -> None:
    entry = [{"task": PATH, "retry_on": ["OSError"], "retries": 3}]
    assert len({parse({"a": entry})["a"].steps[0], parse({"b": entry})["b"].steps[0]}) == 1
    assert not hasattr(Step(0, PATH), "__dict__")
    forms = [["m.a"], {"map": "m.b", "over": "cats"}, {"sleep": 1}, {"wait_for": "approval"}]
    first, second = (parse({name: forms})[name] for name in ("a", "b"))
    for step, other in zip(first.steps, second.steps, strict=True):
        assert len({step, other}) == 1
        assert not hasattr(step, "__dict__")


def test_a_catalogue_keeps_who_wrote_what() -> None:
    jobs = {
        "a": {"tasks": [{"task": "m.a", "retries": 3}, "m.b"], "atomic": True},
        "bad": {"tasks": ["m.a"], "colour": 1, "retries": 1},
    }
    assert parse(jobs, {"timeout": 10}).written == (
        Written('DBQ["DEFAULTS"]', {"timeout": 10}),
        Written("JOBS['a']", {"tasks": jobs["a"]["tasks"], "atomic": True}),
        Written("JOBS['a'][\"tasks\"][0]", {"task": "m.a", "retries": 3}),
        Written("JOBS['a'][\"tasks\"][1]", {"task": "m.b"}),
    )


def test_a_catalogue_keeps_who_wrote_what_inside_of_groups_and_maps() -> None:
    mapped = {"map": "m.b", "over": "cats", "retries": 3}
    branches = [["m.a", mapped], {"task": "m.c", "retry_on": ["OSError"]}]
    where = "JOBS['a'][\"tasks\"][0]"
    assert parse({"a": [{"group": branches, "name": "both"}]}).written[1:] == (
        Written(where, {"group": branches, "name": "both"}),
        Written(f'{where}["group"][0][0]', {"task": "m.a"}),
        Written(f'{where}["group"][0][1]', mapped),
        Written(f'{where}["group"][1]', branches[1]),
    )


def test_parsing_imports_nothing() -> None:
    entry = {
        "tasks": [
            "no.such.module.at_all",
            {"map": "no.such.module.either", "over": "cats", "when": "no.such.module.wanted"},
        ],
        "retry_on": ["no.such.module.Error"],
    }
    assert parse({"order": entry}).problems == ()


def test_pipelines_cannot_be_changed() -> None:
    catalogue = parse({"order": [PATH]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalogue["order"].queue = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalogue["order"].steps[0].path = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        catalogue.pipelines["other"] = catalogue["order"]  # type: ignore[index]


def test_a_catalogue_is_a_mapping() -> None:
    catalogue = parse({"a": [PATH], "b": [PATH]})
    assert list(catalogue) == ["a", "b"]
    assert len(catalogue) == 2
    assert "a" in catalogue
    assert catalogue.get("c") is None


# -- groups, maps and pauses --


def only(step: Any) -> Step:
    """The one step that a pipeline of this entry has outside of groups and maps."""
    catalogue = parse({"order": [step]})
    assert catalogue.problems == ()
    (found,) = catalogue["order"].steps
    return found


A, B, C = Step(1, "m.a", "a"), Step(2, "m.b", "b"), Step(3, "m.c", "c")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["m.a", "m.b"], Group(0, "group", "group", branches=((A,), (B,)))),
        (("m.a", {"task": "m.b"}), Group(0, "group", "group", branches=((A,), (B,)))),
        (["m.a"], Group(0, "group", "group", branches=((A,),))),
        ([["m.a", "m.b"], "m.c"], Group(0, "group", "group", branches=((A, B), (C,)))),
        (
            [["m.a", ("m.b",)], ("m.c",)],  # in a sequence a list, or tuple, is a group again
            Group(
                0,
                "group",
                "group",
                branches=(
                    (A, Group(2, "group", "group", branches=((Step(3, "m.b", "b"),),))),
                    (Step(4, "m.c", "c"),),
                ),
            ),
        ),
        ({"group": ["m.a", "m.b"]}, Group(0, "group", "group", branches=((A,), (B,)))),
        (
            {
                "group": [["m.a", "m.b"], "m.c"],
                "on_failure": "cancel_rest",
                "name": "all three",
                "renamed_from": "m.abc",
                "when": "m.wanted",
            },
            Group(
                0,
                "group all three",
                "all three",
                ("m.abc", "group m.abc"),
                "m.wanted",
                branches=((A, B), (C,)),
                on_failure="cancel_rest",
            ),
        ),
        (
            {"map": "m.a", "over": "cats"},
            Map(0, "map m.a", "a", task=A, over="cats"),
        ),
        (
            {
                "map": "m.a",
                "over": "cats",
                "into": "fed",
                "on_failure": "ignore",
                "name": "feed",
                "renamed_from": ["m.old", "m.older"],
                "when": "m.wanted",
                "queue": "slow",
                "retries": 3,
                "retry_on": ["OSError"],
                "timeout": 60,
            },
            Map(
                0,
                "map m.a",
                "feed",
                ("map m.old", "map m.older"),
                "m.wanted",
                task=Step(
                    1,
                    "m.a",
                    "a",
                    ("m.old", "m.older"),
                    queue="slow",
                    retries=3,
                    retry_on=("OSError",),
                    timeout=60,
                    collected=True,
                ),
                over="cats",
                into="fed",
                on_failure="ignore",
            ),
        ),
        ({"sleep": 60}, Sleep(0, "sleep", "sleep", seconds=60)),
        (
            {"sleep": 0.5, "name": "rest", "renamed_from": "m.rest", "when": "m.wanted"},
            Sleep(0, "sleep", "rest", ("m.rest",), "m.wanted", seconds=0.5),
        ),
        (
            {"wait_for": "approval"},
            WaitFor(0, "wait_for approval", "approval", event="approval"),
        ),
        (
            {
                "wait_for": "approval",
                "timeout": 90,
                "on_timeout": "continue",
                "name": "boss",
                "renamed_from": "signature",
                "when": "m.wanted",
            },
            WaitFor(
                0,
                "wait_for approval",
                "boss",
                ("signature", "wait_for signature"),
                "m.wanted",
                event="approval",
                patience=90,
                on_timeout="continue",
            ),
        ),
    ],
    ids=str,
)
def test_steps_of_every_form(written: Any, expected: Step) -> None:
    assert only(written) == expected


def test_the_forms_have_the_defaults_of_the_documentation() -> None:
    group, mapped = only(["m.a"]), only({"map": "m.a", "over": "cats"})
    assert isinstance(group, Group)
    assert isinstance(mapped, Map)
    assert (group.on_failure, mapped.on_failure, mapped.into) == ("fail", "fail", None)
    wait = only({"wait_for": "approval"})
    assert isinstance(wait, WaitFor)
    assert (wait.patience, wait.on_timeout) == (None, "fail")


def test_what_members_run() -> None:
    assert only([["m.a", "m.b"], "m.c"]).sequences == ((A, B), (C,))
    assert only({"map": "m.a", "over": "cats"}).sequences == ((A,),)
    for form in ("m.a", {"sleep": 1}, {"wait_for": "approval"}):
        assert only(form).sequences == ()


def test_options_of_the_job_reach_the_tasks_of_groups_and_maps_and_nothing_else() -> None:
    tasks = [["m.a", [{"task": "m.b", "retries": 9}]], {"map": "m.c", "over": "cats"}, {"sleep": 1}]
    entry = {"tasks": tasks, "retries": 4, "atomic": True, "queue": "slow"}
    pipeline = parse({"order": entry}, {"timeout": 60})["order"]
    tried = [(s.path, s.retries, s.atomic, s.timeout, s.queue) for s in pipeline.every]
    assert tried == [
        ("group", None, False, None, None),
        ("m.a", 4, True, 60, None),
        ("m.b", 9, True, 60, None),
        ("map m.c", None, False, None, None),
        ("m.c", 4, True, 60, None),
        ("sleep", None, False, None, None),
    ]


def test_a_long_path_fits_its_column() -> None:
    path = "m." + "a" * 253
    assert only({"map": path, "over": "cats"}).path == f"map {path[:251]}"
    assert only({"map": "m.a", "over": "cats", "renamed_from": path}).renamed_from == (
        f"map {path[:251]}",
    )


NESTED = [
    "m.a",
    ["m.b", ["m.c", {"map": "m.d", "over": "cats"}, ["m.e", [{"sleep": 1}, "m.a"]]]],
    {"group": ["m.b"], "name": "more"},
    {"wait_for": "approval"},
]


def test_places_count_depth_first() -> None:
    pipeline = parse({"order": NESTED})["order"]
    tasks = "JOBS['order'][\"tasks\"]"
    assert [step.place for step in pipeline.every] == list(range(13))
    at = [
        (s.path, w.removeprefix(tasks)) for s, w in zip(pipeline.every, pipeline.where, strict=True)
    ]
    assert at == [
        ("m.a", "[0]"),
        ("group", "[1]"),
        ("m.b", "[1][0]"),
        ("m.c", "[1][1][0]"),
        ("map m.d", "[1][1][1]"),
        ("m.d", '[1][1][1]["map"]'),
        ("group", "[1][1][2]"),
        ("m.e", "[1][1][2][0]"),
        ("sleep", "[1][1][2][1][0]"),
        ("m.a", "[1][1][2][1][1]"),
        ("group more", "[2]"),
        ("m.b", '[2]["group"][0]'),
        ("wait_for approval", "[3]"),
    ]
    assert [step.place for step in pipeline.steps] == [0, 1, 10, 12]


def test_the_example_of_the_design_counts_so() -> None:
    pipeline = parse({"order": ["m.a", ["m.b", ["m.c", "m.d"]], "m.e"]})["order"]
    assert [s.path for s in pipeline.every] == ["m.a", "group", "m.b", "m.c", "m.d", "m.e"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("m.a", False),
        ({"task": "m.a", "queue": "slow"}, True),
        (["m.a", ["m.b", {"task": "m.c", "queue": "slow"}]], True),
        ({"map": "m.a", "over": "cats"}, False),
        ({"map": "m.a", "over": "cats", "queue": "slow"}, True),
    ],
    ids=str,
)
def test_whether_steps_have_queues_of_their_own(step: Any, expected: bool) -> None:
    pipeline = parse({"order": {"tasks": [step, "m.z"], "queue": "job"}})["order"]
    assert pipeline.has_queues is expected


# -- where a job stands --

ABA = parse({"aba": ["m.a", "m.b", "m.a"]})["aba"]


@pytest.mark.parametrize(
    ("place", "path", "expected"),
    [
        (0, "m.a", 0),
        (1, "m.b", 1),
        (2, "m.a", 2),  # the place tells the two apart
        (1, "m.a", 0),  # no longer here: the nearest, of two the first
        (0, "m.b", 1),
        (9, "m.b", 1),
        (9, "m.a", 2),
        (0, "m.gone", None),
        (0, "", None),
    ],
)
def test_locate(place: int, path: str, expected: int | None) -> None:
    step = ABA.locate(place, path)
    assert (None if step is None else step.place) == expected


def test_after_follows_places_not_paths() -> None:
    assert [ABA.after(step) for step in ABA.steps] == [ABA.steps[1], ABA.steps[2], None]


# What each place of this one is: see `test_places_count_depth_first`.
DEEP = parse({"deep": NESTED})["deep"]


@pytest.mark.parametrize(
    ("place", "path", "member", "expected"),
    [
        (0, "m.a", False, 0),
        (1, "group", False, 1),
        (12, "wait_for approval", False, 12),
        # Members stand where they stand.
        (2, "m.b", True, 2),
        (5, "m.d", True, 5),
        (6, "group", True, 6),
        (9, "m.a", True, 9),
        (11, "m.b", True, 11),
        # Steps have moved: members are looked for inside first, others outside.
        (1, "m.a", True, 9),
        (8, "m.a", False, 0),
        (4, "m.b", True, 2),
        (8, "m.b", True, 11),
        (7, "group", True, 6),
        (7, "group", False, 1),
        (0, "wait_for approval", True, 12),
        # What is inside of a group or map now, another job does as a whole.
        (4, "m.c", False, 1),
        (9, "m.d", False, 1),
        (0, "map m.d", False, 1),
        (2, "m.b", False, 1),
        (12, "m.b", False, 10),
        # Gone.
        (3, "m.gone", True, None),
        (3, "m.gone", False, None),
        (10, "group less", False, None),
        (12, "wait_for", False, None),
    ],
)
def test_locate_in_groups_and_maps(
    place: int, path: str, member: bool, expected: int | None
) -> None:
    step = DEEP.locate(place, path, member)
    assert (None if step is None else step.place) == expected


def test_after_in_groups_and_maps() -> None:
    def places(member: bool) -> dict[int, int | None]:
        after = {step.place: DEEP.after(step, member) for step in DEEP.every}
        return {place: step.place if step else None for place, step in after.items()}

    assert {place: places(False)[place] for place in (0, 1, 10, 12)} == {
        0: 1,
        1: 10,
        10: 12,
        12: None,
    }
    inside = places(True)
    # Branches end with their last step, and so does whatever runs the task of a map.
    assert {place: inside[place] for place in (2, 5, 7, 9, 11)} == dict.fromkeys((2, 5, 7, 9, 11))
    assert {place: inside[place] for place in (3, 4, 6, 8)} == {3: 4, 4: 6, 6: None, 8: 9}
    # A deploy has moved a branch's step out of its group: that is where the branch ends.
    assert {inside[place] for place in (0, 1, 10, 12)} == {None}


# -- steps that were renamed --

RENAMED: list[Any] = [
    {"task": "m.new", "renamed_from": ["m.old", "m.older"]},
    "m.b",
    {"group": ["m.c", {"task": "m.d", "renamed_from": "m.x"}], "name": "g", "renamed_from": "f"},
    {"map": "m.e", "over": "cats", "renamed_from": "m.y"},
    {"wait_for": "yes", "renamed_from": "ok"},
    {"group": ["m.f"], "name": "named", "renamed_from": "group"},
]


@pytest.mark.parametrize(
    ("place", "path", "member", "expected"),
    [
        (0, "m.old", False, 0),
        (7, "m.older", False, 0),
        (0, "m.new", False, 0),
        (2, "group f", False, 2),
        (9, "group g", False, 2),
        (2, "group", False, 8),
        (4, "m.x", True, 4),
        (0, "m.x", True, 4),
        (4, "m.x", False, 2),
        (5, "map m.y", False, 5),
        (6, "m.y", True, 6),
        (3, "m.y", True, 6),
        (1, "m.y", False, 5),  # the task has become a map
        (7, "wait_for ok", False, 7),
        (7, "wait_for no", False, None),
    ],
)
def test_a_step_is_found_by_what_it_was_called(
    place: int, path: str, member: bool, expected: int | None
) -> None:
    step = parse({"it": RENAMED})["it"].locate(place, path, member)
    assert (None if step is None else step.place) == expected


T, M, G, W = "m.old", "map m.old", "group old", "wait_for old"
TO_TASK, TO_MAP = {"task": "m.new"}, {"map": "m.new", "over": "cats"}
TO_GROUP, TO_WAIT = {"group": ["m.c"], "name": "new"}, {"wait_for": "new"}


@pytest.mark.parametrize(
    ("step", "word", "rows", "others"),
    [
        # What is natural for a form: what a step of that form was called.
        (TO_TASK, "m.old", [T], [M, G, W]),
        (TO_MAP, "m.old", [T, M], [G, W]),
        (TO_GROUP, "old", [G], [T, M, W, "group"]),
        (TO_WAIT, "old", [W], [T, M, G]),
        ({"sleep": 1}, "m.old", [T], [M, G, W]),
        # A row in full, of whatever form.
        *((to, "map m.old", [M], [G, W]) for to in (TO_TASK, TO_GROUP, TO_WAIT, {"sleep": 1})),
        (TO_MAP, "map m.old", [M], [G, W]),
        *(
            (to, row, [row], [other for other in (T, M, G, W) if other != row])
            for to in (TO_TASK, TO_MAP, TO_GROUP, TO_WAIT, {"sleep": 1})
            for row in (G, W)
        ),
        *((to, "group", ["group"], [G]) for to in (TO_TASK, TO_MAP, TO_GROUP, TO_WAIT)),
        *((to, "sleep", ["sleep"], [T]) for to in (TO_TASK, TO_MAP, TO_GROUP, TO_WAIT)),
        # A task that has become something else.
        *((to, "m.old", [T], [M, G, W]) for to in (TO_GROUP, TO_WAIT)),
    ],
    ids=str,
)
def test_renamed_from_is_natural_for_every_form(
    step: Any, word: str, rows: list[str], others: list[str]
) -> None:
    pipeline = parse({"it": ["m.a", {**step, "renamed_from": word}]})["it"]
    for row in rows:
        found = pipeline.locate(1, row)
        assert found is pipeline.steps[1], row
    for row in others:
        assert pipeline.locate(1, row) is None, row
    # In a branch it is the step as well, and not what its members run.
    branches = ["m.a", ["m.b", {**step, "renamed_from": word}]]
    inside = parse({"it": [{"group": branches, "name": "outer"}]})["it"]
    for row in rows:
        if step is not TO_MAP or row != T:  # that is what members of the map have
            found = inside.locate(3, row, member=True)
            assert (found and found.place) == 3, row


def test_members_of_a_map_that_was_renamed_are_found_by_either_word() -> None:
    for word in ("m.old", "map m.old"):
        pipeline = parse({"it": ["m.a", {**TO_MAP, "renamed_from": word}]})["it"]
        assert pipeline.locate(2, "m.old", member=True) is pipeline.every[2], word


def test_a_map_in_full_leaves_a_task_of_that_path_alone() -> None:
    catalogue = parse({"it": ["m.old", {**TO_MAP, "renamed_from": "map m.old"}]})
    assert catalogue.problems == ()
    pipeline = catalogue["it"]
    assert pipeline.locate(0, "m.old") is pipeline.steps[0]
    assert pipeline.locate(0, "map m.old") is pipeline.steps[1]


def test_of_two_steps_that_were_one_the_nearest_is_found() -> None:
    """As the path stood at each of these places, and has other names now."""
    pipeline = parse({"it": [{"task": f"m.{name}", "renamed_from": "m.old"} for name in "abc"]})[
        "it"
    ]
    for place in range(3):
        assert pipeline.locate(place, "m.old") == pipeline.steps[place]


@pytest.mark.parametrize("place", [0, 1])
def test_a_path_that_stands_counts_more_than_one_that_was(place: int) -> None:
    """By the check there is no such pipeline; a step by hand shows the order."""
    steps = (Step(0, "m.new", renamed_from=("m.b",)), Step(1, "m.b"))
    assert Pipeline("it", steps).locate(place, "m.b") is steps[1]


LEAST_MAP = {"map": "m.d", "over": "cats"}
CLASHES: list[tuple[str, list[Any], list[tuple[str, str]]]] = [
    (
        "a name twice",
        [{"task": "m.a", "name": "x"}, {"task": "m.b", "name": "x"}],
        [('[1]["name"]', "is 'x', the name of JOBS['it'][\"tasks\"][0] too")],
    ),
    (
        "a name three times, at any depth and of any form",
        [
            {"sleep": 1, "name": "x"},
            [["m.b", {"task": "m.b", "name": "x"}]],
            {"group": ["m.a"], "name": "x"},
        ],
        [
            ('[1][0][1]["name"]', "is 'x', the name of JOBS['it'][\"tasks\"][0] too"),
            ('[2]["name"]', "is 'x', the name of JOBS['it'][\"tasks\"][0] too"),
        ],
    ),
    (
        "renamed from a path that stands",
        [{"task": "m.b", "renamed_from": ["m.gone", "m.a"]}, "m.a"],
        [('[0]["renamed_from"][1]', "is 'm.a', which still stands at JOBS['it'][\"tasks\"][1]")],
    ),
    (
        "renamed from its own path",
        [{"task": "m.b", "renamed_from": "m.b"}],
        [('[0]["renamed_from"]', "is 'm.b', which still stands at JOBS['it'][\"tasks\"][0]")],
    ),
    (
        "renamed from a path inside of a group",
        [["m.c", {"task": "m.a", "name": "z"}], {"task": "m.b", "renamed_from": "m.a"}],
        [('[1]["renamed_from"]', "is 'm.a', which still stands at JOBS['it'][\"tasks\"][0][1]")],
    ),
    (
        "renamed from the task of a map",
        [{"map": "m.a", "over": "cats"}, {"task": "m.b", "renamed_from": "m.a"}],
        [
            (
                '[1]["renamed_from"]',
                "is 'm.a', which still stands at JOBS['it'][\"tasks\"][0][\"map\"]",
            )
        ],
    ),
    (
        "renamed from a name that is given",
        [{"task": "m.a", "name": "x"}, {"task": "m.b", "renamed_from": "x"}],
        [('[1]["renamed_from"]', "is 'x', which still stands at JOBS['it'][\"tasks\"][0]")],
    ),
    (
        "renamed from a group that stands",
        [{"group": ["m.b"], "renamed_from": "group"}],
        [('[0]["renamed_from"]', "is 'group', which still stands at JOBS['it'][\"tasks\"][0]")],
    ),
    (
        "renamed from an event that is waited for",
        [{"wait_for": "ok"}, {"wait_for": "yes", "renamed_from": "ok"}],
        [('[1]["renamed_from"]', "is 'ok', which still stands at JOBS['it'][\"tasks\"][0]")],
    ),
    *(
        (
            f"a name that {what} has without being given it",
            steps,
            [
                (
                    f'[{at}]["name"]',
                    f"is {name!r}, by which JOBS['it'][\"tasks\"][{other}] is found too",
                )
            ],
        )
        for what, name, at, other, steps in (
            ("a task", "b", 0, 1, [{"task": "m.a", "name": "b"}, "m.b"]),
            ("a task before it", "b", 1, 0, ["m.b", {"task": "m.a", "name": "b"}]),
            ("a task of the same path", "a", 1, 0, ["m.a", {"task": "m.a", "name": "a"}]),
            ("a map", "d", 0, 1, [{"task": "m.a", "name": "d"}, LEAST_MAP]),
            ("a group", "group", 0, 1, [{"task": "m.a", "name": "group"}, ["m.b"]]),
            ("a wait", "ok", 0, 1, [{"sleep": 1, "name": "ok"}, {"wait_for": "ok"}]),
            (
                *("a path", "sleep", 0, 1),
                [{"task": "m.a", "name": "sleep"}, {"sleep": 1, "name": "rest"}],
            ),
            ("a task as its path", "m.b", 0, 1, [{"task": "m.a", "name": "m.b"}, "m.b"]),
        )
    ),
]


@pytest.mark.parametrize(
    ("tasks", "expected"), [pytest.param(tasks, e, id=i) for i, tasks, e in CLASHES]
)
def test_names_that_clash(tasks: list[Any], expected: list[tuple[str, str]]) -> None:
    catalogue = parse({"it": tasks, "other": ["m.a"]})
    assert [(p.code, p.where, p.text) for p in catalogue.problems] == [
        ("E014", f"JOBS['it'][\"tasks\"]{where}", text) for where, text in expected
    ]
    assert {p.job for p in catalogue.problems} == {"it"}
    assert all("a name of its own" in p.hint for p in catalogue.problems)
    assert list(catalogue) == ["other"]


@pytest.mark.parametrize(
    "tasks",
    [
        ["m.a", "n.a", "m.a"],  # names that nobody has given
        [{"task": "m.a", "name": "x"}, ["m.x", {"sleep": 1}], {"wait_for": "m.a"}],
        [{"task": "m.a", "name": "x"}, {"group": ["m.x", "m.y"], "name": "y"}],
        [["m.a", {"task": "m.b", "name": "a"}], "m.b"],  # in a branch nobody asks by name
        [["m.a"], ["m.a"], {"sleep": 1}, {"sleep": 1}, {"wait_for": "x"}, {"wait_for": "x"}],
        [{"task": "m.b", "renamed_from": "m.a"}, {"task": "m.c", "renamed_from": "m.a"}],
        [{"task": "m.b", "renamed_from": ["m.a", "m.a"]}],
        # The name of a form is nobody's own.
        [{"group": [f"m.{name}"], "name": name, "renamed_from": "group"} for name in "ab"],
        [{"task": f"m.{name}", "renamed_from": "sleep"} for name in "ab"],
        # One word is a row of its own in each form.
        [{"task": "m.b", "renamed_from": "m.a"}, {**LEAST_MAP, "renamed_from": "m.a"}],
        [{"group": ["m.b"], "renamed_from": "a"}, {"wait_for": "b", "renamed_from": "a"}],
        [{"task": "m.b", "name": "x", "renamed_from": "m.x"}],
    ],
    ids=str,
)
def test_names_that_do_not_clash(tasks: list[Any]) -> None:
    assert parse({"it": tasks}).problems == ()


# -- steps by name, for people --

NAMES = parse(
    {
        "it": [
            {"task": "m.a", "name": "first"},
            "m.b",
            [{"task": "m.c", "name": "inner"}, "m.b"],
            {"map": "m.d", "over": "cats"},
            {"sleep": 1, "name": "rest"},
            {"wait_for": "approval"},
            "n.b",
        ]
    }
)["it"]


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ("first", 0),
        ("m.a", 0),
        (0, 0),
        (1, 1),
        ("m.b", 1),
        ("group", 2),
        (2, 2),
        ("d", 5),
        ("map m.d", 5),
        ("m.d", 5),  # as it stands in JOBS
        (5, 5),
        ("rest", 7),
        ("sleep", 7),
        ("approval", 8),
        ("wait_for approval", 8),
        ("n.b", 9),
        (9, 9),
    ],
)
def test_steps_by_name_path_and_place(step: str | int, place: int) -> None:
    assert NAMES.named(step) is NAMES.every[place]
    assert NAMES.named(step) in NAMES.steps


def test_a_path_is_a_tasks_first_and_a_maps_else() -> None:
    mapped = {"map": "m.a", "over": "cats"}
    assert parse({"it": [mapped, "m.a"]})["it"].named("m.a").place == 2
    with pytest.raises(LookupError, match=r"has several steps 'm\.a'"):
        parse({"it": [mapped, mapped]})["it"].named("m.a")
    with pytest.raises(LookupError, match=r"has no step 'm\.a'"):
        parse({"it": ["m.b", [mapped]]})["it"].named("m.a")


KNOWN = "By place, it has: 0 (first), 1 (b), 2 (group), 5 (d), 7 (rest), 8 (approval), 9 (b)."


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("b", "several steps 'b'"),
        ("inner", "no step 'inner'"),
        ("m.c", "no step 'm.c'"),
        (3, "no step 3"),
        (10, "no step 10"),
        (-1, "no step -1"),
        ("", "no step ''"),
    ],
)
def test_a_step_that_there_is_not_is_told_which_there_are(step: str | int, said: str) -> None:
    with pytest.raises(LookupError) as caught:
        NAMES.named(step)
    assert str(caught.value) == f"The job 'it' has {said}. {KNOWN}"


# -- a name that nobody knows --


@pytest.mark.parametrize(
    ("jobs", "name", "message"),
    [
        (
            {"import_cats": [PATH], "feed": [PATH]},
            "import_cat",
            (
                "JOBS has no job named 'import_cat' (did you mean 'import_cats'?). "
                "It knows: 'feed', 'import_cats'."
            ),
        ),
        ({"b": [PATH], "a": [PATH]}, "xyz", "JOBS has no job named 'xyz'. It knows: 'a', 'b'."),
        ({}, "feed", "JOBS has no job named 'feed'. It knows: none at all."),
        (
            {"feed": {"tasks": []}, "a": [PATH]},
            "feed",
            "The entry 'feed' of JOBS is not valid: JOBS['feed'][\"tasks\"] is empty",
        ),
    ],
    ids=["nearest", "nothing near", "empty", "not valid"],
)
def test_unknown_jobs_are_told_what_there_is(jobs: Any, name: str, message: str) -> None:
    with pytest.raises(UnknownJob) as caught:
        parse(jobs).named(name)
    assert str(caught.value) == message
    assert isinstance(caught.value, KeyError)  # what django-db-queue raised


def test_nearest() -> None:
    assert nearest("retires", JOB_OPTIONS) == " (did you mean 'retries'?)"
    assert nearest("xyz", JOB_OPTIONS) == ""


# -- options: each that the design names, in right and wrong forms --

WHOLE, PATHS, YES_NO = "whole number", "dotted path", "True or False"
NOT_COUNTS = [-1, 1.5, True, "3", math.inf]
NOT_NUMBERS = [True, "5", math.nan, math.inf, -math.inf, 10**400, [], 1j]
NOT_PATHS = ["", "with space.x", "a..b", ".a", "a.", 5, None, ["a.b"], "a." + "b" * 254]

# option: values of the right form; values of the wrong form; a word of what is expected instead
NOW: dict[str, tuple[list[Any], list[Any], str]] = {
    "creation_hook": ([PATH], NOT_PATHS, PATHS),
    "pre_task_hook": ([PATH], NOT_PATHS, PATHS),
    "post_task_hook": ([PATH], NOT_PATHS, PATHS),
    "failure_hook": ([PATH], NOT_PATHS, PATHS),
    "completion_hook": ([PATH, "a." + "b" * 253], NOT_PATHS, PATHS),
    "queue": (["mail", "q" * 63], ["", "q" * 64, "a\0b", 5, None], "1 to 63 characters"),
    "priority": ([0, -32768, 32767], [-32769, 32768, 1.0, True, "1", None], "-32768 to 32767"),
    "description": (["", "Feeds the cats"], [5, None, ["x"]], "a string"),
    "unique": (
        [True, False, ["user_id"], ("a", "b")],
        [1, "user_id", [], [5], [""], None],
        YES_NO,
    ),
    "unique_conflict": (["return", "raise", "replace"], ["", "keep", None, 1, []], '"replace"'),
    "concurrency": ([1, 10, {"limit": 2, "key": "user"}], [0, -1, "3", True, None, {}], WHOLE),
    "rate_limit": (
        ["5/s", "100/m", "1000/h", {"limit": "5/s", "key": "user"}],
        ["5", "0/s", "5/d", "5 / s", 5, None, {"key": "user"}, {"limit": 5}],
        "per second",
    ),
    "workspace_schema": ([{"type": "object"}, {}], [[], "object", None, True], "a dict"),
}
# What becomes of those that are kept in a form of their own.
LIMITS = {
    "1": Limit(1),
    "10": Limit(10),
    "{'limit': 2, 'key': 'user'}": Limit(2, "user"),
    "5/s": Limit(5, seconds=1),
    "100/m": Limit(100, seconds=60),
    "1000/h": Limit(1000, seconds=3600),
    "{'limit': '5/s', 'key': 'user'}": Limit(5, "user", 1),
}
NOW_ON_BOTH: dict[str, tuple[list[Any], list[Any], str]] = {
    "retries": ([0, 3, None], NOT_COUNTS, WHOLE),
    "retry_delay": ([0, 1.5, 600], [-1, None, *NOT_NUMBERS], "seconds, 0 or more"),
    "retry_backoff": ([1, 2, 1.5, 1000], [0.5, 1001, None, *NOT_NUMBERS], "1 to 1000"),
    "retry_max_delay": ([0, 600, 1e9], [-1, None, *NOT_NUMBERS], "seconds, 0 or more"),
    "retry_jitter": ([True, False], [1, "yes", None], YES_NO),
    "retry_on": (
        [["ValueError"], ["builtins.OSError"], (PATH, "OSError")],
        [[], "ValueError", "builtins.OSError", None, {"OSError"}, [OSError], ["a b"], [""]],
        "a list of exceptions",
    ),
    "timeout": ([0.5, 300, None], [0, -1, *NOT_NUMBERS], "seconds above 0"),
    "atomic": ([True, False], [0, "true", None], YES_NO),
    "on_lost": (["retry", "fail", "hold"], ["ignore", "", None, 1, []], '"hold"'),
}
CRON = "30 8 * * mon-fri"
LATER_ON_JOBS: dict[str, tuple[list[Any], list[Any], str]] = {
    "schedule": (
        [
            {"cron": CRON},
            {"cron": "*/15 * * * * *"},
            [{"cron": CRON, "name": "a"}, {"cron": CRON, "name": "b"}],
            {
                "cron": CRON,
                "timezone": "Europe/Vienna",
                "workspace": {"kind": "daily"},
                "name": "daily",
                "misfire": "once",
                "max_catch_up": 10,
                "overlap": "skip",
                "run_on_creation": True,
                "datetime_key": "scheduled_for",
                "queue": "slow",
            },
        ],
        [
            CRON,
            {},
            [],
            {"name": "no cron"},
            {"cron": "* * * *"},
            {"cron": "* * * * * * *"},
            {"cron": 5},
            {"cron": CRON, "misfire": "never"},
            {"cron": CRON, "overlap": "wait"},
            {"cron": CRON, "timezone": ""},
            {"cron": CRON, "workspace": []},
            {"cron": CRON, "name": 5},
            {"cron": CRON, "max_catch_up": -1},
            {"cron": CRON, "run_on_creation": 1},
            {"cron": CRON, "datetime_key": None},
            {"cron": CRON, "queue": "q" * 64},
            {"cron": CRON, "colour": "red"},
        ],
        "",  # says which part of it is wrong
    ),
}
NOT_TEXTS, TEXTS = ["", 5, None, ["a"]], "a string that is not empty"
ON_FAILURE = (["fail", "cancel_rest", "ignore"], ["retry", "", None, 1, []], '"cancel_rest"')
ON_EVERY_FORM: dict[str, tuple[list[Any], list[Any], str]] = {
    "name": (
        ["fetch", "n" * 200, "2nd", "1.5"],
        ["", "n" * 201, 5, None, ["a"], "2", "007", "\N{ARABIC-INDIC DIGIT TWO}", "a\0"],
        "1 to 200 characters",
    ),
    "renamed_from": (
        ["fetch", "m.old", ["fetch", "m.old"], ("fetch",)],
        ["", [], 5, None, [5], ["a", ""], {"a": "b"}],
        "a string",
    ),
    "when": ([PATH], NOT_PATHS, PATHS),
}
QUEUED = {"queue": NOW["queue"]}
ON_FORMS: dict[str, dict[str, tuple[list[Any], list[Any], str]]] = {
    "task": {"task": ([PATH], NOT_PATHS, PATHS), **ON_EVERY_FORM, **QUEUED, **NOW_ON_BOTH},
    "sleep": {
        "sleep": ([0, 0.5, 3600], [-1, None, *NOT_NUMBERS], "seconds, 0 or more"),
        **ON_EVERY_FORM,
    },
    "wait_for": {
        "wait_for": (["approval", "a" * 200], ["", "a" * 201, 5, None], "1 to 200 characters"),
        "timeout": NOW_ON_BOTH["timeout"],
        "on_timeout": (["fail", "continue"], ["retry", "", None, 1, []], '"continue"'),
        **ON_EVERY_FORM,
    },
    "group": {"on_failure": ON_FAILURE, **ON_EVERY_FORM},
    "map": {
        "map": ([PATH], [path for path in NOT_PATHS if not isinstance(path, list)], PATHS),
        "over": (["cats"], NOT_TEXTS, TEXTS),
        "into": (["fed"], NOT_TEXTS, TEXTS),
        "on_failure": ON_FAILURE,
        **ON_EVERY_FORM,
        **QUEUED,
        **NOW_ON_BOTH,
    },
}
# Where the step keeps what it does not keep under the option's own name.
KEPT = {"task": "path", "sleep": "seconds", "wait_for": "event"}
# The least that each form needs.
LEAST: dict[str, dict[str, Any]] = {
    "task": {"task": "m.a"},
    "sleep": {"sleep": 60},
    "wait_for": {"wait_for": "approval"},
    "group": {"group": ["m.a"]},
    "map": {"map": "m.a", "over": "cats"},
}


def test_the_tables_here_name_every_option() -> None:
    assert set(JOB_OPTIONS) == {"tasks", *NOW, *NOW_ON_BOTH, *LATER_ON_JOBS}
    assert set(SHARED) == set(NOW_ON_BOTH)
    tables = {form: set(table) for form, table in ON_FORMS.items()}
    tables["group"].add("group")
    assert {form: set(options) for form, options in FORMS.items()} == tables
    assert all(option.supported for options in FORMS.values() for option in options.values())


def rows(table: dict[str, tuple[list[Any], list[Any], str]], wrong: bool) -> list[Any]:
    return [
        pytest.param(option, value, expected, id=f"{option}={value!r:.40}")
        for option, (good, bad, expected) in table.items()
        for value in (bad if wrong else good)
    ]


@pytest.mark.parametrize(("option", "value", "expected"), rows(NOW, wrong=False))
def test_options_that_have_an_effect_are_taken(option: str, value: Any, expected: str) -> None:
    needs = {"unique": True} if option == "unique_conflict" else {}
    catalogue = parse({"order": {"tasks": [PATH], option: value, **needs}})
    assert catalogue.problems == ()
    kept = tuple(value) if isinstance(value, list) else value
    if option in ("concurrency", "rate_limit"):
        kept = LIMITS[str(value)]
    assert getattr(catalogue["order"], option) == kept


@pytest.mark.parametrize(("option", "value", "expected"), rows(NOW, wrong=True))
def test_wrong_values_are_refused(option: str, value: Any, expected: str) -> None:
    catalogue = parse({"order": {"tasks": [PATH], option: value}})
    assert found(catalogue) == [("E004", f"JOBS['order'][\"{option}\"]")]
    (problem,) = catalogue.problems
    assert problem.text == f"is {value!r}"
    assert expected in problem.hint
    assert len(catalogue) == 0


def with_option(on: str, option: str, value: Any) -> tuple[dict[str, Any], str]:
    """A setting that has this option on the job or on its second step, and the option's key path."""
    if on == "job":
        return {"order": {"tasks": [PATH], option: value}}, f"JOBS['order'][\"{option}\"]"
    step = {"task": PATH, option: value}
    return {"order": [PATH, step]}, f'JOBS[\'order\']["tasks"][1]["{option}"]'


@pytest.mark.parametrize("on", ["defaults", "job", "step"])
@pytest.mark.parametrize(("option", "value", "expected"), rows(NOW_ON_BOTH, wrong=False))
def test_options_of_steps_reach_them_from_wherever_they_are_written(
    option: str, value: Any, expected: str, on: str
) -> None:
    if on == "defaults":
        catalogue = parse({"order": [PATH]}, {option: value})
    else:
        catalogue = parse(with_option(on, option, value)[0])
    assert catalogue.problems == ()
    wanted = tuple(value) if option == "retry_on" else value
    assert getattr(catalogue["order"].steps[-1], option) == wanted


@pytest.mark.parametrize("on", ["job", "step"])
@pytest.mark.parametrize(("option", "value", "expected"), rows(NOW_ON_BOTH, wrong=True))
def test_wrong_values_of_options_of_steps_are_refused_once(
    option: str, value: Any, expected: str, on: str
) -> None:
    jobs, where = with_option(on, option, value)
    catalogue = parse(jobs)
    assert found(catalogue) == [("E004", where)]
    (problem,) = catalogue.problems
    assert problem.text == f"is {value!r}"
    assert expected in problem.hint
    assert len(catalogue) == 0


ORDER, FIRST = "JOBS['order']", "JOBS['order'][\"tasks\"][0]"


@pytest.mark.parametrize(
    ("defaults", "job", "step", "where", "text"),
    [
        ({}, {"retry_delay": 601}, {}, ORDER, "is 601, above the retry_max_delay of 600"),
        ({}, {}, {"retry_delay": 601}, FIRST, "is 601, above the retry_max_delay of 600"),
        (
            {"retry_max_delay": 30},
            {"retry_delay": 60},
            {},
            ORDER,
            "is 60, above the retry_max_delay of 30",
        ),
        ({}, {"retry_max_delay": 5, "retry_delay": 5.5}, {}, ORDER, "is 5.5, above"),
        (
            {},
            {"retry_delay": 60},
            {"retry_max_delay": 30},
            FIRST,
            "is 30, below the retry_delay of 60",
        ),
        ({"retry_delay": 601}, {}, {}, 'DBQ["DEFAULTS"]', "is 601, above"),
    ],
)
def test_delays_that_contradict_each_other_are_told_where_one_is_written_and_once(
    defaults: Any, job: Any, step: Any, where: str, text: str
) -> None:
    jobs = {"order": {"tasks": [{"task": PATH, **step}, PATH], **job}}
    (problem,) = parse(jobs, defaults).problems
    key = "retry_max_delay" if "below" in text else "retry_delay"
    assert (problem.code, problem.where) == ("E013", f'{where}["{key}"]')
    assert problem.text.startswith(text)
    assert "retry_max_delay" in problem.hint


@pytest.mark.parametrize(
    ("defaults", "job", "found_at"),
    [
        ({}, {"unique_conflict": "return"}, True),
        ({}, {"unique_conflict": "return", "unique": False}, True),
        ({"unique": ["a"]}, {"unique_conflict": "return", "unique": False}, True),
        ({}, {"unique_conflict": "return", "unique": ["a"]}, False),
        ({"unique": True}, {"unique_conflict": "return"}, False),
        ({"unique_conflict": "raise"}, {}, False),  # for those that are
        ({"unique_conflict": "raise"}, {"unique": True}, False),
    ],
)
def test_what_a_conflict_does_is_said_of_unique_jobs(
    defaults: Any, job: Any, found_at: bool
) -> None:
    catalogue = parse({"order": {"tasks": [PATH], **job}}, defaults)
    expected = [("E013", "JOBS['order'][\"unique_conflict\"]")] if found_at else []
    assert found(catalogue) == expected
    for problem in catalogue.problems:
        assert problem.text == "is 'return', but the job is not unique"
        assert problem.hint == "Say what is unique, or leave unique_conflict out."
    assert len(catalogue) == (not found_at)


def test_a_wrong_unique_is_not_told_twice() -> None:
    catalogue = parse({"order": {"tasks": [PATH], "unique": 5, "unique_conflict": "raise"}})
    assert found(catalogue) == [("E004", "JOBS['order'][\"unique\"]")]
    catalogue = parse({"order": {"tasks": [PATH], "unique_conflict": 5}})
    assert found(catalogue) == [("E004", "JOBS['order'][\"unique_conflict\"]")]


@pytest.mark.parametrize("timeout", [{}, {"timeout": None}])
@pytest.mark.parametrize("policy", ["fail", "continue"])
def test_what_a_timeout_does_is_said_of_waits_that_have_one(timeout: Any, policy: str) -> None:
    for jobs, where in nested({"wait_for": "approval", "on_timeout": policy, **timeout}):
        (problem,) = parse(jobs).problems
        assert (problem.code, problem.where) == ("E013", f'{where}["on_timeout"]')
        assert problem.text == f"is {policy!r}, but the step has no timeout"
        assert problem.hint == "Give it a timeout, or leave on_timeout out."
    wrong = {"wait_for": "approval", "on_timeout": policy, "timeout": "long"}
    for jobs, where in nested(wrong):
        assert found(parse(jobs)) == [("E004", f'{where}["timeout"]')]


@pytest.mark.parametrize(
    ("job", "step"),
    [
        ({"retry_delay": 60, "retry_max_delay": 60}, {}),
        ({"retry_delay": 700, "retry_max_delay": 800}, {"retry_delay": 800}),
        ({"retry_delay": 60}, {"retry_delay": 10, "retry_max_delay": 30}),
        ({"retry_max_delay": 0}, {}),
        ({"retry_backoff": 1, "retry_jitter": True, "retry_on": ["OSError"]}, {"retry_delay": 5}),
    ],
)
def test_delays_that_do_not_contradict_each_other_need_no_retries(job: Any, step: Any) -> None:
    jobs = {"order": {"tasks": [{"task": PATH, **step}], **job}}
    assert parse(jobs).problems == ()


def test_a_wrong_delay_is_not_compared_as_well() -> None:
    catalogue = parse({"order": [{"task": PATH, "retry_delay": 900, "retry_max_delay": "long"}]})
    assert found(catalogue) == [("E004", f'{FIRST}["retry_max_delay"]')]


def test_delays_of_the_defaults_that_contradict_each_other_reach_no_job() -> None:
    catalogue = parse({"order": [PATH]}, {"retry_delay": 90, "retry_max_delay": 30, "retries": 3})
    assert [problem.job for problem in catalogue.problems] == [None]
    assert catalogue["order"].steps == (Step(0, PATH, "pack", retries=3),)


def test_options_without_effect_yet_are_refused_and_never_ignored() -> None:
    for option, (values, _, _) in LATER_ON_JOBS.items():
        for value in values:
            jobs, where = with_option("job", option, value)
            catalogue = parse(jobs)
            assert found(catalogue) == [("E006", where)], value
            assert catalogue.problems[0].text == "is not supported yet"
            assert len(catalogue) == 0


def test_options_without_effect_yet_are_checked_for_their_form_all_the_same() -> None:
    for option, (_, values, expected) in LATER_ON_JOBS.items():
        for value in values:
            jobs, where = with_option("job", option, value)
            catalogue = parse(jobs)
            assert found(catalogue) == [("E004", where)], value
            assert expected in catalogue.problems[0].hint, value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "no cron"}, "'cron'"),
        ({"cron": "* * * *"}, "five cron fields"),
        ({"cron": CRON, "misfire": "never"}, '"once"'),
        ({"cron": CRON, "colour": "red"}, "'colour'"),
        ([{"cron": CRON}, {"cron": CRON, "max_catch_up": -1}], "'max_catch_up'"),
    ],
)
def test_a_wrong_schedule_is_told_which_part_is_wrong(value: Any, expected: str) -> None:
    catalogue = parse({"order": {"tasks": [PATH], "schedule": value}})
    assert found(catalogue) == [("E004", "JOBS['order'][\"schedule\"]")]
    assert expected in catalogue.problems[0].hint


# -- the forms of a step: their options, and what is none of them --


def of_forms(wrong: bool) -> list[Any]:
    return [
        pytest.param(form, *row.values, id=f"{form} {row.id}")
        for form, table in ON_FORMS.items()
        for row in rows(table, wrong)
    ]


def nested(step: Any) -> list[tuple[Any, str]]:
    """A job that has this step, for each of the places that a step may have; and the key path of it."""
    tasks = "JOBS['order'][\"tasks\"]"
    places = [
        ({"order": ["m.z", step]}, f"{tasks}[1]"),
        ({"order": [["m.z", ["m.y", step]]]}, f"{tasks}[0][1][1]"),
        ({"order": [{"group": [["m.z", step]], "name": "outer"}]}, f'{tasks}[0]["group"][0][1]'),
    ]
    if not isinstance(step, list | tuple):  # which would be a branch with several steps
        places.append(({"order": [["m.z", step]]}, f"{tasks}[0][1]"))
    return places


@pytest.mark.parametrize(("form", "option", "value", "expected"), of_forms(wrong=False))
def test_options_of_every_form_are_taken(form: str, option: str, value: Any, expected: str) -> None:
    needs = {"timeout": 60} if option == "on_timeout" else {}
    for jobs, where in nested({**LEAST[form], **needs, option: value}):
        catalogue = parse(jobs)
        assert catalogue.problems == ()
        pipeline = catalogue["order"]
        step = pipeline.every[pipeline.where.index(where)]
        if option == "renamed_from":
            assert set(step.renamed_from) - set((value,) if isinstance(value, str) else value) == {
                f"{form} {word}"
                for word in ((value,) if isinstance(value, str) else value)
                if form not in ("task", "sleep")
            }
            continue
        if form == "map" and (option in QUEUED or option in NOW_ON_BOTH):
            assert getattr(step, option) == getattr(Step(0, ""), option), "a map itself is not run"
            step = pipeline.every[step.place + 1]
        if option == "map":
            assert step.path == f"map {value}"
            assert pipeline.every[step.place + 1].path == value
            continue
        kept = "patience" if (form, option) == ("wait_for", "timeout") else KEPT.get(option, option)
        assert getattr(step, kept) == (tuple(value) if option == "retry_on" else value)


@pytest.mark.parametrize(("form", "option", "value", "expected"), of_forms(wrong=True))
def test_wrong_values_of_options_of_every_form_are_refused_once(
    form: str, option: str, value: Any, expected: str
) -> None:
    for jobs, where in nested({**LEAST[form], option: value}):
        catalogue = parse(jobs)
        assert found(catalogue) == [("E004", f'{where}["{option}"]')]
        (problem,) = catalogue.problems
        assert (problem.text, problem.job) == (f"is {value!r}", "order")
        assert expected in problem.hint
        assert len(catalogue) == 0


@pytest.mark.parametrize(
    ("form", "option", "near"),
    [
        ("task", "retires", "retries"),
        ("task", "over", None),
        ("task", "on_failure", None),
        ("map", "inot", "into"),
        ("map", "on_timeout", "timeout"),
        ("group", "retries", None),
        ("group", "queue", None),
        ("group", "on_failur", "on_failure"),
        ("sleep", "retries", None),
        ("sleep", "timeout", None),
        ("sleep", "queue", None),
        ("wait_for", "retries", None),
        ("wait_for", "time_out", "timeout"),
        *((form, "unique", None) for form in ("map", "group", "sleep", "wait_for")),
    ],
)
def test_options_of_another_form_are_unknown(form: str, option: str, near: str | None) -> None:
    for jobs, where in nested({**LEAST[form], option: 3}):
        (problem,) = parse(jobs).problems
        assert (problem.code, problem.where) == ("E003", f'{where}["{option}"]')
        assert problem.text.startswith("is an unknown option")
        if near:
            assert problem.text.endswith(f"(did you mean {near!r}?)")
        assert problem.hint == f"Known here: {', '.join(FORMS[form])}."


MISTAKES: list[tuple[str, Any, list[tuple[str, str]], str]] = [
    # what, the step, codes and key paths, what is said of the first
    ("group with a bad branch", ["m.a", "no path"], [("E004", "[1]")], "is 'no path'"),
    ("group with a bad step", ["m.a", [5]], [("E005", "[1][0]")], "is an int"),
    (
        "mistakes everywhere",
        ["m.a", 5, ["m.b", "no path", {"task": "m.c", "retries": -1}], [["m.d", {"sleep": "x"}]]],
        [
            ("E005", "[1]"),
            ("E004", "[2][1]"),
            ("E004", '[2][2]["retries"]'),
            ("E004", '[3][0][1]["sleep"]'),
        ],
        "is an int",
    ),
    ("empty group", [], [("E005", "")], "is an empty group"),
    ("empty tuple", (), [("E005", "")], "is an empty group"),
    ("empty group in a dict", {"group": []}, [("E005", "")], "is an empty group"),
    ("empty branch", ["m.a", []], [("E005", "[1]")], "is an empty branch"),
    ("two empty branches", [[], []], [("E005", "[0]"), ("E005", "[1]")], "is an empty branch"),
    (
        "empty branch in a dict",
        {"group": ["m.a", []], "name": "x"},
        [("E005", '["group"][1]')],
        "is an empty branch",
    ),
    (
        "bad branch in a dict of nothing else",
        {"group": ["m.a", 5]},
        [("E005", '["group"][1]')],
        "is an int",
    ),
    ("empty group in a branch", [["m.a", []]], [("E005", "[0][1]")], "is an empty group"),
    ("group of one path", {"group": "m.a"}, [("E005", '["group"]')], "is a str"),
    ("group of None", {"group": None}, [("E005", '["group"]')], "is None"),
    ("group of a dict", {"group": {"a": "m.a"}}, [("E005", '["group"]')], "is a dict"),
    (
        "group with retries and a bad branch",
        {"group": ["m.a", 5], "retries": 3},
        [("E003", '["retries"]'), ("E005", '["group"][1]')],
        "is an unknown option",
    ),
    ("map without over", {"map": "m.a"}, [("E005", "")], "is a map without over"),
    (
        "map over nothing in particular",
        {"map": "m.a", "over": None},
        [("E004", '["over"]')],
        "is None",
    ),
    (
        "map of a list",
        {"map": ["m.a", "m.b"], "over": "i"},
        [("E005", '["map"]')],
        "is a group inside a map",
    ),
    (
        "map of a group",
        {"map": {"group": ["m.a", "m.b"]}, "over": "i"},
        [("E004", '["map"]')],
        "is {'group': ['m.a', 'm.b']}",
    ),
    (
        "map whose delays contradict each other",
        {"map": "m.a", "over": "i", "retry_delay": 900},
        [("E013", '["retry_delay"]')],
        "is 900, above the retry_max_delay of 600",
    ),
    ("task and sleep", {"task": "m.a", "sleep": 5}, [("E005", "")], "has task and sleep"),
    (
        "task and group",
        {"group": ["m.a"], "task": "m.a"},
        [("E005", "")],
        "has task and group",
    ),
    (
        "all of them",
        {"map": "m.a", "group": ["m.a"], "wait_for": "x", "sleep": 1, "task": "m.a"},
        [("E005", "")],
        "has task and sleep and wait_for and group and map",
    ),
    (
        "no form",
        {"retries": 3},
        [("E005", "")],
        "has none of task, sleep, wait_for, group, map",
    ),
    (
        "a form that is misspelt",
        {"retries": 3, "name": "x", "taks": "m.a"},
        [("E005", "")],
        "has none of task, sleep, wait_for, group, map (did you mean 'task'?)",
    ),
    (
        "another one",
        {5: 1, "colour": 1, "waitfor": "ok", "timeout": 5},
        [("E005", "")],
        "has none of task, sleep, wait_for, group, map (did you mean 'wait_for'?)",
    ),
    ("an empty dict", {}, [("E005", "")], "has none of"),
    ("a number", 5, [("E005", "")], "is an int"),
    ("None", None, [("E005", "")], "is None"),
    ("a set", {"m.a"}, [("E005", "")], "is a set"),
]


@pytest.mark.parametrize(
    ("step", "expected", "said"), [pytest.param(*rest, id=i) for i, *rest in MISTAKES]
)
def test_what_is_no_step(step: Any, expected: list[tuple[str, str]], said: str) -> None:
    for jobs, where in nested(step):
        catalogue = parse({**jobs, "other": ["m.a"]})
        assert found(catalogue) == [(code, where + place) for code, place in expected]
        assert catalogue.problems[0].text.startswith(said)
        assert {problem.job for problem in catalogue.problems} == {"order"}
        assert all(problem.hint for problem in catalogue.problems)
        assert list(catalogue) == ["other"]


# -- one mistake keeps to itself --


def test_a_bad_entry_takes_no_other_with_it() -> None:
    catalogue = parse({"good": [PATH], "bad": {"tasks": [PATH], "colour": 1}, "fine": [PATH]})
    assert list(catalogue) == ["good", "fine"]
    assert found(catalogue) == [("E003", "JOBS['bad'][\"colour\"]")]


def test_every_mistake_is_reported_at_once() -> None:
    jobs = {
        "a": {
            "tasks": [PATH, 5],
            "queue": 5,
            "colour": 1,
            "schedule": {"cron": CRON},
            "retry_delay": 900,
        },
        "b": {},
        5: [PATH],
    }
    assert sorted(found(parse(jobs, {"tasks": [PATH], "priority": "high"}))) == [
        ("E001", "JOBS[5]"),
        ("E002", "JOBS['b'][\"tasks\"]"),
        ("E003", 'DBQ["DEFAULTS"]["tasks"]'),
        ("E003", "JOBS['a'][\"colour\"]"),
        ("E004", 'DBQ["DEFAULTS"]["priority"]'),
        ("E004", "JOBS['a'][\"queue\"]"),
        ("E005", "JOBS['a'][\"tasks\"][1]"),
        ("E006", "JOBS['a'][\"schedule\"]"),
        ("E013", "JOBS['a'][\"retry_delay\"]"),
    ]


@pytest.mark.parametrize(
    "jobs",
    [
        None,
        5,
        "jobs",
        [],
        [("a", ["m.a"])],
        {None: None},
        {"": ["m.a"]},
        {"a" * 201: []},
        {"a\0": []},
    ],
)
def test_parse_never_raises(jobs: Any) -> None:
    catalogue = parse(jobs)
    assert len(catalogue) == 0
    assert {problem.code for problem in catalogue.problems} <= {"E001", "E002"}
    assert catalogue.problems
