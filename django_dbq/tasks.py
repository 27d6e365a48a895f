"""django-db-queue's documented helper, under its documented name."""

from . import conf


def get_next_task_name(job_name: str, current_task: str | None = None) -> str | None:
    """The path of the task after ``current_task``, the first one without it, or None after the last.

    A path says nothing about place: where one stands twice, its first place counts.

    Raises:
        UnknownJob: ``JOBS`` has no valid entry of that name.
        ValueError: that job has no task ``current_task``.
    """
    pipeline = conf.catalogue().named(job_name)
    if current_task is None:
        return pipeline.steps[0].path
    step = pipeline.locate(len(pipeline.steps), current_task)
    if step is None:
        raise ValueError(f"The job {job_name!r} has no task {current_task!r}.")
    following = pipeline.after(step)
    return None if following is None else following.path
