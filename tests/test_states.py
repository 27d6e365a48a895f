"""The state machine: what leads where, what is derived from it, and that the drawings show it as it is."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from django_dbq import states
from django_dbq.states import TRANSITIONS, Event, State, Transition, sources, target, targets

DRAWINGS = Path(__file__).parent.parent / "docs" / "states"


def test_the_table_of_the_design() -> None:
    held = ("PROCESSING", "STOPPING")
    resting = ("NEW", "READY", "WAITING", "BLOCKED")  # nobody runs it
    expected = {
        *(("created", None, state) for state in ("NEW", "WAITING", "BLOCKED")),
        ("claimed", "NEW", "PROCESSING"),
        ("claimed", "READY", "PROCESSING"),
        *(("handed back", state, back) for state in held for back in ("NEW", "READY")),
        ("worker told to stop", "PROCESSING", "STOPPING"),
        *(("step done", state, "READY") for state in held),
        *(("last step done", state, "COMPLETE") for state in held),
        *(("tried again", state, "READY") for state in held),
        *(("failed for good", state, "FAILED") for state in held),
        ("lost", "PROCESSING", "READY"),
        ("lost, on hold", "PROCESSING", "PAUSED"),
        *(("waits for others", state, "WAITING") for state in held),
        *(("what it waits for is done", "WAITING", state) for state in ("NEW", "READY")),
        ("one of them has failed", "WAITING", "BLOCKED"),
        ("that one is retried", "BLOCKED", "WAITING"),
        *(("paused", state, "PAUSED") for state in (*resting, *held)),
        *(("resumed", "PAUSED", state) for state in resting),
        *(("cancelled", state, "CANCELLED") for state in (*resting, *held, "PAUSED")),
        *(
            ("retried", state, then)
            for state in ("FAILED", "CANCELLED", "BLOCKED")
            for then in ("READY", "WAITING")
        ),
    }
    assert {(t.event.value, t.source, t.target) for t in TRANSITIONS} == expected
    assert len(TRANSITIONS) == len(expected)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("CLAIMABLE", {"NEW", "READY"}),
        ("HELD", {"PROCESSING", "STOPPING"}),
        ("FINISHED", {"COMPLETE", "FAILED", "CANCELLED"}),
        (
            "UNFINISHED",
            {"NEW", "READY", "PROCESSING", "STOPPING", "WAITING", "BLOCKED", "PAUSED"},
        ),
        ("DELETABLE", {"COMPLETE", "FAILED", "CANCELLED", "STOPPING"}),
    ],
)
def test_groups_of_states(group: str, expected: set[str]) -> None:
    assert set(getattr(states, group)) == expected


def test_every_state_is_entered_and_leads_to_an_end() -> None:
    """But for PAUSED, from which a person sends the job on."""
    assert {t.target for t in TRANSITIONS} == set(State)
    assert not [t for t in TRANSITIONS if t.source is State.COMPLETE]
    assert set(states.FINISHED) | set(states.UNFINISHED) == set(State)
    assert not set(states.FINISHED) & set(states.UNFINISHED)
    by_itself = [t for t in TRANSITIONS if t.event not in states.BY_HAND]
    stuck = {s for s in State if not any(t.source is s for t in by_itself)}
    assert stuck == {*states.FINISHED, State.PAUSED}
    for state in set(State) - stuck:
        reached = {state}
        for _ in State:
            reached |= {t.target for t in by_itself if t.source in reached}
        assert reached & set(states.FINISHED), state


def test_what_people_do_leads_from_and_to_whole_groups() -> None:
    """From each of them to each: the drawing says no more than that."""
    for event in states.BY_HAND:
        ways = {(t.source, t.target) for t in TRANSITIONS if t.event is event}
        assert ways == set(itertools.product(sources(event), targets(event)))


def test_whatever_is_paused_can_go_back_to_where_it_was() -> None:
    """But for what was running: its step ends first."""
    assert set(targets(Event.RESUMED)) == set(sources(Event.PAUSED)) - set(states.HELD)
    assert set(sources(Event.CANCELLED)) == {*sources(Event.PAUSED), State.PAUSED}


def test_sources_and_targets_of_events() -> None:
    assert sources(Event.CREATED) == ()
    assert targets(Event.CREATED) == (State.NEW, State.WAITING, State.BLOCKED)
    assert sources(Event.CLAIMED) == (State.NEW, State.READY)
    assert target(Event.CLAIMED) is State.PROCESSING
    assert target(Event.FAILED_FOR_GOOD) is State.FAILED
    assert sources(Event.LOST) == sources(Event.LOST_AND_HELD) == (State.PROCESSING,)
    assert target(Event.LOST_AND_HELD) is State.PAUSED
    assert sources(Event.WAITS) == (State.PROCESSING, State.STOPPING)
    assert target(Event.WAITS) is State.WAITING
    assert sources(Event.FREED) == sources(Event.BLOCKED) == (State.WAITING,)
    assert sources(Event.UNBLOCKED) == (State.BLOCKED,)
    assert sources(Event.RETRIED) == (State.FAILED, State.CANCELLED, State.BLOCKED)
    for event in (Event.CREATED, Event.HANDED_BACK, Event.FREED, Event.RESUMED, Event.RETRIED):
        with pytest.raises(ValueError, match="too many values"):
            target(event)  # leads to one of several


def test_completed_is_another_word_for_complete() -> None:
    assert State.COMPLETED is State.COMPLETE
    assert State("COMPLETED") is State.COMPLETE
    assert "COMPLETED" not in State.values
    with pytest.raises(ValueError, match="'FINISHED' is not a valid State"):
        State("FINISHED")


# -- the drawings --


def test_the_dot_drawing_is_up_to_date() -> None:
    assert (DRAWINGS / "job.dot").read_text() == states.dot(), "run `make states`"


def test_the_svg_drawing_is_up_to_date() -> None:
    svg = (DRAWINGS / "job.svg").read_text()
    assert svg.endswith(states.fingerprint(states.dot())), "run `make states`"
    for state in {t.target for t in TRANSITIONS}:
        assert f">{state.value}</text>" in svg


def test_a_change_of_the_machine_makes_the_drawings_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = states.dot()
    more = Transition(Event.CLAIMED, State.FAILED, State.PROCESSING)
    monkeypatch.setattr(states, "TRANSITIONS", (*TRANSITIONS, more))
    assert states.dot() != before
    assert states.fingerprint(states.dot()) != states.fingerprint(before)


def arrows() -> list[str]:
    """Those of the drawing, as their DOT text."""
    return [line.strip() for line in states.dot().splitlines() if " -> " in line]


def test_events_between_the_same_states_share_an_arrow() -> None:
    held, claimable = "cluster_PROCESSING", "cluster_NEW"
    ends = [arrow.partition(" [")[0] for arrow in arrows()]
    for tail, head, count in (
        ("start", "NEW", 1),
        ("PROCESSING", "READY", 2),
        ("WAITING", "NEW", 1),
    ):
        assert ends.count(f"{tail} -> {head}") == count
    back = "constraint=false"
    step_done = "step done\\ntried again"
    assert f'PROCESSING -> READY [label="{step_done}" {back} ltail={held}]' in arrows()
    assert f"PROCESSING -> READY [label=lost {back}]" in arrows()
    both = f"{back} lhead={claimable} ltail={held}"
    assert f'PROCESSING -> NEW [label="handed back" {both}]' in arrows()


def test_the_arrows_stand_for_the_transitions_and_for_nothing_else() -> None:
    frames = {f"cluster_{frame[0]}": frame for frame in states.FRAMES}
    drawn = []
    for arrow in arrows():
        found = re.fullmatch(r'"?(.+?)"? -> "?(.+?)"? \[label="?([^"\]=]+?)"?( \w+=.*)?\]', arrow)
        assert found, arrow
        tail, head, label, more = found.groups()
        about = dict(pair.split("=") for pair in (more or "").split())
        if tail.endswith(" from"):
            ends = [sources(Event(label)), targets(Event(label))]
        else:
            ends = [
                frames[about[side]] if side in about else (None if end == "start" else State(end),)
                for side, end in (("ltail", tail), ("lhead", head))
            ]
        events = [Event(event) for event in label.split("\\n")]
        drawn += [(event, *way) for event in events for way in itertools.product(*ends)]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(t.event, t.source, t.target) for t in TRANSITIONS}


def test_what_people_do_names_its_states() -> None:
    nodes = [line.strip() for line in states.dot().splitlines() if " -> " not in line]
    for event in states.BY_HAND:
        for side, ends in (("from", sources(event)), ("to", targets(event))):
            (node,) = [line for line in nodes if line.startswith(f'"{event} {side}" [')]
            label = node.partition("label=")[2].strip('"]').replace("\\n", ", ")
            assert label.split(", ") == list(ends)


def test_the_module_draws_itself_without_a_project(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    program("dot")
    folder = tmp_path / "not there yet"
    code = (
        "import sys, pathlib; from django_dbq.states import draw; draw(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, folder], cwd=DRAWINGS.parents[1], check=True)
    assert (folder / "job.dot").read_text() == states.dot()
    svg = (folder / "job.svg").read_text()
    assert svg.startswith("<?xml")
    assert svg.endswith(states.fingerprint(states.dot()))
