"""The tasks of the project; ``steps`` in a workspace tells what has been done."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What happens to a job, by its id, while it is being labelled; only the process that fills the database sets this.
accidents: dict[Any, Callable[[], None]] = {}


def weigh(job: Any) -> None:
    work(job, "weigh")


def label(job: Any) -> None:
    if job.pk in accidents:
        accidents[job.pk]()
    work(job, "label")


def ship(job: Any) -> None:
    work(job, "ship")


def registered(job: Any) -> None:
    if job.workspace:
        job.workspace["registered"] = True


def given_up(job: Any, error: Exception) -> None:
    job.workspace["error"] = str(error)


def work(job: Any, step: str) -> None:
    """Note the step where the test can read it, and in the workspace if that keeps such notes."""
    with Path(os.environ["PARCELS_LOG"]).open("a") as log:
        log.write(f"{job.pk} {step}\n")
    if job.workspace and "steps" in job.workspace:
        job.workspace["steps"].append(step)
