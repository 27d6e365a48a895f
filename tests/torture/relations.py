"""What is promised of jobs that belong together (groups, maps, dependencies), of pauses, and to those who intervene."""

import datetime
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from .history import (
    CANCELLED,
    FINISHED,
    LOST,
    SUCCEEDED,
    TICK,
    WAITED,
    Finding,
    History,
    Interval,
    Life,
)
from .kinds import Verb

# -- groups and maps --


def members_are_created_once(history: History) -> Iterator[Finding]:
    """A group or map that has begun has its members, one for each position, and has them once."""
    for life in history.lives:
        begun: dict[int, list[int]] = defaultdict(list)  # rounds by place
        for number in sorted({member.job.parent_round or 0 for member in life.members}):
            found = [a for a in life.attempts if a.number == number and a.outcome == WAITED]
            step = life.kind.every[found[0].step] if found else None
            if step is None or not step.has_members:
                text = f"members of round {number}, in which nothing began"
                yield Finding("members_are_created_once", text, life.job.id)
                continue
            begun[step.number].append(number)
            positions = [m.job.position for m in life.members if m.job.parent_round == number]
            size = len(step.sequences)
            if step.form == "map":
                size = len(life.job.workspace[step.options["over"]])
            if sorted(map(str, positions)) != sorted(map(str, range(size))):
                text = f"{size} members wanted at step {step.number}, there are {positions}"
                yield Finding("members_are_created_once", text, life.job.id)
        for place in life.sequence:
            if place.has_members and life.at_step(place.number, WAITED):
                rounds = begun[place.number]
                if len(rounds) != 1:
                    text = f"step {place.number} has members in the rounds {rounds}"
                    yield Finding("members_are_created_once", text, life.job.id)


def groups_are_joined_once(history: History) -> Iterator[Finding]:
    """Each group and map is joined once, and what comes after it is done once."""
    for life in history.lives:
        for place, following in pairwise([*life.sequence, None]):
            if place is None or not place.has_members:
                continue
            joins = life.at_step(place.number, SUCCEEDED)
            after = []
            if following is not None:
                won = {a.number for a in life.at_step(following.number, SUCCEEDED)}
                after = [
                    e
                    for e in life.effects
                    if e.step == following.number
                    and e.kind in ("end", "atomic")
                    and e.attempt in won
                    and not life.is_cut_off(e)
                ]
            if len(joins) > 1 or len(after) > len(joins):
                text = f"step {place.number} joined {len(joins)} times, then {len(after)} effects"
                yield Finding("groups_are_joined_once", text, life.job.id)


def no_join_before_its_members_ended(history: History) -> Iterator[Finding]:
    """A group or map is joined when all of its members have ended, and nothing that comes after is done before."""
    for life in history.lives:
        for index, place in enumerate(life.sequence):
            joins = life.at_step(place.number, SUCCEEDED)
            if not place.has_members or not joins:
                continue
            members = life.members_of(place)
            open_ones = [m.job.position for m in members if m.job.state not in FINISHED]
            ends = [m.job.finished for m in members if m.job.finished is not None]
            last = max(ends, default=joins[0].started)
            later = {other.number for other in life.sequence[index + 1 :]}
            times = [joins[0].started, *(e.at for e in life.effects if e.step in later)]
            if open_ones or min(times) < last - TICK:
                text = f"step {place.number} at {min(times)}, its last member ended {last}, open: {open_ones}"
                yield Finding("no_join_before_its_members_ended", text, life.job.id)


def joins_are_right(history: History) -> Iterator[Finding]:
    """A group or map succeeds if all of its members have completed, or if it ignores failures."""
    for life in history.lives:
        for place in life.sequence:
            if not place.has_members or not life.at_step(place.number, SUCCEEDED):
                continue
            states = Counter(m.job.state for m in life.members_of(place))
            if place.policy != "ignore" and set(states) - {"COMPLETE"}:
                text = f"step {place.number} succeeded, its members: {dict(states)}"
                yield Finding("joins_are_right", text, life.job.id)


def map_results_are_complete(history: History) -> Iterator[Finding]:
    """What the tasks of a map have returned is there, in order, and None where one has not completed."""
    for life in history.lives:
        for place in life.places("map"):
            if not life.at_step(place.number, SUCCEEDED):
                continue
            items = life.job.workspace[place.options["over"]]
            states = {m.job.position: m.job.state for m in life.members_of(place)}
            wanted = [
                item**2 if states.get(number) == "COMPLETE" else None
                for number, item in enumerate(items)
            ]
            found = life.job.workspace.get(place.options["into"])
            if found != wanted:
                text = f"step {place.number} has collected {found} instead of {wanted}"
                yield Finding("map_results_are_complete", text, life.job.id)


def no_member_runs_after_its_parent(history: History) -> Iterator[Finding]:
    """Nothing of a member begins while its parent has ended."""
    for life in history.lives:
        for begin, until in life.over:
            for member in life.members:
                for time in starts(member):
                    if is_within(time, (begin, until)):
                        text = f"begins something at {time}, its parent ended {begin}"
                        yield Finding("no_member_runs_after_its_parent", text, member.job.id)


def what_is_complete_is_not_run_again(history: History) -> Iterator[Finding]:
    """After a job's last step has succeeded there is no attempt any more, whoever retries what it belongs to."""
    for life in history.lives:
        last = life.sequence[-1].number if life.sequence else None
        done = [a.number for a in life.attempts if a.step == last and a.outcome == SUCCEEDED]
        again = [a.number for a in life.attempts if done and a.number > done[0]]
        if again:
            text = f"complete in attempt {done[0]}, and then there are {again}"
            yield Finding("what_is_complete_is_not_run_again", text, life.job.id)


# -- dependencies --


def dependencies_are_there(history: History) -> Iterator[Finding]:
    """What a job was to depend on is what it depends on."""
    for key, needs in history.needs.items():
        life = history.by_id.get(key)
        found = [edge.on for edge in life.edges] if life is not None else []
        if sorted(found) != sorted(needs):
            text = f"{len(found)} dependencies instead of {len(needs)}"
            yield Finding("dependencies_are_there", text, key)


def no_dependent_starts_too_early(history: History) -> Iterator[Finding]:
    """A job begins, or goes on after it has waited, when what it depends on is COMPLETE (or has ended, if it proceeds
    on failure); unless somebody had it retried, which frees it.
    """
    for life in history.lives:
        if not life.edges or any(life.deeds_of(Verb.RETRY)):
            continue
        if life.job.id in history.needs:
            times = list(starts(life))
        else:  # its task has created them
            creates = life.kind.creates or 0
            times = [a.started for a in life.at_step(creates, SUCCEEDED)]
        if not times:
            continue
        proceeds = life.edges[0].on_failure == "proceed"
        done = [when_done(history.by_id.get(edge.on), proceeds) for edge in life.edges]
        one_is_enough = life.edges[0].mode == "any"
        ready = [time is not None and time <= min(times) + TICK for time in done]
        if not (any(ready) if one_is_enough else all(ready)):
            text = f"begins at {min(times)}, what it waits for was done {done}"
            yield Finding("no_dependent_starts_too_early", text, life.job.id)


def when_done(life: Life | None, proceeds: bool) -> datetime.datetime | None:
    """When what somebody waits for was done, at the earliest; None if never.

    Args:
        proceeds: any end will do.
    """
    if life is None:
        return None
    if life.job.state == "COMPLETE" and not proceeds:
        return life.job.finished
    if not proceeds:
        return None
    # A person's call ends a job at some time before it returns.
    ends = [begin for begin, _ in life.over] + [deed.begun for deed in life.deeds_of(Verb.CANCEL)]
    return min(ends, default=None)


def counts_are_consistent(history: History) -> Iterator[Finding]:
    """No job waits for nothing: what is over counts nothing, and what a dependency says is so."""
    for life in history.lives:
        job = life.job
        if job.state in FINISHED and job.waiting_for:
            text = f"{job.state}, and waits for {job.waiting_for}"
            yield Finding("counts_are_consistent", text, job.id)
        waits = job.state in ("WAITING", "BLOCKED", "NEW")
        for edge in life.edges:
            other = history.by_id.get(edge.on)
            state = other.job.state if other is not None else "gone"
            wrong = {
                "open": state in (*FINISHED, "gone"),
                "done": state != "COMPLETE",
                # One that has gone on without it does not care what becomes of it later.
                "failed": waits and state not in ("FAILED", "CANCELLED"),
            }
            if wrong.get(edge.state, False):
                text = f"{job.state}, a dependency is {edge.state} and the other {state}"
                yield Finding("counts_are_consistent", text, job.id)
        edges = [edge for edge in life.edges if edge.state == "open"]
        if job.state in ("WAITING", "BLOCKED") and job.waiting_for != len(edges):
            text = f"{job.state}, waits for {job.waiting_for}, and {len(edges)} are open"
            yield Finding("counts_are_consistent", text, job.id)
        if job.state == "BLOCKED" and not any(edge.state == "failed" for edge in life.edges):
            yield Finding("counts_are_consistent", "BLOCKED by nothing", job.id)


# -- pauses --


def sleeps_are_slept(history: History) -> Iterator[Finding]:
    """A sleep lasts as long as it was to, unless somebody had the job retried."""
    for life in history.lives:
        for place in life.places("sleep"):
            for end in life.at_step(place.number, SUCCEEDED):
                begun = [a.started for a in life.at_step(place.number, WAITED)]
                length = datetime.timedelta(seconds=place.what)
                slept = end.started - min(begun) if begun else datetime.timedelta(0)
                if slept < length - TICK and not any(life.deeds_of(Verb.RETRY)):
                    text = f"step {place.number} lasted {slept.total_seconds()} s"
                    yield Finding("sleeps_are_slept", text, life.job.id)


def events_are_taken_once(history: History) -> Iterator[Finding]:
    """An event that was accepted is there once; the first is taken once, by the wait that it has ended, and its payload
    is in the workspace. Only a wait that may time out goes on without one.
    """
    for life in history.lives:
        sent = [deed.payload for deed in life.deeds_of(Verb.SEND)]
        there = [event.payload for event in life.events]
        if sorted(sent) != sorted(there):
            text = f"the events {sent} were accepted, there are {there}"
            yield Finding("events_are_taken_once", text, life.job.id)
        taken = {event.taken: event.payload for event in life.events if event.taken}
        if len(taken) != sum(event.taken > 0 for event in life.events):
            yield Finding("events_are_taken_once", "two were taken at once", life.job.id)
        waits = life.places("wait_for")
        ends = {a.number: p for p in waits for a in life.at_step(p.number, SUCCEEDED)}
        if taken.keys() - ends.keys():
            text = f"taken in {sorted(taken)}, and waits have ended in {sorted(ends)}"
            yield Finding("events_are_taken_once", text, life.job.id)
        for number, place in ends.items():
            if number not in taken and "timeout" not in place.options:
                text = f"the wait of attempt {number} has ended without an event"
                yield Finding("events_are_taken_once", text, life.job.id)
        first = sent[:1] if taken else []
        found = [life.job.workspace[p.what] for p in waits if p.what in life.job.workspace]
        if not list(taken.values()) == found == first:
            text = f"taken {list(taken.values())}, the first was {first}, the workspace has {found}"
            yield Finding("events_are_taken_once", text, life.job.id)


# -- people --


def nothing_starts_once_cancelled(history: History) -> Iterator[Finding]:
    """Nothing is claimed of a cancelled job, and nothing is saved of what was running, until somebody has it
    retried.
    """
    for life in history.lives:
        for deed, interval in life.intervals(Verb.CANCEL, Verb.RETRY):
            number = deed.fence.get(life.job.id, 0)
            for attempt in life.attempts:
                started = attempt.number > number and is_within(life.began(attempt), interval)
                saved = (
                    attempt.number <= number
                    and attempt.outcome != CANCELLED
                    and is_within(attempt.finished, interval)
                )
                if started or saved:
                    text = f"attempt {attempt.number}, {attempt.outcome}, after it was cancelled"
                    yield Finding("nothing_starts_once_cancelled", text, life.job.id)


def nothing_starts_while_paused(history: History) -> Iterator[Finding]:
    """Nothing is claimed of a paused job, or of its members, until somebody has it resumed: only what was claimed
    already is run.
    """
    for life in history.lives:
        for deed, interval in life.intervals(Verb.PAUSE, Verb.RESUME, Verb.RETRY):
            # A step that was running may have created members: none of those has an attempt.
            number = deed.fence.get(life.job.id, 0)
            for attempt in life.attempts:
                if attempt.number > number and is_within(life.began(attempt), interval):
                    text = f"attempt {attempt.number} begins while it is paused since {deed.ended}"
                    yield Finding("nothing_starts_while_paused", text, life.job.id)


# -- parts --


def starts(life: Life) -> Iterator[datetime.datetime]:
    """When attempts of a job began; but for those that were cancelled: what was claimed before may begin afterwards.
    So may what a frozen worker had claimed, which thaws when it has been declared dead.
    """
    for attempt in life.attempts:
        began = life.began(attempt)
        if began is None or attempt.outcome == CANCELLED:
            continue
        if attempt.outcome != LOST or began <= attempt.finished:
            yield began


def is_within(time: datetime.datetime | None, interval: Interval) -> bool:
    begin, end = interval
    return time is not None and begin + TICK < time and (end is None or time < end - TICK)


INVARIANTS: tuple[Callable[[History], Iterator[Finding]], ...] = (
    members_are_created_once,
    groups_are_joined_once,
    no_join_before_its_members_ended,
    joins_are_right,
    map_results_are_complete,
    no_member_runs_after_its_parent,
    what_is_complete_is_not_run_again,
    dependencies_are_there,
    no_dependent_starts_too_early,
    counts_are_consistent,
    sleeps_are_slept,
    events_are_taken_once,
    nothing_starts_once_cancelled,
    nothing_starts_while_paused,
)
