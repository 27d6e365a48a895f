"""The state machine: what leads where, what is derived from it, and that the drawings show it as it is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from django_dbq import states
from django_dbq.states import TRANSITIONS, Event, State, Transition, sources, target

DRAWINGS = Path(__file__).parent.parent / "docs" / "states"


def test_the_table_of_the_design() -> None:
    held = ("PROCESSING", "STOPPING")
    expected = {
        ("created", None, "NEW"),
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
    }
    assert {(t.event.value, t.source, t.target) for t in TRANSITIONS} == expected
    assert len(TRANSITIONS) == len(expected)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("CLAIMABLE", {"NEW", "READY"}),
        ("HELD", {"PROCESSING", "STOPPING"}),
        ("FINISHED", {"COMPLETE", "FAILED", "CANCELLED"}),
        ("DELETABLE", {"COMPLETE", "FAILED", "CANCELLED", "STOPPING"}),
    ],
)
def test_groups_of_states(group: str, expected: set[str]) -> None:
    assert set(getattr(states, group)) == expected


def test_every_state_that_is_entered_leads_to_an_end() -> None:
    """But for PAUSED, from which a person sends the job on."""
    ways = {t.target for t in TRANSITIONS}
    assert {s for s in ways if not any(t.source is s for t in TRANSITIONS)} == {
        State.COMPLETE,
        State.FAILED,
        State.PAUSED,
    }
    for state in ways - {State.PAUSED}:
        reached = {state}
        for _ in State:
            reached |= {t.target for t in TRANSITIONS if t.source in reached}
        assert reached & set(states.FINISHED), state


def test_sources_and_targets_of_events() -> None:
    assert sources(Event.CREATED) == ()
    assert sources(Event.CLAIMED) == (State.NEW, State.READY)
    assert target(Event.CREATED) is State.NEW
    assert target(Event.FAILED_FOR_GOOD) is State.FAILED
    assert sources(Event.LOST) == sources(Event.LOST_AND_HELD) == (State.PROCESSING,)
    assert target(Event.LOST_AND_HELD) is State.PAUSED
    with pytest.raises(ValueError, match="too many values"):
        target(Event.HANDED_BACK)  # leads to one of two


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


def test_events_between_the_same_states_share_an_arrow() -> None:
    assert states.dot().count("PROCESSING -> READY") == 1
    label = "step done\\ntried again\\nhanded back\\nlost"
    assert f'PROCESSING -> READY [label="{label}"]' in states.dot()


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
