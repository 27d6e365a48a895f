"""The kinds of jobs: their entries in ``JOBS``, how many of each there are, and what may become of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import count
from random import Random
from typing import Any

from django_dbq.states import State


class Verb(StrEnum):
    """What a person does to a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SEND = "send"
    RETRY = "retry"
    REDEEM = "retry when failed"  # whenever it is found so, from then on


Workspace = Callable[[Random], dict[str, Any]]
Meddling = Callable[[Random], tuple[tuple[float, Verb], ...]]


def _nothing(random: Random) -> dict[str, Any]:
    return {}


def _left_alone(random: Random) -> tuple[tuple[float, Verb], ...]:
    return ()


@dataclass(frozen=True)
class Place:
    """A step where it stands; places are counted depth first from 0, as `Attempt.step` has them.

    Args:
        form: the key that makes it: task, group, map, sleep or wait_for.
        what: the value of that key; of a task or map, a function of `tests.torture.tasks`.
        options: its other keys.
        sequences: what the members of a group run, by position; of a map, what each runs.
    """

    number: int
    form: str
    what: Any
    options: Mapping[str, Any]
    sequences: tuple[tuple["Place", ...], ...] = ()

    @property
    def has_members(self) -> bool:
        return self.form in ("group", "map")

    @property
    def policy(self) -> str:
        """What the failure of a member means."""
        return str(self.options.get("on_failure", "fail"))

    def sequence(self, position: int) -> tuple["Place", ...]:
        """What the member at that position runs."""
        return self.sequences[position if self.form == "group" else 0]


@dataclass(frozen=True)
class Kind:
    """One entry of ``JOBS``.

    Args:
        tasks: its steps as ``JOBS`` has them, with functions of `tests.torture.tasks` by their bare names.
        share: how many of a plan's jobs are of this kind, relative to the others.
        workspace: draws what its tasks need to be told.
        options: of the job.
        atomic: the places of its atomic steps.
        creates: the place of the step that creates follow-on jobs, if one does.
        ends: its state at the end, if it is not lost too often, and nobody intervenes.
        meddling: draws what people do to it, each so many seconds after its creation.
        shape: how many are created together: each names those of them, by number, that it depends on.
        picks: it may depend on others that were created shortly before.
    """

    tasks: tuple[Any, ...]
    share: int
    workspace: Workspace = _nothing
    options: Mapping[str, Any] = field(default_factory=dict)
    atomic: frozenset[int] = frozenset()
    creates: int | None = None
    ends: State = State.COMPLETE
    meddling: Meddling = _left_alone
    shape: tuple[tuple[int, ...], ...] = ((),)
    picks: bool = False

    @property
    def on_lost(self) -> str:
        return str(self.options.get("on_lost", "retry"))

    @cached_property
    def steps(self) -> tuple[Place, ...]:
        """What the job itself goes through, in order."""
        return _placed(self.tasks, count())

    @cached_property
    def every(self) -> tuple[Place, ...]:
        """All places by number, those inside of groups and maps as well."""

        def walk(sequence: Sequence[Place]) -> Iterator[Place]:
            for place in sequence:
                yield place
                for inner in place.sequences:
                    yield from walk(inner)

        return tuple(walk(self.steps))

    def entry(self) -> dict[str, Any]:
        """As ``JOBS`` has it."""
        steps = [self._step(place) for place in self.steps]
        return {"tasks": steps, "failure_hook": "tests.torture.tasks.failed", **self.options}

    def _step(self, place: Place) -> dict[str, Any]:
        what = place.what
        atomic: dict[str, Any] = {}
        if place.form == "group":
            what = [[self._step(inner) for inner in branch] for branch in place.sequences]
        elif place.form in ("task", "map"):
            what = f"tests.torture.tasks.{what}"
            number = place.number + (place.form == "map")  # of a map, its task
            atomic = {"atomic": number in self.atomic}
        return {place.form: what, **atomic, **place.options}


def _placed(steps: Sequence[Any], numbers: Iterator[int]) -> tuple[Place, ...]:
    found = []
    for entry in steps:
        number = next(numbers)
        short = {str: "task", list: "group"}
        step = {short[type(entry)]: entry} if type(entry) in short else entry
        form = next(key for key in ("task", "group", "map", "sleep", "wait_for") if key in step)
        options = {key: value for key, value in step.items() if key != form}
        sequences: tuple[tuple[Place, ...], ...] = ()
        if form == "group":
            branches = [one if isinstance(one, list) else [one] for one in step[form]]
            sequences = tuple(_placed(branch, numbers) for branch in branches)
        elif form == "map":
            sequences = (_placed([step[form]], numbers),)
        found.append(Place(number, form, step[form], options, sequences))
    return tuple(found)


# -- workspaces --


def _seconds(random: Random) -> dict[str, Any]:
    return {"seconds": round(random.uniform(0.05, 0.3), 2)}


def _briefly(random: Random) -> dict[str, Any]:
    return {"seconds": round(random.uniform(0.0, 0.1), 2)}


def _fails(random: Random) -> dict[str, Any]:
    return {"fails": random.randint(1, 3)}


def _fails_briefly(random: Random) -> dict[str, Any]:
    return {"fails": 1, **_briefly(random)}


def _items(random: Random) -> dict[str, Any]:
    number = random.choice((5, 8, 13, random.randint(14, 40)))
    items = [random.randint(0, 1000) for _ in range(number)]
    return {"items": items, "seconds": round(random.uniform(0.0, 0.03), 3)}


def _bad_items(random: Random) -> dict[str, Any]:
    workspace = _items(random)
    number = len(workspace["items"])
    bad = sorted(random.sample(range(number), random.randint(1, 3)))
    return {**workspace, "bad": bad}


def _no_items(random: Random) -> dict[str, Any]:
    return {"items": []}


def _orders(random: Random) -> dict[str, Any]:
    return {"orders": random.randint(1, 4)}


# -- meddling: at moments that may fall before, into and after all that the job does --


def _meddle(random: Random) -> tuple[tuple[float, Verb], ...]:
    verbs = random.choices(
        (
            (Verb.PAUSE, Verb.RESUME),
            (Verb.PAUSE, Verb.RESUME, Verb.PAUSE, Verb.RESUME),
            (Verb.CANCEL,),
            (Verb.CANCEL, Verb.RETRY),
            (Verb.PAUSE, Verb.CANCEL),
            (Verb.PAUSE, Verb.CANCEL, Verb.RETRY),
        ),
        (5, 2, 2, 3, 1, 1),
    )[0]
    now, done = random.uniform(0, 1.2), []
    for verb in verbs:
        done.append((now, verb))
        now += random.choice((random.uniform(0, 0.2), random.uniform(0.2, 1.5)))
    return tuple(done)


def _rarely(random: Random) -> tuple[tuple[float, Verb], ...]:
    return _meddle(random) if random.random() < 0.3 else ()


def _sends(random: Random) -> tuple[tuple[float, Verb], ...]:
    """Once or twice, and another time when nothing else comes: what was sent while it was cancelled did not count."""
    sends = [(random.uniform(0, 1.2), Verb.SEND) for _ in range(random.randint(1, 2))]
    meddled = _rarely(random)
    last = max(at for at, _ in (*sends, *meddled)) + 0.5
    return tuple(sorted((*sends, *meddled, (last, Verb.SEND))))


def _sends_perhaps(random: Random) -> tuple[tuple[float, Verb], ...]:
    sends = [(random.uniform(0, 1.5), Verb.SEND)] if random.random() < 0.6 else []
    return tuple(sorted((*sends, *_rarely(random))))


def _redeemed(random: Random) -> tuple[tuple[float, Verb], ...]:
    return ((0.0, Verb.REDEEM), *_rarely(random))


def _cancelled(random: Random) -> tuple[tuple[float, Verb], ...]:
    return ((random.uniform(0.3, 2.5), Verb.CANCEL),)


# More than a round can use up: a task that was frozen past its timeout has failed as well.
_RETRIES = {"retries": 20, "retry_delay": 0.05, "retry_max_delay": 0.4, "retry_jitter": True}
# A server that is restarted under the transaction of an atomic step fails the task.
_AGAIN = {"retries": 20, "retry_delay": 0.2}

_SQUARES = {"map": "square", "over": "items", "into": "squares"}

KINDS: dict[str, Kind] = {
    # quick ones, of every sort
    "plain": Kind(("work",), 440),
    "chain": Kind(("work",) * 3, 200),
    "long chain": Kind(("work",) * 5, 100),
    "flaky": Kind(("flaky",), 200, _fails, _RETRIES),
    "asking": Kind(("asking",), 60, lambda random: {"asks": random.randint(1, 3)}),
    "async": Kind(("work_async", "work_async"), 120),
    "atomic": Kind(("work_atomic",), 280, options=_AGAIN, atomic=frozenset({0})),
    "flaky atomic": Kind(("flaky_atomic",), 100, _fails, _RETRIES, atomic=frozenset({0})),
    "creating": Kind(
        ("work_atomic", "create_atomic", "work_atomic"),
        120,
        options=_AGAIN,
        atomic=frozenset({0, 1, 2}),
        creates=1,
    ),
    "mixed": Kind(
        ("work", "flaky_atomic", "work_async", "flaky"), 100, _fails, _RETRIES, frozenset({1})
    ),
    "broken": Kind(("work", "broken"), 40, options={"retries": 1}, ends=State.FAILED),
    "aborting": Kind(("aborting",), 20, options={"retries": 5}, ends=State.FAILED),
    # slow ones, which most of the kills hit
    "slow": Kind(("work", "work"), 60, _seconds),
    "slow async": Kind(("work_async",), 60, _seconds),
    "slow atomic": Kind(("work_atomic",), 30, _seconds, _AGAIN, frozenset({0})),
    "slow creating": Kind(("work", "create_atomic"), 20, _seconds, _AGAIN, frozenset({1}), 1),
    "fragile": Kind(("work",), 20, _seconds, {"on_lost": "fail"}),
    "precious": Kind(("work",), 20, _seconds, {"on_lost": "hold"}),
    "overrunning": Kind(
        ("overrunning",), 20, lambda random: {"overruns": 1}, {**_RETRIES, "timeout": 0.4}
    ),
    "always overrunning": Kind(
        ("overrunning",),
        10,
        lambda random: {"overruns": 1000},
        {"retries": 1, "timeout": 0.4},
        ends=State.FAILED,
    ),
    # groups: each branch is a job of its own, and so is each of a group inside
    "forking": Kind(
        ("work", [["work_atomic", "work"], "work", ["flaky", "work_async"]], "work_atomic", "work"),
        40,
        _fails_briefly,
        _RETRIES,
        frozenset({2, 7}),
        meddling=_rarely,
        picks=True,
    ),
    "nesting": Kind(
        (["work", ["work_atomic", ["work", ["work", "work_atomic"]], "work"]], "work_atomic"),
        20,
        _briefly,
        _AGAIN,
        frozenset({2, 6, 8}),
        meddling=_rarely,
        picks=True,
    ),
    "forking twice": Kind((["work", "work"], ["work", "work"]), 10, meddling=_rarely, picks=True),
    "failing fork": Kind(
        ([["work", "fails_once", "work"], "work"], "work"), 15, _briefly, meddling=_redeemed
    ),
    "forking regardless": Kind(
        ({"group": ["broken", ["work", "work"]], "on_failure": "ignore"}, "work"), 10
    ),
    "forking in vain": Kind(
        ({"group": ["broken", ["work", "work", ["work", "work"]]], "on_failure": "cancel_rest"},),
        10,
        _briefly,
        ends=State.FAILED,
    ),
    # maps
    "mapping": Kind(
        ("work", _SQUARES, "check_squares", "work"), 16, _items, meddling=_rarely, picks=True
    ),
    "atomic map": Kind(
        ({**_SQUARES, "map": "square_atomic"}, "check_squares"),
        8,
        _items,
        _AGAIN,
        frozenset({1}),
        meddling=_rarely,
    ),
    "empty map": Kind((_SQUARES, "check_squares"), 10, _no_items),
    "failing map": Kind(
        ({**_SQUARES, "map": "square_once_failed"}, "check_squares"),
        8,
        _bad_items,
        meddling=_redeemed,
    ),
    "mapping regardless": Kind(
        ({**_SQUARES, "map": "square_if_good", "on_failure": "ignore"}, "check_squares"),
        8,
        _bad_items,
        {"retries": 1},
        meddling=_rarely,
    ),
    "mapping in vain": Kind(
        ({**_SQUARES, "map": "square_if_good", "on_failure": "cancel_rest"}, "check_squares"),
        8,
        _bad_items,
        ends=State.FAILED,
    ),
    # pauses
    "sleeping": Kind(("work", {"sleep": 0.3}, "work"), 40, meddling=_rarely, picks=True),
    "awaiting": Kind(("work", {"wait_for": "word"}, "work"), 60, _briefly, meddling=_sends),
    "awaiting or not": Kind(
        ({"wait_for": "word", "timeout": 0.7, "on_timeout": "continue"}, "work"),
        20,
        meddling=_sends_perhaps,
    ),
    "awaiting in vain": Kind(("work", {"wait_for": "word", "timeout": 0.5}), 10, ends=State.FAILED),
    # dependencies
    "row": Kind(
        ("work", "work"), 8, _briefly, meddling=_rarely, shape=((), (0,), (1,), (2,)), picks=True
    ),
    "diamond": Kind(
        ("work",), 8, _briefly, meddling=_rarely, shape=((), (0,), (0,), (1, 2)), picks=True
    ),
    "dependent": Kind(("work",), 60, meddling=_rarely, picks=True),
    "ordering": Kind(("order", "work"), 20, _orders, _AGAIN, creates=0, meddling=_rarely),
    "ordering at once": Kind(
        ("work", "order_atomic"), 20, _orders, _AGAIN, frozenset({1}), 1, meddling=_rarely
    ),
    # what people do at random moments
    "meddled": Kind(("work",) * 4, 50, _seconds, meddling=_meddle),
    "meddled atomic": Kind(
        ("work_atomic",) * 3, 20, _seconds, _AGAIN, frozenset({0, 1, 2}), meddling=_meddle
    ),
    "meddled flaky": Kind(
        ("flaky", "work_async", "flaky"),
        20,
        lambda random: {**_fails(random), **_seconds(random)},
        _RETRIES,
        meddling=_meddle,
    ),
    "endless": Kind(("last",), 4, meddling=_cancelled, ends=State.CANCELLED),
    "endless async": Kind(("last_async",), 4, meddling=_cancelled, ends=State.CANCELLED),
    # These cost their workers: the plan says how many there are.
    "stuck": Kind(("stuck",), 0, options={"timeout": 0.5}, ends=State.FAILED),
    "hogging": Kind(("hogging",), 0, options={"timeout": 0.5}, ends=State.FAILED),
    # Only created by other jobs.
    "follow-on": Kind(("work",), 0),
}

JOBS = {name: kind.entry() for name, kind in KINDS.items()}
