#!/usr/bin/env python
"""Django's command line for the test project; `DB=postgres` brings its own PostgreSQL server along."""

import os
import sys
from pathlib import Path


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    # PGHOST set: a parent process, or a person, has a server running already.
    if os.environ.get("DB") == "postgres" and "PGHOST" not in os.environ:
        from testproject.postgres import start

        start(Path(__file__).resolve().parent / "var" / "postgres")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
