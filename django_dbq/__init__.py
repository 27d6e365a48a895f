"""django-dbq: declarative multi-step job pipelines, run from the database that a Django project already has."""

from .outcomes import Abort, Finish, Retry, Wait

__all__ = ["Abort", "Finish", "Retry", "Wait"]

__version__ = "4.0.0.dev0"
