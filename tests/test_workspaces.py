"""What a workspace may hold: the same on every database, and refused with the place of what it may not."""

import datetime
import decimal
import math
import uuid
from typing import Any

import pytest

from django_dbq import workspaces
from django_dbq.models import Job
from django_dbq.workspaces import InvalidWorkspace

GOOD: dict[str, Any] = {
    "nothing": {},
    "every type": {"s": "x", "i": 1, "f": 1.5, "t": True, "n": None, "l": [1, [2]], "d": {"e": {}}},
    "text beyond ASCII": {"städte": "Zürich", "😀": "日本語", "quote": "\"'\\", "lines": "a\nb\tc"},
    "a backslash that only looks like a NUL": {"x": "\\u0000"},
    "a number that needs all its digits": {"i": 2**53 - 1, "f": 0.1, "e": 1e-300},
    "controls": {"x": "\x01\x1f\x7f"},
    "an empty key": {"": ""},
    "a long text": {"x": "ä" * 10_000},
    "deep": {"a": {"b": {"c": [[[[[[{"d": 1}]]]]]]}}},
}

ITSELF: dict[str, Any] = {"inner": []}
ITSELF["inner"].append(ITSELF)

# workspace, what the message says
BAD: dict[str, tuple[Any, str]] = {
    "datetime": (
        {"when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)},
        "workspace['when'] is of type datetime, which JSON does not know",
    ),
    "date": ({"a": [datetime.date(2026, 1, 1)]}, "workspace['a'][0] is of type date"),
    "decimal": ({"price": decimal.Decimal("1.5")}, "workspace['price'] is of type Decimal"),
    "uuid": ({"id": uuid.uuid4()}, "workspace['id'] is of type UUID"),
    "set": ({"seen": {1, 2}}, "workspace['seen'] is of type set"),
    "bytes": ({"x": b"x"}, "workspace['x'] is of type bytes"),
    "function": ({"x": len}, "workspace['x'] is of type builtin_function_or_method"),
    "model": ({"job": Job(name="x")}, "workspace['job'] is of type Job"),
    "NaN": ({"ratio": math.nan}, "workspace['ratio'] is nan, which JSON does not know"),
    "infinity": ({"a": {"b": [1, -math.inf]}}, "workspace['a']['b'][1] is -inf"),
    "NUL": ({"name": "a\0b"}, "workspace['name'] contains a NUL character"),
    "NUL in a key": ({"a\0": 1}, "the key 'a\\x00' of workspace contains a NUL character"),
    "NUL beside a backslash": ({"x": "\\u0000", "y": ["\0"]}, "workspace['y'][0] contains a NUL"),
    "half a surrogate pair": ({"x": "\ud800"}, "workspace['x'] contains half of a surrogate pair"),
    "half a pair in a key": ({"\udc00": 1}, "the key '\\udc00' of workspace contains half"),
    "a tuple for a key": ({(1, 2): "x"}, "workspace has the key (1, 2): JSON keys are strings"),
    "NaN for a key": ({math.nan: 1}, "the key nan of workspace is nan"),
    "itself": (ITSELF, "is nested too deeply, or contains itself"),
    "not even a dict": (object(), "workspace is of type object"),
}


@pytest.mark.parametrize("workspace", GOOD.values(), ids=GOOD)
def test_what_json_knows_comes_back_as_it_was(workspace: Any) -> None:
    assert workspaces.load(workspaces.dump(workspace)) == workspace


def test_tuples_become_lists_and_simple_keys_strings() -> None:
    assert workspaces.load(workspaces.dump({"t": (1, 2), 5: "x"})) == {"t": [1, 2], "5": "x"}


def test_a_null_column_is_an_empty_workspace() -> None:
    assert workspaces.load(None) == {}


@pytest.mark.parametrize(("workspace", "message"), BAD.values(), ids=BAD)
def test_what_a_database_could_not_store_is_refused_by_its_place(
    workspace: Any, message: str
) -> None:
    with pytest.raises(InvalidWorkspace) as caught:
        workspaces.dump(workspace)
    assert message in str(caught.value)


def test_a_workspace_too_deep_for_python_is_refused() -> None:
    workspace: Any = {}
    for _ in range(100_000):
        workspace = {"a": workspace}
    with pytest.raises(InvalidWorkspace, match="nested too deeply"):
        workspaces.dump(workspace)


# -- with the database --


@pytest.fixture
def jobs(settings: Any) -> None:
    settings.JOBS = {"feed": ["tests.jobs.one"]}


@pytest.mark.django_db
@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("workspace", GOOD.values(), ids=GOOD)
def test_every_database_stores_what_is_accepted(workspace: Any) -> None:
    alone = Job.objects.create(name="feed", workspace=workspace)
    many = Job.objects.bulk_create([Job(name="feed", workspace=workspace) for _ in range(60)])
    for job in (alone, many[0], many[-1]):
        assert Job.objects.get(pk=job.pk).workspace == workspace


@pytest.mark.django_db
@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(("workspace", "message"), BAD.values(), ids=BAD)
def test_what_is_refused_is_refused_at_creation_and_leaves_no_row(
    workspace: Any, message: str
) -> None:
    with pytest.raises(InvalidWorkspace):
        Job.objects.create(name="feed", workspace=workspace)
    with pytest.raises(InvalidWorkspace):
        Job.objects.bulk_create([Job(name="feed"), Job(name="feed", workspace=workspace)])
    assert not Job.objects.exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("jobs")
def test_nesting_is_bounded_alike_on_every_database() -> None:
    """What one of them takes and another refuses would only be found out in production."""
    for depth in (20, 31, 33, 60, 90):
        workspace: Any = {}
        for _ in range(depth - 1):
            workspace = {"a": workspace}
        try:
            workspaces.dump(workspace)
        except InvalidWorkspace:
            continue
        job = Job.objects.create(name="feed", workspace=workspace)
        assert Job.objects.get(pk=job.pk).workspace == workspace
