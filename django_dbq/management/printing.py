"""Commands whose output may be long, and may go to a program that reads only the beginning of it."""

import os
import sys

from django.core.management.base import BaseCommand


class PrintingCommand(BaseCommand):
    """A command that ends quietly, with the exit code 1, when nobody reads on: ``manage.py jobs list | head -1``."""

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            try:
                super().run_from_argv(argv)
            finally:
                self.stdout.flush()  # here, where it can still be caught
        except BrokenPipeError:
            # What is left in the buffer would be written once more at the end of Python, which complains then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
