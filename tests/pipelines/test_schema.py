"""``workspace_schema``: checked when a job is created, with an error that names the key."""

from typing import Any

import pytest

from django_dbq import conf, schemas
from django_dbq.models import Job
from django_dbq.pipelines import UnknownJob
from django_dbq.workspaces import InvalidWorkspace

pytestmark = pytest.mark.django_db
SCHEMA = {
    "type": "object",
    "required": ["url"],
    "properties": {
        "url": {"type": "string"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    },
}


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": ["tests.pipelines.tasks.one"], "workspace_schema": SCHEMA}}


def test_a_workspace_that_follows_it_is_taken() -> None:
    job = Job.objects.create(name="it", workspace={"url": "x", "sizes": [1, 2], "more": None})
    assert job.state == "NEW"
    assert len(Job.objects.bulk_create([Job(name="it", workspace={"url": "y"})])) == 1


@pytest.mark.parametrize(
    ("workspace", "said"),
    [
        ({}, "workspace: 'url' is a required property"),
        ({"url": 1}, "workspace['url']: 1 is not of type 'string'"),
        ({"url": "x", "sizes": [1, 0]}, "workspace['sizes'][1]: 0 is less than the minimum of 1"),
    ],
)
def test_one_that_does_not_is_refused_with_its_key(workspace: dict[str, Any], said: str) -> None:
    for create in (
        lambda: Job.objects.create(name="it", workspace=workspace),
        lambda: Job.objects.bulk_create([Job(name="it", workspace=workspace)]),
    ):
        with pytest.raises(InvalidWorkspace) as caught:
            create()
        assert str(caught.value) == f"The workspace does not follow its schema: {said}"
    assert not Job.objects.exists()


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(InvalidWorkspace, match=r"\(and 2 more\)$"):
        Job.objects.create(name="it", workspace={"url": "x", "sizes": [0, -1, -2, "a", 0]})


def test_what_the_creation_hook_leaves_is_checked(settings: Any) -> None:
    settings.JOBS["it"]["creation_hook"] = f"{__name__}.fill"
    settings.JOBS = dict(settings.JOBS)
    assert Job.objects.create(name="it").workspace == {"url": "from the hook"}


def fill(job: Job) -> None:
    job.workspace["url"] = "from the hook"


# -- what is no schema --

NESTED: dict[str, Any] = {"type": "object"}
for _ in range(16):
    NESTED = {"properties": {"inner": NESTED}}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"type": "strin"}, "'strin' is not one of ['array', 'boolean', 'integer', 'null', 'number', "),
    ({"type": ["string", "nul"]}, "'nul' is not one of ["),
    ({"properties": {"url": {"pattern": "("}}}, "'(' is not a 'regex' (at $.properties.url.pattern)"),
    ({"properties": []}, "[] is not of type 'object' (at $.properties)"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "items": 1}, "1 is not of type "),
    ({"$schema": "https://example.com/dialect"}, "'https://example.com/dialect' is no dialect that"),
    ({"$schema": ["draft-07"]}, "['draft-07'] is not of type 'string'"),
    ({"enum": [object()]}, "schema['enum'][0] is of type object, which JSON does not know"),
    ({"const": float("nan")}, "schema['const'] is nan, which JSON does not know"),
    ({("a", "b"): 1}, "schema has the key ('a', 'b'): JSON keys are strings"),
    (NESTED, "is nested too deeply"),
    ({"$ref": "#/$defs/url"}, "the $ref '#/$defs/url' leads nowhere within it"),
    ({"properties": {"url": {"$ref": "#url"}}}, "the $ref '#url' leads nowhere within it"),
    ({"items": [{"$ref": "#/x"}], "$schema": "http://json-schema.org/draft-07/schema#"}, "'#/x' leads"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}}}, "the $ref '#/$defs/b' leads"),
    ({"$ref": "#/more/a", "more": {"a": {"$ref": "#/b"}}}, "the $ref '#/b' leads nowhere"),
    ({"$ref": "https://example.com/s.json"}, "the $ref 'https://example.com/s.json' leads nowhere"),
    ({"$dynamicRef": "#url"}, "the $dynamicRef '#url' leads nowhere"),
    ({"$ref": "#/required", "required": ["a"]}, "['a'] is not of type 'object', 'boolean'"),
    ({"$ref": "#/more", "more": {"type": "strin"}}, "'strin' is not one of"),
    ({"$ref": "#/minimum/a", "minimum": 3}, "the $ref '#/minimum/a' leads nowhere"),
    ({"$ref": "#/allOf/a", "allOf": [True]}, "the $ref '#/allOf/a' leads nowhere"),
    ({"items": {"$id": "http://[", "items": {"$id": "x"}}}, "ValueError: Invalid IPv6 URL"),
    ({"$ref": "#"}, "it refers to itself without end"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#"}}}, "it refers to itself without end"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_pipeline_with_a_wrong_schema_creates_no_job_and_says_why(
    settings: Any, schema: dict[str, Any], said: str
) -> None:
    settings.JOBS = {"it": {**settings.JOBS["it"], "workspace_schema": schema}}
    (problem,) = conf.configuration().problems
    assert (problem.code, problem.where) == ("E004", "JOBS['it'][\"workspace_schema\"]")
    assert problem.text.startswith("is not a JSON schema: ")
    assert said in problem.text
    for create in (
        lambda: Job.objects.create(name="it", workspace={"url": "x"}),
        lambda: Job.objects.bulk_create([Job(name="it", workspace={"url": "x"})]),
    ):
        with pytest.raises(UnknownJob) as caught:
            create()
        assert str(caught.value) == f"The entry 'it' of JOBS is not valid: {problem}"
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"required": ("url",)},  # as JSON it is a list
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"url": {"$ref": "#url"}}}, "b": {"$anchor": "url"}}},
        {"$id": "https://example.com/s.json", "properties": {"url": {"$ref": "s.json#/more"}}, "more": True},
        {"properties": {"url": {"$id": "https://example.com/u", "$ref": "#/$defs/a", "$defs": {"a": True}}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"more": {"$ref": "#"}}},
        {"properties": {"$ref": {"type": "string"}}, "const": {"url": "x", "$ref": "#/nowhere"}},
        {"type": ["array", "object"], "properties": {"sizes": {"type": "array"}}},
        {"anyOf": [{"$ref": "https://json-schema.org/draft/2020-12/schema"}]},
    ],
    ids=str,
)  # fmt: skip
def test_schemas_that_are_right(settings: Any, schema: dict[str, Any]) -> None:
    settings.JOBS = {"it": {**settings.JOBS["it"], "workspace_schema": schema}}
    assert conf.configuration().problems == ()
    workspace = {"url": "x", "$ref": "#/nowhere"}
    assert Job.objects.create(name="it", workspace=workspace).workspace == workspace


def test_a_schema_that_only_some_workspaces_lead_astray() -> None:
    """That it is one for some is found out no earlier."""
    loop = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert schemas.mistake(loop) is None
    schemas.validate(loop, {})
    with pytest.raises(InvalidWorkspace, match="The schema refers to itself without end"):
        schemas.validate(loop, {"a": 1})
