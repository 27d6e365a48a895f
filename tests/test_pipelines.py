"""``JOBS`` in both of its forms: what it becomes, and what every option makes of right and wrong values."""

import dataclasses
import math
from typing import Any

import pytest

from django_dbq.options import JOB_OPTIONS, PAUSE_OPTIONS, SHARED, STEP_OPTIONS
from django_dbq.pipelines import Catalogue, Pipeline, Step, UnknownJob, Written, nearest, parse

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
        "order", (Step(0, "shop.jobs.pack"), Step(1, "shop.jobs.send"))
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
    }
    pipeline = parse({"order": {"tasks": [PATH], **options}})["order"]
    assert pipeline == Pipeline("order", (Step(0, PATH),), **options)  # type: ignore[arg-type]


def test_without_options_the_defaults_are_those_of_the_documentation() -> None:
    pipeline = parse({"order": [PATH]})["order"]
    assert (pipeline.queue, pipeline.priority, pipeline.description) == ("default", 0, "")
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
    assert {field.name for field in dataclasses.fields(Step)} == {"place", "path", *options}


def test_a_step_without_options_has_the_defaults_of_the_documentation() -> None:
    assert dataclasses.asdict(parse({"order": [PATH]})["order"].steps[0]) == {
        "place": 0,
        "path": PATH,
        "retries": None,
        "retry_delay": 0,
        "retry_backoff": 2,
        "retry_max_delay": 600,
        "retry_jitter": False,
        "retry_on": (),
        "timeout": None,
        "atomic": False,
        "on_lost": "retry",
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
        Step(0, "m.a", retries=2, timeout=10, atomic=True, **shared),
        Step(1, "m.b", retries=2, timeout=10, atomic=True, **shared),
        Step(2, "m.c", retries=0, timeout=None, atomic=True, **shared),
    )
    assert catalogue["short"].steps == (Step(0, "m.a", retries=1, timeout=10, **shared),)


def test_steps_are_values() -> None:
    entry = [{"task": PATH, "retry_on": ["OSError"], "retries": 3}]
    assert len({parse({"a": entry})["a"].steps[0], parse({"b": entry})["b"].steps[0]}) == 1
    assert not hasattr(Step(0, PATH), "__dict__")


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


def test_parsing_imports_nothing() -> None:
    entry = {"tasks": ["no.such.module.at_all"], "retry_on": ["no.such.module.Error"]}
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


# -- where a job stands --

ABA = parse({"aba": ["m.a", "m.b", "m.a"]})["aba"]


@pytest.mark.parametrize(
    ("place", "path", "expected"),
    [
        (0, "m.a", 0),
        (1, "m.b", 1),
        (2, "m.a", 2),  # the place tells the two apart
        (1, "m.a", 0),  # no longer here: where it stands first
        (0, "m.b", 1),
        (9, "m.b", 1),
        (9, "m.a", 0),
        (0, "m.gone", None),
        (0, "", None),
    ],
)
def test_locate(place: int, path: str, expected: int | None) -> None:
    step = ABA.locate(place, path)
    assert (None if step is None else step.place) == expected


def test_after_follows_places_not_paths() -> None:
    assert [ABA.after(step) for step in ABA.steps] == [ABA.steps[1], ABA.steps[2], None]


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
    "queue": (["mail", "q" * 63], ["", "q" * 64, 5, None], "1 to 63 characters"),
    "priority": ([0, -32768, 32767], [-32769, 32768, 1.0, True, "1", None], "-32768 to 32767"),
    "description": (["", "Feeds the cats"], [5, None, ["x"]], "a string"),
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
    "unique": ([True, False, ["user_id"], ("a", "b")], [1, "user_id", [], [5], [""]], YES_NO),
    "concurrency": ([1, 10, {"limit": 2, "key": "user"}], [0, -1, "3", True, None, {}], WHOLE),
    "rate_limit": (
        ["5/s", "100/m", "1000/h", {"limit": "5/s", "key": "user"}],
        ["5", "0/s", "5/d", "5 / s", 5, None, {"key": "user"}],
        "per second",
    ),
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
    "workspace_schema": ([{"type": "object"}, {}], [[], "object", None, True], "a dict"),
}
LATER_ON_STEPS: dict[str, tuple[list[Any], list[Any], str]] = {
    "name": (["fetch"], ["", 5, None], "a string"),
    "renamed_from": (["fetch", ["fetch", PATH]], ["", [], 5, None, [5]], "a string"),
    "when": ([PATH], NOT_PATHS, PATHS),
    "queue": (["mail"], ["", "q" * 64, 5, None], "1 to 63 characters"),
}
LATER = {"job": LATER_ON_JOBS, "step": LATER_ON_STEPS}


def test_the_tables_here_name_every_option() -> None:
    assert set(JOB_OPTIONS) == {"tasks", *NOW, *NOW_ON_BOTH, *LATER["job"]}
    assert set(STEP_OPTIONS) == {"task", *NOW_ON_BOTH, *LATER["step"]}
    assert set(SHARED) == set(NOW_ON_BOTH)


def rows(table: dict[str, tuple[list[Any], list[Any], str]], wrong: bool) -> list[Any]:
    return [
        pytest.param(option, value, expected, id=f"{option}={value!r:.40}")
        for option, (good, bad, expected) in table.items()
        for value in (bad if wrong else good)
    ]


@pytest.mark.parametrize(("option", "value", "expected"), rows(NOW, wrong=False))
def test_options_that_have_an_effect_are_taken(option: str, value: Any, expected: str) -> None:
    catalogue = parse({"order": {"tasks": [PATH], option: value}})
    assert catalogue.problems == ()
    assert getattr(catalogue["order"], option) == value


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
    assert catalogue["order"].steps == (Step(0, PATH, retries=3),)


@pytest.mark.parametrize("on", ["job", "step"])
def test_options_without_effect_yet_are_refused_and_never_ignored(on: str) -> None:
    for option, (values, _, _) in LATER[on].items():
        for value in values:
            jobs, where = with_option(on, option, value)
            catalogue = parse(jobs)
            assert found(catalogue) == [("E006", where)], value
            assert catalogue.problems[0].text == "is not supported yet"
            assert len(catalogue) == 0


@pytest.mark.parametrize("on", ["job", "step"])
def test_options_without_effect_yet_are_checked_for_their_form_all_the_same(on: str) -> None:
    for option, (_, values, expected) in LATER[on].items():
        for value in values:
            jobs, where = with_option(on, option, value)
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


# -- steps of other forms: groups, maps, pauses --

TASKS = "JOBS['order'][\"tasks\"]"
FORMS: list[tuple[str, Any, list[tuple[str, str]]]] = [
    ("group", ["m.a", "m.b"], [("E006", "[0]")]),
    ("group of dicts", [{"task": "m.a"}, {"task": "m.b"}], [("E006", "[0]")]),
    ("group of sequences", [["m.a", "m.b"], "m.c"], [("E006", "[0]")]),
    ("group in a group", [["m.a", ["m.b", "m.c"]]], [("E006", "[0]"), ("E006", "[0][0][1]")]),
    ("group with a bad branch", ["m.a", "no path"], [("E006", "[0]"), ("E004", "[0][1]")]),
    ("group with a bad step", [["m.a", 5]], [("E006", "[0]"), ("E005", "[0][0][1]")]),
    ("empty group", [], [("E005", "[0]")]),
    ("map", {"map": "m.a", "over": "items", "into": "done"}, [("E006", "[0]")]),
    ("map with options", {"map": "m.a", "over": "items", "retries": 3}, [("E006", "[0]")]),
    ("map over a number", {"map": "m.a", "over": 5}, [("E004", '[0]["over"]')]),
    ("map without over", {"map": "m.a"}, [("E005", "[0]")]),
    ("map with an unknown option", {"map": "m.a", "over": "i", "x": 1}, [("E003", '[0]["x"]')]),
    ("group inside a map", {"map": ["m.a", "m.b"], "over": "i"}, [("E005", '[0]["map"]')]),
    ("sleep", {"sleep": 60}, [("E006", '[0]["sleep"]')]),
    ("sleep with a name", {"sleep": 0.5, "name": "rest"}, [("E006", '[0]["sleep"]')]),
    ("sleep backwards", {"sleep": -1}, [("E004", '[0]["sleep"]')]),
    ("sleep with retries", {"sleep": 1, "retries": 1}, [("E003", '[0]["retries"]')]),
    ("wait_for", {"wait_for": "approval"}, [("E006", '[0]["wait_for"]')]),
    (
        "wait_for with a timeout",
        {"wait_for": "approval", "timeout": 60, "on_timeout": "continue"},
        [("E006", '[0]["timeout"]')],
    ),
    ("wait_for nothing", {"wait_for": ""}, [("E004", '[0]["wait_for"]')]),
    (
        "wait_for, then what",
        {"wait_for": "approval", "on_timeout": "retry"},
        [("E004", '[0]["on_timeout"]')],
    ),
    ("two forms in one", {"task": "m.a", "sleep": 5}, [("E005", "[0]")]),
    ("no form", {"retries": 3}, [("E005", "[0]")]),
    ("an empty dict", {}, [("E005", "[0]")]),
    ("a number", 5, [("E005", "[0]")]),
    ("None", None, [("E005", "[0]")]),
    ("a dict whose task is no path", {"task": 5}, [("E004", '[0]["task"]')]),
]


@pytest.mark.parametrize(("step", "expected"), [pytest.param(s, e, id=i) for i, s, e in FORMS])
def test_steps_of_other_forms(step: Any, expected: list[tuple[str, str]]) -> None:
    catalogue = parse({"order": [step]})
    problems = found(catalogue)
    for code, place in expected:
        assert any(c == code and w.startswith(TASKS + place) for c, w in problems), problems
    assert len(catalogue) == 0


def test_the_pause_forms_are_those_of_the_design() -> None:
    assert set(PAUSE_OPTIONS) == {"sleep", "wait_for", "map"}


# -- one mistake keeps to itself --


def test_a_bad_entry_takes_no_other_with_it() -> None:
    catalogue = parse({"good": [PATH], "bad": {"tasks": [PATH], "colour": 1}, "fine": [PATH]})
    assert list(catalogue) == ["good", "fine"]
    assert found(catalogue) == [("E003", "JOBS['bad'][\"colour\"]")]


def test_every_mistake_is_reported_at_once() -> None:
    jobs = {
        "a": {"tasks": [PATH, 5], "queue": 5, "colour": 1, "unique": True, "retry_delay": 900},
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
        ("E006", "JOBS['a'][\"unique\"]"),
        ("E013", "JOBS['a'][\"retry_delay\"]"),
    ]


@pytest.mark.parametrize(
    "jobs", [None, 5, "jobs", [], [("a", ["m.a"])], {None: None}, {"": ["m.a"]}, {"a" * 201: []}]
)
def test_parse_never_raises(jobs: Any) -> None:
    catalogue = parse(jobs)
    assert len(catalogue) == 0
    assert {problem.code for problem in catalogue.problems} <= {"E001", "E002"}
    assert catalogue.problems
