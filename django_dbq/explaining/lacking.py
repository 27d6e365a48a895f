"""What the settings know, and lack, of the step at which a job stands."""

from typing import NamedTuple

from .. import conf
from ..models import Job
from ..pipelines import Group, Map, Step, nearest
from .wording import quoted


class Lack(NamedTuple):
    """What the settings lack for the jobs that stand at a step, and what to do about it."""

    text: str
    hint: str
    claimed: bool = False  # such a job is run all the same, and not as it was meant


def lack(name: str, place: int, path: str, member: bool) -> Lack | None:
    """What the settings lack for a job of that name that stands at that step; None if they know it.

    Args:
        member: of a group or map.
    """
    catalogue = conf.catalogue()
    pipeline = catalogue.get(name)
    if pipeline is None:
        mistakes = [quoted(str(problem)) for problem in catalogue.problems if problem.job == name]
        if mistakes:
            text = f"the entry {name!r} of JOBS is not valid ({'; '.join(mistakes)})"
            return Lack(text, "Mend the entry (manage.py check tells how)")
        text = f"JOBS has no job named {name!r}{nearest(name, catalogue)}"
        renamed = f"Job.objects.filter(name={name!r}).update(name=…)"
        return Lack(
            text, f"Restore the entry, or give its jobs the name that it has now: {renamed}"
        )
    step = pipeline.locate(place, path, member)
    if step is None:
        known = tuple(dict.fromkeys(step.path for step in pipeline.every))
        text = f"the job {name!r} has no step {path!r}{nearest(path, known)}; it has {', '.join(known)}"
        # A member is retried where it stands, and so nowhere.
        those = "cancel and retry their parents" if member else "cancel these jobs and retry them"
        hint = f"{those} from another step (manage.py jobs retry ID --from STEP)"
        if path:
            former = path.rpartition(" ")[2] if path.startswith("map ") else path
            hint = f'Put "renamed_from": "{former}" at the step that has taken its place, or {hint}'
        return Lack(text, hint[0].upper() + hint[1:])
    if member and pipeline.locate(step.place, step.path) is step:
        text = (
            f"the step {path!r} of {name!r} is in no group any more; its members would end after it"
        )
        hint = (
            "Leave the group as it is until they have ended, or cancel and retry their parents from another step "
            "(manage.py jobs retry ID --from STEP)"
        )
        return Lack(text, hint, claimed=True)
    return None


def stranding(job: Job) -> Lack | None:
    """What keeps workers from running a job."""
    found = lack(job.name, job.step, job.next_task, job.parent_id is not None)
    return None if found is None or found.claimed else found


def step_of(job: Job) -> Step | None:
    pipeline = conf.catalogue().get(job.name)
    member = job.parent_id is not None
    return None if pipeline is None else pipeline.locate(job.step, job.next_task, member)


def ignores_failures(job: Job) -> bool:
    """Whether a job stands at a group or map that does not mind what becomes of its members."""
    step = step_of(job)
    return isinstance(step, Group | Map) and step.on_failure == "ignore"
