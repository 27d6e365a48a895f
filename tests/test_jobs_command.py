"""The commands that look at jobs and intervene, and the one that guards a deploy."""

import datetime
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_dbq import engine
from django_dbq.management.commands import jobs as jobs_command
from django_dbq.models import Job, JobEvent, Worker
from django_dbq.storage import Queues
from django_dbq.testing import drain
from tests import process_jobs

pytestmark = pytest.mark.django_db

ONE, TWO, FAIL = "tests.jobs.one", "tests.jobs.two", "tests.jobs.fail"
ROOT = Path(__file__).resolve().parent.parent
HOUR = datetime.timedelta(hours=1)
SECRET = {"password": "sesame"}


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": [ONE, TWO],
        "fails": [FAIL, TWO],
        "approval": [{"wait_for": "approval"}, ONE],
        "group": [ONE, [ONE, FAIL], TWO],
        "map": [{"map": ONE, "over": "items", "into": "sent"}, TWO],
        "held back": [[ONE, {"task": TWO, "queue": "elsewhere"}], ONE],
    }


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def run(command: str, *arguments: Any, terminal: bool = False) -> str:
    """What the command writes to its standard output; it writes nothing to the other, and does all of it."""
    said, complaint = attempt(command, *arguments, terminal=terminal)
    assert complaint == ""
    return said


def attempt(command: str, *arguments: Any, terminal: bool = False) -> tuple[str, str]:
    """What the command writes to its standard output, and to the other with how it ends there."""
    out, err = Terminal() if terminal else StringIO(), StringIO()
    try:
        call_command(command, *map(str, arguments), stdout=out, stderr=err)
    except CommandError as error:
        err.write(f"{error}\n")
    said, complaint = out.getvalue(), err.getvalue()
    assert not [flaw for flaw in ("..", ".;", ";.") if flaw in said + complaint]
    assert "  " not in complaint + (
        "" if {"list", "show", "check_jobs"} & {command, *arguments} else said
    )
    return said, complaint


def states(*jobs: Job) -> list[str]:
    found = dict(Job.objects.values_list("pk", "state"))
    return [found[job.pk] for job in jobs]


def create(name: str = "feed", state: str | None = None, **fields: Any) -> Job:
    job: Job = Job.objects.create(name=name, **fields)
    if state is not None:
        Job.objects.filter(pk=job.pk).update(state=state)
    return job


# -- ids --


@pytest.mark.parametrize(
    "spelt",
    [
        str,
        lambda pk: pk.hex,
        lambda pk: str(pk).upper(),
        lambda pk: f"{pk}"[:-1],
        lambda pk: pk.hex[:-4],
    ],
    ids=["as it is", "without dashes", "in capitals", "all but one", "a beginning without dashes"],
)
def test_a_job_is_named_by_its_id_or_the_beginning_of_it(spelt: Callable[[uuid.UUID], str]) -> None:
    job, other = create(), create()
    assert str(job.pk)[:-4] != str(other.pk)[:-4]
    assert json.loads(run("jobs", "show", spelt(job.pk), "--json"))["id"] == str(job.pk)


@pytest.mark.parametrize("version", [1, 4, 7])
def test_every_length_of_a_beginning_finds_it(version: int) -> None:
    """Also of keys that no database sorts by their text."""
    texts = {1: "d9428888-122b-11e1-b85c-61cd3cbb3210", 4: "f47ac10b-58cc-4372-a567-0e02b2c3d479"}
    job = create(id=uuid.UUID(texts[version])) if version in texts else create()
    for length in range(1, 37):
        assert run("jobs", "list") != ""
        assert json.loads(run("jobs", "explain", str(job.pk)[:length], "--json"))["state"] == "NEW"


def test_a_beginning_that_is_not_unique() -> None:
    jobs = [create(id=uuid.UUID(int=number << 4)) for number in (1, 2)]
    said, complaint = attempt("jobs", "show", "0000")
    assert said == ""
    assert complaint.startswith("0000: several ids begin so, among them 00000000-")
    assert all(str(job.pk) in complaint for job in jobs)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("beef", "beef: there is no such job.\n"),
        (str(uuid.UUID(int=1)), f"{uuid.UUID(int=1)}: there is no such job.\n"),
        ("xyz", "xyz: this is not the id of a job, or the beginning of one.\n"),
        ("", ": this is not the id of a job, or the beginning of one.\n"),
        ("0" * 33, f"{'0' * 33}: this is not the id of a job, or the beginning of one.\n"),
        ("%", "%: this is not the id of a job, or the beginning of one.\n"),
    ],
)
def test_an_id_of_no_job(text: str, complaint: str) -> None:
    create(id=uuid.UUID(int=1 << 127))
    for verb in (["show"], ["explain"], ["fork"], ["send"]):
        assert attempt("jobs", *verb, text, *["x"] * (verb == ["send"])) == ("", complaint)


# -- list --


def test_list_shows_the_newest_first() -> None:
    first = create(queue_name="mail")
    second = create("fails", run_after=timezone.now() + HOUR)
    lines = run("jobs", "list").splitlines()
    assert [line.split()[:4] for line in lines] == [
        [str(second.pk), "NEW", "fails", FAIL],
        [str(first.pk), "NEW", "feed", ONE],
    ]
    assert "mail" in lines[1]


def test_list_has_a_heading_on_a_terminal_only() -> None:
    assert run("jobs", "list") == ""
    create()
    heading, line = run("jobs", "list", terminal=True).splitlines()
    assert heading.split() == [
        *(
            "id",
            "state",
            "name",
            "next",
            "task",
            "queue",
            "name",
            "attempt",
            "created",
            "run",
            "after",
        )
    ]
    assert [found.split() for found in run("jobs", "list").splitlines()] == [line.split()]


def test_list_is_limited() -> None:
    created = [create() for _ in range(3)]
    lines = run("jobs", "list", "--limit", 2).splitlines()
    assert [line.split()[0] for line in lines] == [str(job.pk) for job in created[:0:-1]]
    assert run("jobs", "list", "--limit", 2, terminal=True).splitlines()[-1] == (
        "These are the newest 2; there are more (--limit)."
    )
    assert len(run("jobs", "list", "--limit", 3, terminal=True).splitlines()) == 4


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--state", "FAILED"], ["fails"]),
        (["--state", "failed", "--state", "NEW"], ["fails", "mail", "feed"]),
        (["--state", "completed"], ["complete"]),
        (["--name", "fails"], ["fails"]),
        (["--queue", "mail"], ["mail"]),
        (["--queue", "mail", "--name", "fails"], []),
        ([], ["complete", "fails", "mail", "feed"]),
    ],
    ids=" ".join,
)
def test_list_filters(filters: list[str], expected: list[str]) -> None:
    made = {
        "feed": create(),
        "mail": create(queue_name="mail"),
        "fails": create("fails", "FAILED"),
        "complete": create("feed", "COMPLETE"),
    }
    listed = json.loads(run("jobs", "list", "--json", *filters))
    assert [row["id"] for row in listed] == [str(made[key].pk) for key in expected]


def test_list_as_json() -> None:
    job = create(priority=1)
    (row,) = json.loads(run("jobs", "list", "--json"))
    assert row.pop("created").startswith("2")
    assert row == {
        "id": str(job.pk),
        "state": "NEW",
        "name": "feed",
        "next_task": ONE,
        "queue_name": "default",
        "attempt": 0,
        "run_after": None,
        "parent": None,
        "position": None,
    }


def test_list_tells_members_from_jobs() -> None:
    jobs = [create("held back") for _ in range(2)]
    drain("default")
    parents = sorted(str(job.pk) for job in jobs)

    def listed(*filters: str) -> list[tuple[str | None, int | None]]:
        rows = json.loads(run("jobs", "list", "--json", *filters))
        return sorted((row["parent"] or "", row["position"]) for row in rows)

    alone = [("", None)] * 2
    members = {key: [(key, 0), (key, 1)] for key in parents}
    assert listed() == [*alone, *members[parents[0]], *members[parents[1]]]
    assert listed("--no-members") == listed("--no_members") == alone
    assert listed("--parent", parents[1]) == members[parents[1]]
    assert listed("--parent", parents[1][:-1], "--state", "NEW") == [(parents[1], 1)]
    assert attempt("jobs", "list", "--parent", "beef")[1] == "beef: there is no such job.\n"


def test_list_neither_shows_nor_reads_workspaces() -> None:
    create(workspace=SECRET)
    with CaptureQueriesContext(connection) as queries:
        for arguments in ([], ["--json"]):
            assert "sesame" not in run("jobs", "list", *arguments)
    assert not [query for query in queries if "workspace" in query["sql"]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list", "--state", "LOST"], "'LOST' is none of NEW, READY, PROCESSING"),
        (["list", "--limit", "0"], "1 or more"),
        (["list", "beef"], "unrecognized arguments"),
        (["show"], "the following arguments are required: ID"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: VERB"),
        (["fork", "beef", "--workspace", "[1]"], "a workspace is a JSON object"),
        (["fork", "beef", "--workspace", "{"], "this is not JSON"),
        (["send", "beef", "approval", "yes"], "this is not JSON"),
        (["list", "--limit", "few"], "'few' is not a whole number, 1 or more"),
        (["list", "--queue", ""], "'' is not the name of a queue"),
        (["list", "--parent", "beef", "--no-members"], "not allowed with argument"),
        (["send", "beef", "approval", "[" * 100_000], "this is not JSON"),
        (["retry"], "Name jobs by their ids, or by --state, --name, --queue and --parent."),
        (["cancel", "beef", "--state", "NEW"], "Ids and filters (--state, --name, "),
        (["cancel", "beef", "--no-members"], "do not go together"),
        (["cancel", "--yes"], "Name jobs by their ids, or by --state"),
        (["cancel", "--no-members", "--yes"], "Name jobs by their ids, or by --state"),
        (["retry", "--parent", "beef", "--from", "1"], "--from and --parent do not go together"),
    ],
    ids=lambda words: " ".join(words)[:40] if isinstance(words, list) else "",
)
def test_what_makes_no_sense_is_refused(arguments: list[str], complaint: str) -> None:
    job = create()
    assert complaint in attempt("jobs", *arguments)[1]
    assert states(job) == ["NEW"]


# -- show --


def test_show_tells_all_of_a_job_but_for_its_secrets() -> None:
    first = create("fails")
    job = create("group", workspace=SECRET, depends_on=[first], on_dependency_failure="proceed")
    later = create(depends_on=[job])
    drain()
    job.send("approval", {"code": "sesame"})
    JobEvent.objects.create(
        job=job, name="approval", payload={"code": "sesame"}, sent=timezone.now()
    )
    shown = json.loads(run("jobs", "show", job.pk, "--json"))
    assert "sesame" not in json.dumps(shown)
    assert {key: shown[key] for key in ("name", "state", "next_task", "step", "attempt")} == {
        "name": "group",
        "state": "FAILED",
        "next_task": "group",
        "step": 1,
        "attempt": 3,
    }
    assert shown["workspace_keys"] == ["password", "ran"]
    assert [(one["number"], one["task"], one["outcome"]) for one in shown["attempts"]] == [
        (1, ONE, "succeeded"),
        (2, "group", "waited"),
        (3, "group", "failed"),
    ]
    assert shown["attempts"][2]["error"].startswith("django_dbq.steps.MembersFailed: 1 of the 2")
    assert shown["attempts"][2]["worker"] == str(Worker.objects.get())
    assert 0 <= shown["attempts"][2]["seconds"] < 60
    assert shown["members"] == [
        {"round": 2, "state": "COMPLETE", "count": 1},
        {"round": 2, "state": "FAILED", "count": 1},
    ]
    (member,) = shown["members_not_complete"]
    assert (member["position"], member["state"], member["next_task"]) == (1, "FAILED", FAIL)
    assert shown["depends_on"] == [
        {"on_id": str(first.pk), "state": "failed", "mode": "all", "on_failure": "proceed"}
    ]
    assert shown["dependents"] == [{"job_id": str(later.pk), "state": "failed"}]
    assert [(one["name"], one["taken"]) for one in shown["events"]] == [("approval", 0)]


def test_show_tells_in_words_what_became_of_events() -> None:
    job = create()
    for number, name in enumerate(("go", "go on")):
        JobEvent.objects.create(job=job, name=name, sent=timezone.now(), taken=7 * number)
    waiting, taken = run("jobs", "show", job.pk).splitlines()[-2:]
    assert waiting.endswith("  not taken")
    assert taken.endswith("  taken by attempt 7")


def test_show_shows_what_may_be_secret_when_it_is_asked_to() -> None:
    job = create(workspace=SECRET)
    JobEvent.objects.create(job=job, name="go", payload="code", sent=timezone.now())
    Job.objects.update(result=[1])
    shown = json.loads(run("jobs", "show", job.pk, "--json", "--workspace"))
    assert (shown["workspace"], shown["result"]) == (SECRET, [1])
    assert shown["events"][0]["payload"] == "code"
    text = run("jobs", "show", job.pk, "--workspace")
    assert '{"password": "sesame"}' in text
    assert "code" in text


def test_show_as_text() -> None:
    job = create("group", workspace=SECRET)
    drain()
    text = run("jobs", "show", job.pk)
    assert "sesame" not in text
    lines = text.splitlines()
    assert lines[0].split() == ["id", str(job.pk)]
    assert ["workspace_keys", "password,", "ran"] in [line.split() for line in lines]
    assert "attempts" in lines
    at = lines.index("attempts")
    assert lines[at + 1].split() == [
        *("number", "step", "task", "outcome", "worker", "started", "took", "error")
    ]
    assert lines[at + 2].split()[:4] == ["1", "0", ONE, "succeeded"]
    assert lines[at + 4].split()[:4] == ["3", "1", "group", "failed"]
    for line in lines[at + 2 : at + 5]:
        assert re.fullmatch(r"\d+(\.\d+)? s", re.split("  +", line.strip())[6]), line
    assert "members_not_complete" in lines
    assert "depends_on" not in lines


def test_show_tells_in_words_how_long_attempts_took() -> None:
    job = create()
    started = timezone.now()
    job.attempts.create(
        number=1, step=0, task=ONE, outcome="failed", worker="w", error="E",
        started=started, finished=started + datetime.timedelta(seconds=3900.25),
    )  # fmt: skip
    assert run("jobs", "show", job.pk).splitlines()[-1].endswith("  1 h 5 min  E")
    assert json.loads(run("jobs", "show", job.pk, "--json"))["attempts"][0]["seconds"] == 3900.25


def test_show_leaves_out_what_is_empty() -> None:
    job = create()
    lines = run("jobs", "show", job.pk).splitlines()
    assert not [line for line in lines if len(line.split()) < 2]
    assert not [line for line in lines if line.startswith(("workspace", "run_after", "worker"))]
    assert "lost             0" in lines


def test_show_tells_who_holds_a_job() -> None:
    create()
    worker = Worker.objects.create(
        label="w", hostname="h", pid=1, queues="all", started=timezone.now()
    )
    (job,) = engine.claim(worker, Queues(), 1, timezone.now(), "default")
    assert json.loads(run("jobs", "show", job.pk, "--json"))["worker"] == "w"
    Worker.objects.all().delete()
    assert json.loads(run("jobs", "show", job.pk, "--json"))["worker"] == f"worker {worker.pk}"


def test_show_is_brief_of_what_is_many() -> None:
    job = create("map", workspace={"items": list(range(100))})
    call_command("worker", once=True)
    shown = json.loads(run("jobs", "show", job.pk, "--json"))
    assert shown["members"] == [{"round": 1, "state": "NEW", "count": 100}]
    assert [one["position"] for one in shown["members_not_complete"]] == list(range(20))
    for number in range(2, 40):
        job.attempts.create(
            number=number, step=0, task=ONE, outcome="failed", worker="w", error=f"E{number}",
            started=timezone.now(), finished=timezone.now(),
        )  # fmt: skip
    attempts = json.loads(run("jobs", "show", job.pk, "--json"))["attempts"]
    assert [one["number"] for one in attempts] == list(range(20, 40))


def test_show_of_a_workspace_that_is_no_dict() -> None:
    job = create()
    Job.objects.update(workspace=["sesame"])
    assert json.loads(run("jobs", "show", job.pk, "--json"))["workspace_keys"] == []


# -- explain --


def test_explain() -> None:
    job = create()
    assert run("jobs", "explain", job.pk) == (
        "NEW: It is due, and no living worker serves its queue 'default'.\n"
        "Start a worker: manage.py worker default.\n"
    )
    explained = json.loads(run("jobs", "explain", job.pk, "--json"))
    assert list(explained) == ["state", "reason", "what_to_do", "details"]
    assert explained["details"]["cause"] == "unserved"
    assert explained["details"]["id"] == str(job.pk)


# -- retry, cancel, pause, resume --

VERBS = {
    "retry": ("FAILED", "READY"),
    "cancel": ("NEW", "CANCELLED"),
    "pause": ("NEW", "PAUSED"),
    "resume": ("PAUSED", "NEW"),
}
DONE = {"retry": "retried", "cancel": "cancelled", "pause": "paused", "resume": "resumed"}


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_verb_for_several_ids(verb: str) -> None:
    before, after = VERBS[verb]
    made = [create(state=before) for _ in range(3)]
    assert run("jobs", verb, made[0].pk, made[2].pk.hex) == ""
    assert states(*made) == [after, before, after]
    assert run("jobs", verb, made[1].pk, terminal=True) == f"{made[1].pk} {DONE[verb]}\n"


def test_one_failing_id_does_not_stop_the_others(verb: str) -> None:
    before, after = VERBS[verb]
    made = [create(state=before) for _ in range(2)]
    complete = create(state="COMPLETE")
    said, complaint = attempt("jobs", verb, made[0].pk, "beef", complete.pk, made[1].pk)
    assert said == ""
    assert states(*made, complete) == [after, after, "COMPLETE"]
    lines = complaint.splitlines()
    assert lines[0] == "beef: there is no such job."
    assert lines[1].startswith(f"{complete.pk}: it is COMPLETE; ")
    assert lines[2:] == [f"2 of 4 jobs were not {DONE[verb]}."]


def test_an_id_that_is_named_twice_is_one_job(verb: str) -> None:
    before, after = VERBS[verb]
    job = create(state=before)
    assert run("jobs", verb, job.pk, job.pk) == ""
    assert states(job) == [after]


def test_an_error_of_one_job_does_not_stop_the_others(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = VERBS[verb]
    made = [create(state=before) for _ in range(3)]
    real = getattr(engine, verb)

    def sometimes(asked: Any, *arguments: Any) -> Any:
        if made[1].pk in (asked, *(asked if isinstance(asked, list) else ())):
            raise ZeroDivisionError("by zero")
        return real(asked, *arguments)

    monkeypatch.setattr(jobs_command.engine, verb, sometimes)
    assert attempt("jobs", verb, *(job.pk for job in made))[1].splitlines() == [
        f"{made[1].pk}: ZeroDivisionError: by zero",
        f"1 of 3 jobs were not {DONE[verb]}.",
    ]
    assert states(*made) == [after, before, after]


@pytest.mark.parametrize("step", ["1", TWO, "two"])
def test_retry_from_a_step(step: str) -> None:
    job = create("fails", "FAILED")
    assert run("jobs", "retry", job.pk, "--from", step) == ""
    job.refresh_from_db()
    assert (job.state, job.next_task, job.step) == ("READY", TWO, 1)


def test_retry_from_a_step_that_there_is_not() -> None:
    job = create("fails", "FAILED")
    _, complaint = attempt("jobs", "retry", job.pk, "--from", "three")
    assert complaint.startswith(f"{job.pk}: The job 'fails' has no step 'three'.")
    assert states(job) == ["FAILED"]


def test_what_runs_can_be_paused_and_resumed() -> None:
    create()
    worker = Worker.objects.create(
        label="w", hostname="h", pid=1, queues="all", started=timezone.now()
    )
    (job,) = engine.claim(worker, Queues(), 1, timezone.now(), "default")

    def asked(verb: str) -> tuple[str, bool, int | None, int]:
        assert run("jobs", verb, job.pk, terminal=True) == f"{job.pk} {DONE[verb]}\n"
        row = Job.objects.get()
        return row.state, row.pausing, row.worker_id, row.attempt

    assert asked("pause") == ("PROCESSING", True, worker.pk, 1)
    assert asked("resume") == ("PROCESSING", False, worker.pk, 1)
    said, complaint = attempt("jobs", "resume", job.pk)
    assert (said, complaint) == (
        "",
        f"{job.pk}: it is PROCESSING; only PAUSED jobs can be resumed.\n1 of 1 jobs were not resumed.\n",
    )
    assert asked("pause") == ("PROCESSING", True, worker.pk, 1)
    engine.bury(worker.pk, "gone", timezone.now(), "default")
    assert states(job) == ["PAUSED"]
    assert asked("resume") == ("READY", False, None, 1)
    drain()
    assert states(job) == ["COMPLETE"]


# -- the same in bulk --


def test_a_verb_for_all_that_match(verb: str) -> None:
    before, after = VERBS[verb]
    made = [create(state=before, queue_name="mail") for _ in range(3)]
    others = [create("fails", before, queue_name="mail"), create(state=before)]
    complete = create(state="COMPLETE", queue_name="mail")
    arguments = ["--queue", "mail", "--name", "feed", "--state", before, "--yes"]
    assert run("jobs", verb, *arguments) == ""
    assert states(*made) == [after] * 3
    assert states(*others, complete) == [before, before, "COMPLETE"]


def test_in_bulk_it_says_on_a_terminal_how_many_there_are(verb: str) -> None:
    before, _ = VERBS[verb]
    made = [create(state=before) for _ in range(2)]
    lines = run("jobs", verb, "--name", "feed", "--yes", terminal=True).splitlines()
    assert lines[0] == f"Jobs to {verb}: 2"
    assert sorted(lines[1:]) == sorted(f"{job.pk} {DONE[verb]}" for job in made)


def test_in_bulk_states_in_which_it_cannot_be_done_do_not_match(verb: str) -> None:
    complete = create(state="COMPLETE")
    assert run("jobs", verb, "--name", "feed", "--yes") == ""
    assert run("jobs", verb, "--name", "feed", terminal=True) == f"Jobs to {verb}: 0\n"
    assert states(complete) == ["COMPLETE"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["retry", "--state", "WAITING"],
            "No job that is WAITING can be retried; those that are FAILED, CANCELLED, BLOCKED can.",
        ),
        (
            ["cancel", "--state", "NEW", "--state", "FAILED", "--state", "COMPLETE"],
            "No job that is FAILED or COMPLETE can be cancelled; those that are NEW, READY, ",
        ),
        (["pause", "--state", "PAUSED"], "No job that is PAUSED can be paused; "),
        (["resume", "--state", "NEW"], "those that are PAUSED, PROCESSING, STOPPING can."),
    ],
)
def test_in_bulk_a_state_in_which_it_can_never_be_done_is_refused(
    arguments: list[str], complaint: str
) -> None:
    job = create()
    assert complaint in attempt("jobs", *arguments, "--yes")[1]
    assert states(job) == ["NEW"]


def test_in_bulk_an_empty_name_is_that_of_no_job(verb: str) -> None:
    before, _ = VERBS[verb]
    job = create(state=before)
    assert run("jobs", verb, "--state", before, "--name", "", "--yes") == ""
    assert states(job) == [before]


def test_in_bulk_it_needs_a_yes_where_nobody_can_be_asked(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = VERBS[verb]
    made = [create(state=before) for _ in range(2)]
    monkeypatch.setattr(sys, "stdin", StringIO("y\n"))
    assert attempt("jobs", verb, "--name", "feed") == (
        "",
        f"2 jobs would be {DONE[verb]}: say --yes to have it done.\n",
    )
    assert states(*made) == [before] * 2


@pytest.mark.parametrize(
    ("answer", "agreed"), [("y", True), ("YES ", True), ("", False), ("no", False)]
)
def test_in_bulk_it_asks(
    verb: str, answer: str, agreed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = VERBS[verb]
    made = [create(state=before) for _ in range(2)]
    asked = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", reply)
    said, complaint = attempt("jobs", verb, "--name", "feed")
    assert asked == [f"2 jobs would be {DONE[verb]}. Go on? [y/N] "]
    assert (said, complaint) == ("", "" if agreed else f"No job was {DONE[verb]}.\n")
    assert states(*made) == [after if agreed else before] * 2


def test_in_bulk_more_than_fit_into_one_look(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_command, "BATCH", 2)
    before, after = VERBS[verb]
    made = [create(state=before) for _ in range(5)]
    assert run("jobs", verb, "--state", before, "--yes") == ""
    assert states(*made) == [after] * 5


def test_in_bulk_what_is_created_meanwhile_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_command, "BATCH", 1)
    create()
    real = engine.cancel

    def cancel_and_create(*arguments: Any) -> int:
        create()
        return real(*arguments)

    monkeypatch.setattr(jobs_command.engine, "cancel", cancel_and_create)
    assert run("jobs", "cancel", "--name", "feed", "--yes") == ""
    assert sorted(Job.objects.values_list("state", flat=True)) == ["CANCELLED", "NEW"]


def test_in_bulk_members_go_with_their_parents(verb: str) -> None:
    """Whichever comes first: what has been done to a member already is no failure."""
    for _ in range(3):
        create("held back")
    drain("default")
    if verb == "resume":
        assert all(job.pause() for job in Job.objects.filter(parent=None))
    if verb == "retry":
        assert all(job.cancel() for job in Job.objects.filter(parent=None))
    assert run("jobs", verb, "--name", "held back", "--yes") == ""
    expected = {"cancel": "CANCELLED", "pause": "PAUSED"}.get(verb, "WAITING")
    assert set(Job.objects.filter(parent=None).values_list("state", flat=True)) == {expected}
    left = set(Job.objects.filter(parent__isnull=False).values_list("state", flat=True))
    rested = {"retry": "READY", "resume": "NEW"}.get(verb, expected)
    assert left == {"COMPLETE", rested}


def failed_member(state: str, **fields: Any) -> tuple[Job, Job]:
    """A job in this state at its group, and a member of it that has failed."""
    job = create("held back")
    drain("default")
    member = job.children.get(position=1)
    Job.objects.filter(pk=member.pk).update(state="FAILED")
    Job.objects.filter(pk=job.pk).update(state=state, **fields)
    return job, member


def test_in_bulk_from_a_step_only_jobs_that_are_members_of_nothing_are_retried() -> None:
    ended, waiting = failed_member("FAILED"), failed_member("WAITING")
    assert run("jobs", "retry", "--state", "FAILED", "--from", "0", "--yes") == ""
    assert states(*ended, *waiting) == ["READY", "FAILED", "WAITING", "FAILED"]


@pytest.mark.parametrize(
    ("state", "fields", "retried"),
    [
        ("WAITING", {}, True),
        ("PAUSED", {}, True),
        ("WAITING", {"round": 9}, False),
        ("COMPLETE", {}, False),
        ("CANCELLED", {}, False),
    ],
)
def test_in_bulk_members_are_retried_if_their_parents_wait_for_them(
    state: str, fields: dict[str, Any], retried: bool
) -> None:
    job, member = failed_member(state, **fields)
    said = run("jobs", "retry", "--state", "FAILED", "--yes", terminal=True)
    assert said.splitlines()[0] == f"Jobs to retry: {retried:d}"
    assert states(job, member) == [state, "READY" if retried else "FAILED"]


def test_a_member_that_is_refused_leads_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    job, member = failed_member("COMPLETE")
    monkeypatch.setattr(jobs_command.engine, "retry", lambda *arguments: None)
    assert attempt("jobs", "retry", member.pk)[1].splitlines()[0] == (
        f"{member.pk}: it is FAILED, and its parent does not wait for it; retry its parent: "
        f"manage.py jobs retry {job.pk}."
    )


def test_in_bulk_members_of_one_job_or_none() -> None:
    jobs = [create("held back") for _ in range(2)]
    drain("default")
    members = [job.children.get(position=1) for job in jobs]
    assert run("jobs", "pause", "--parent", jobs[0].pk, "--yes") == ""
    assert states(*jobs, *members) == ["WAITING", "WAITING", "PAUSED", "NEW"]
    assert run("jobs", "resume", "--state", "PAUSED", "--no-members", "--yes") == ""
    assert states(*members) == ["PAUSED", "NEW"]


def test_in_bulk_failures_are_told_one_by_one() -> None:
    made = [create("fails", "FAILED") for _ in range(2)]
    good = create("feed", "FAILED")
    Job.objects.filter(pk=made[0].pk).update(name="gone")
    _, complaint = attempt("jobs", "retry", "--state", "FAILED", "--from", "1", "--yes")
    first, last = complaint.splitlines()
    assert first.startswith(f"{made[0].pk}: JOBS has no job named 'gone'")
    assert last == "1 of 3 jobs were not retried."
    assert states(*made, good) == ["FAILED", "READY", "READY"]


# -- fork and send --


def test_fork_prints_the_id_of_the_copy() -> None:
    job = create("fails", workspace={"key": 1})
    drain()
    key = run("jobs", "fork", job.pk, "--from", "two").strip()
    forked = Job.objects.get(pk=key)
    assert (forked.forked_from_id, forked.state, forked.next_task) == (job.pk, "NEW", TWO)
    assert forked.workspace == Job.objects.get(pk=job.pk).workspace
    key = run("jobs", "fork", job.pk, "--workspace", '{"key": 2}').strip()
    forked = Job.objects.get(pk=key)
    assert (forked.next_task, forked.workspace) == (FAIL, {"key": 2})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--from", "three"], "has no step 'three'"),
        (["--from", "9"], "has no step 9"),
        (["--workspace", '{"nul": "\\u0000"}'], "nul"),
    ],
)
def test_fork_says_why_it_cannot(arguments: list[str], complaint: str) -> None:
    job = create()
    said, complained = attempt("jobs", "fork", job.pk, *arguments)
    assert said == ""
    assert complained.startswith(f"{job.pk}: ")
    assert complaint in complained
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "payload"), [([], None), (['{"by": "me"}'], {"by": "me"}), (["true"], True)]
)
def test_send(arguments: list[str], payload: Any) -> None:
    job = create("approval")
    drain()
    assert run("jobs", "send", job.pk, "approval", *arguments) == ""
    drain()
    job.refresh_from_db()
    assert (job.state, job.workspace["approval"]) == ("COMPLETE", payload)


def test_send_says_on_a_terminal_that_it_was_sent() -> None:
    job = create("approval")
    assert run("jobs", "send", job.pk, "approval", terminal=True) == f"{job.pk} was sent approval\n"


def test_send_says_why_it_cannot() -> None:
    job = create("approval")
    assert run("jobs", "send", job.pk, "approval") == ""
    for state, why in (
        ("NEW", "it has been sent before, and not been taken"),
        ("CANCELLED", "it has ended"),
    ):
        Job.objects.filter(pk=job.pk).update(state=state)
        complaint = attempt("jobs", "send", job.pk, "approval")[1]
        assert complaint == f"{job.pk}: it is {state}; {why}.\n"
    complaint = attempt("jobs", "send", job.pk, "approval", '"\\u0000"')[1]
    assert complaint.startswith(f"{job.pk}: the payload")


def test_send_refuses_what_no_step_waits_for() -> None:
    job, other = create("approval"), create()
    assert attempt("jobs", "send", job.pk, "aproval")[1] == (
        f"{job.pk}: no step of 'approval' waits for 'aproval' (did you mean 'approval'?); it waits for approval.\n"
    )
    assert attempt("jobs", "send", other.pk, "approval")[1] == (
        f"{other.pk}: no step of 'feed' waits for 'approval'; it waits for none.\n"
    )
    assert not JobEvent.objects.exists()


def test_send_sends_nothing_to_a_job_whose_member_waits(settings: Any) -> None:
    settings.JOBS = {"inner": [[{"wait_for": "approval"}, "tests.pipelines.tasks.a"]]}
    job = create("inner")
    drain()
    assert attempt("jobs", "send", job.pk, "approval")[1] == (
        f"{job.pk}: no step of 'inner' waits for 'approval'; a step in a group does: send it to that member "
        f"(`manage.py jobs list --parent {job.pk} --state WAITING`).\n"
    )
    member = job.children.get(position=0)
    hint = f"jobs list --parent {job.pk} --state WAITING --json".split()
    assert [row["id"] for row in json.loads(run(*hint))] == [str(member.pk)]
    assert attempt("jobs", "send", member.pk, "approval")[1] == ""
    assert JobEvent.objects.get().job == member


# -- check_jobs --


def test_check_jobs_is_content_with_one_line() -> None:
    assert run("check_jobs") == "The settings know the steps of all unfinished jobs: 0\n"
    create()
    create("map")
    create("fails", "COMPLETE")
    assert run("check_jobs") == "The settings know the steps of all unfinished jobs: 2\n"
    assert run("check_jobs", "--json") == "[]\n"


@pytest.mark.parametrize(
    "state", ["NEW", "READY", "PROCESSING", "STOPPING", "WAITING", "BLOCKED", "PAUSED"]
)
def test_check_jobs_finds_unfinished_jobs_in_every_state(state: str) -> None:
    job = create(state=state)
    Job.objects.update(next_task="tests.jobs.ones")
    said, complaint = attempt("check_jobs")
    first, problem, hint = said.splitlines()
    oldest = f"{timezone.localtime(job.created):%Y-%m-%d %H:%M:%S}"
    assert first == f"feed  tests.jobs.ones  {state}  jobs: 1  oldest: {oldest}"
    assert problem == (
        "    The job 'feed' has no step 'tests.jobs.ones' (did you mean 'tests.jobs.one'?); "
        "it has tests.jobs.one, tests.jobs.two."
    )
    assert hint == (
        '    Put "renamed_from": "tests.jobs.ones" at the step that has taken its place, or cancel these jobs and '
        "retry them from another step (manage.py jobs retry ID --from STEP)."
    )
    assert complaint == "1 of 1 unfinished jobs do not fit the settings.\n"


@pytest.mark.parametrize("state", ["COMPLETE", "FAILED", "CANCELLED"])
def test_check_jobs_leaves_those_that_have_ended(state: str) -> None:
    create(state=state)
    Job.objects.update(name="gone")
    run("check_jobs")


def test_check_jobs_lists_kinds_and_counts_them() -> None:
    now = timezone.now()
    for number in range(3):
        job = create(run_after=now + HOUR)
        Job.objects.filter(pk=job.pk).update(name="gone", created=now - number * HOUR, step=number)
    Job.objects.filter(pk=create(state="PAUSED").pk).update(name="gone")
    Job.objects.filter(pk=create().pk).update(next_task="")
    create()
    said, complaint = attempt("check_jobs", "--json")
    assert complaint == "5 of 6 unfinished jobs do not fit the settings.\n"
    found = json.loads(said)
    assert [
        (one["name"], one["next_task"], one["state"], one["members"], one["count"]) for one in found
    ] == [
        ("feed", "", "NEW", False, 1),
        ("gone", ONE, "NEW", False, 3),
        ("gone", ONE, "PAUSED", False, 1),
    ]
    oldest = datetime.datetime.fromisoformat(found[1]["oldest"])
    assert abs(oldest - (now - 2 * HOUR)) < datetime.timedelta(seconds=1)
    assert found[1]["problem"] == "JOBS has no job named 'gone'"
    assert found[1]["hint"].startswith("Restore the entry, or give its jobs the name")
    assert "(no step)  NEW  jobs: 1" in attempt("check_jobs")[0]


def test_check_jobs_follows_places_paths_and_former_names(settings: Any) -> None:
    create()
    settings.JOBS = {"feed": [TWO, ONE]}
    run("check_jobs")
    settings.JOBS = {"feed": [TWO, {"task": FAIL, "renamed_from": ONE}]}
    run("check_jobs")
    settings.JOBS = {"feed": [[TWO, ONE]]}
    run("check_jobs")
    settings.JOBS = {"feed": [TWO]}
    assert attempt("check_jobs")[1] == "1 of 1 unfinished jobs do not fit the settings.\n"


def test_check_jobs_finds_an_entry_that_is_not_valid(settings: Any) -> None:
    create()
    settings.JOBS = {"feed": [ONE, "no path"]}
    said, _ = attempt("check_jobs")
    assert "The entry 'feed' of JOBS is not valid (" in said
    assert "Mend the entry (manage.py check tells how)." in said


def test_check_jobs_finds_members_whose_step_has_left_its_group(settings: Any) -> None:
    create("held back")
    drain("default")
    run("check_jobs")
    settings.JOBS = {"held back": [[ONE, FAIL], TWO]}
    said, complaint = attempt("check_jobs", "--json")
    (found,) = json.loads(said)
    assert (found["next_task"], found["members"], found["count"]) == (TWO, True, 1)
    assert found["problem"] == (
        "the step 'tests.jobs.two' of 'held back' is in no group any more; its members would end after it"
    )
    assert complaint == "1 of 2 unfinished jobs do not fit the settings.\n"
    settings.JOBS = {"held back": [ONE, TWO]}
    kinds = {
        (one["next_task"], one["state"]) for one in json.loads(attempt("check_jobs", "--json")[0])
    }
    assert kinds == {("group", "WAITING"), (TWO, "NEW")}
    assert "members: 1" in attempt("check_jobs")[0]


def test_check_jobs_tells_names_apart_that_a_database_does_not(settings: Any) -> None:
    """MySQL and MariaDB compare without case."""
    create()
    settings.JOBS = {"Feed": [ONE]}
    create("Feed")
    (found,) = json.loads(attempt("check_jobs", "--json")[0])
    assert (found["name"], found["count"]) == ("feed", 1)


def test_check_jobs_reads_kinds_and_not_jobs() -> None:
    Job.objects.bulk_create(Job(name=name) for name in ("feed", "map") for _ in range(300))
    with CaptureQueriesContext(connection) as queries:
        run("check_jobs")
    assert len(queries) == 1
    assert "workspace" not in queries[0]["sql"]


# -- as processes --


def process(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """``manage.py`` with the test's own database, and nobody at its terminal."""
    settings = connection.settings_dict
    database = {
        key: settings[key] for key in ("NAME", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS")
    }
    return subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.process_settings",
            "PYTHONPATH": str(ROOT),
            "TEST_DATABASE": json.dumps(database, default=str),
        },
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.django_db(transaction=True)
def test_exit_codes_of_processes(settings: Any) -> None:
    settings.JOBS = process_jobs.JOBS
    first, second, third = (create("steps") for _ in range(3))
    done = process("jobs", "pause", str(first.pk), "beef", str(second.pk))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "beef: there is no such job.",
        "CommandError: 1 of 3 jobs were not paused.",
    ]
    assert states(first, second, third) == ["PAUSED", "PAUSED", "NEW"]
    done = process("jobs", "resume", str(first.pk), str(second.pk))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = process("jobs", "cancel", "--name", "steps")
    assert (done.returncode, done.stdout) == (1, "")
    assert "3 jobs would be cancelled: say --yes" in done.stderr
    done = process("jobs", "cancel", "--name", "steps", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert states(first, second, third) == ["CANCELLED"] * 3
    done = process("jobs", "explain", str(first.pk))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("CANCELLED: It was cancelled ")
    assert process("jobs", "show", "beef").returncode == 1
    assert process("jobs").returncode == 2


@pytest.mark.django_db(transaction=True)
def test_exit_codes_of_check_jobs(settings: Any) -> None:
    settings.JOBS = process_jobs.JOBS
    job = create("steps")
    done = process("check_jobs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "The settings know the steps of all unfinished jobs: 1\n"
    Job.objects.filter(pk=job.pk).update(next_task="gone")
    done = process("check_jobs")
    assert done.returncode == 1
    assert done.stdout.startswith("steps  gone  NEW  jobs: 1")
    assert done.stderr == "CommandError: 1 of 1 unfinished jobs do not fit the settings.\n"


@pytest.mark.django_db(transaction=True)
def test_who_reads_only_the_beginning_ends_a_command_quietly(settings: Any) -> None:
    settings.JOBS = process_jobs.JOBS
    job = create("steps")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for arguments in (
            *(["jobs", "list"], ["jobs", "show", str(job.pk)], ["jobs", "explain", str(job.pk)]),
            *(["check_jobs"], ["queues"], ["queue_depth"], ["job_graph", "steps"]),
        ):
            done = process(*arguments, stdout=writer)
            assert (done.returncode, done.stderr) == (1, ""), arguments
    finally:
        os.close(writer)


def test_help_says_what_there_is() -> None:
    done = process("jobs", "--help")
    assert done.returncode == 0
    for verb in ("list", "show", "explain", *VERBS, "fork", "send"):
        assert f"    {verb}  " in done.stdout
        help_of = process("jobs", verb, "--help")
        assert (help_of.returncode, help_of.stderr) == (0, "")
        assert f"jobs {verb} [-h]" in help_of.stdout
