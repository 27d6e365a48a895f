"""Settings of a worker process that runs the pipelines of the tests here."""

from tests.process_settings import *  # noqa: F403

from . import process_pipelines

JOBS = process_pipelines.JOBS
