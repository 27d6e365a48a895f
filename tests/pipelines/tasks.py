"""Tasks of the pipelines that are tested here."""

import datetime
import time
from typing import Any

from django.utils import timezone

from django_dbq import Abort, Finish, Retry, Wait


def note(job: Any) -> None:
    """Leave a trace in the workspace."""
    job.workspace.setdefault("trail", []).append(job.next_task or job.step)


def one(job: Any) -> None:
    job.workspace["one"] = 1


def two(job: Any) -> None:
    job.workspace["two"] = job.workspace.get("one", 0) + 1


def three(job: Any) -> None:
    job.workspace["three"] = 3


def other_one(job: Any) -> None:
    job.workspace["one"] = "other"


def square(job: Any) -> int:
    return int(job.workspace["item"]) ** 2


def fragile(job: Any) -> None:
    if job.workspace.get("item", job.workspace.get("broken")) in job.workspace.get("bad", [True]):
        raise Abort("It is broken.")


def fragile_square(job: Any) -> int:
    fragile(job)
    return square(job)


def finish(job: Any) -> None:
    raise Finish


def wanted(job: Any) -> bool:
    return bool(job.workspace.get("wanted"))


# -- tasks that tell what was run --

called: list[Any] = []  # by these tasks and hooks in this process, in order
broken: set[Any] = set()  # the names, or the items, of those that fail


class Broken(Exception):
    """What a task raises that is in ``broken``."""


def _run(job: Any, name: str) -> None:
    """Leave ``name`` in the workspace, with the keys that the task has found there."""
    called.append(name)
    job.workspace[name] = sorted(job.workspace)
    if name in broken:
        raise Broken(f"{name} is broken.")


def a(job: Any) -> None:
    _run(job, "a")


def b(job: Any) -> None:
    _run(job, "b")


def c(job: Any) -> None:
    _run(job, "c")


def d(job: Any) -> None:
    _run(job, "d")


def e(job: Any) -> None:
    _run(job, "e")


def f(job: Any) -> None:
    _run(job, "f")


def first_set(job: Any) -> None:
    """Change the workspace as it says itself for each of three branches; None removes the key."""
    _set(job, 0)


def second_set(job: Any) -> None:
    _set(job, 1)


def third_set(job: Any) -> None:
    _set(job, 2)


def _set(job: Any, number: int) -> None:
    for key, value in job.workspace["sets"][number].items():
        if value is None:
            del job.workspace[key]
        else:
            job.workspace[key] = value


def become_a_list(job: Any) -> None:
    job.workspace = ["no", "dict"]


def return_finish(job: Any) -> Finish:
    _run(job, "return_finish")
    return Finish()


def raise_finish(job: Any) -> None:
    _run(job, "raise_finish")
    raise Finish


def come_tomorrow(job: Any) -> None:
    """Have the next step run then."""
    job.run_after = timezone.now() + datetime.timedelta(days=1)


def retry_twice(job: Any) -> Retry | None:
    called.append("retry_twice")
    return Retry() if job.attempt < 3 else None


def abort(job: Any) -> Abort:
    called.append("abort")
    return Abort("It is of no use.")


def fail_at_first(job: Any) -> None:
    called.append("fail_at_first")
    if not job.failures:
        raise Broken("at first")


def overrun_at_first(job: Any) -> None:
    called.append("overrun_at_first")
    if not job.failures:
        time.sleep(60)  # until its timeout


def square_item(job: Any) -> int:
    """The square of its item; what it was given is told."""
    item: int = job.workspace["item"]
    called.append(item)
    if item in broken:
        raise Broken(f"{item} is broken.")
    return item**2


async def square_item_async(job: Any) -> int:
    return square_item(job)


def tell_workspace(job: Any) -> Any:
    """Its workspace, as it is given to the members of a map."""
    called.append(job.workspace)
    return job.workspace


def return_item(job: Any) -> Any:
    return job.workspace["item"]


def nest(levels: int) -> Any:
    """So many lists in each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def return_nested(job: Any) -> Any:
    """As many levels as its item says."""
    return nest(job.workspace["item"])


def return_no_json(job: Any) -> Any:
    called.append("return_no_json")
    return {"is": object()}


def return_wish(job: Any) -> Any:
    """What its item wishes for."""
    called.append(job.workspace["item"])
    wishes = {"Finish": Finish(), "Abort": Abort("no"), "nothing": None}
    wish = job.workspace["item"]
    if wish == "Retry":
        return Retry() if job.attempt == 1 else "retried"
    return wishes[wish]


# -- predicates --


def is_wanted(job: Any) -> bool:
    called.append("is_wanted")
    return bool(job.workspace.get("wanted"))


def is_wanted_at_second(job: Any) -> bool:
    """A predicate that fails at first."""
    called.append("is_wanted_at_second")
    if called.count("is_wanted_at_second") == 1:
        raise Broken("the predicate")
    return True


def is_wanted_after_the_other(job: Any) -> bool:
    """A predicate that waits for another job at first."""
    called.append("is_wanted_after_the_other")
    if called.count("is_wanted_after_the_other") == 1:
        raise Wait(jobs=[job.workspace["other"]])
    return True


def leaves_no_json(job: Any) -> bool:
    """A predicate that spoils the workspace."""
    job.workspace["left"] = object()
    return True


# -- hooks --


def _who(job: Any) -> str:
    return "job" if job.parent_id is None else f"member {job.position}"


def before(job: Any) -> None:
    called.append(f"before, {_who(job)}")


def after(job: Any) -> None:
    called.append(f"after, {_who(job)}")


def created(job: Any) -> None:
    called.append(f"created, {_who(job)}")


def failed(job: Any, error: BaseException) -> None:
    called.append(f"failed, {_who(job)}: {type(error).__name__}")


def completed(job: Any) -> None:
    called.append(f"completed, {_who(job)}")
