"""Run one round of torture, and print what came of it; the exit code is 0 only if nothing was found.

Without --database the round has a database of its own: SQLite in a temporary folder, or a server that it starts, and
may therefore restart. With it, a new database on the named server is made and removed again, and nothing is restarted.
"""

import argparse
import os
import secrets
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats a plan (default: drawn, and printed)")
    parser.add_argument("--seconds", type=float, default=120, help="of disorder (%(default)s)")
    parser.add_argument("--jobs", type=int, help="how many are created in that time (50/s)")
    parser.add_argument("--workers", type=int, default=5, help="worker commands (%(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database", metavar="URL", help="as in DATABASE_URL")
    where.add_argument(
        "--on",
        choices=["sqlite", "postgres", "mariadb"],
        default=os.environ.get("DB", "sqlite"),
        help="a database of the round's own (%(default)s)",
    )
    chosen = parser.parse_args()
    chosen.seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    chosen.jobs = round(50 * chosen.seconds) if chosen.jobs is None else chosen.jobs
    return chosen


def leave(*_: object) -> None:
    """End in order on SIGTERM, once: workers and server are to be stopped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a program that speaks to a person


def main() -> int:
    chosen = arguments()
    signal.signal(signal.SIGTERM, leave)
    logs = Path(mkdtemp(prefix="dbq-torture-logs-"))  # removed if nothing is found
    with ExitStack() as stack:
        server = None
        url = chosen.database or ""
        if not url and chosen.on != "sqlite":
            from .servers import SERVERS

            folder = stack.enter_context(TemporaryDirectory(prefix="dbq-torture-"))
            server = SERVERS[chosen.on](Path(folder))
            stack.callback(server.end)
            url = server.url
        os.environ.update(DATABASE_URL=url, DJANGO_SETTINGS_MODULE="tests.torture.settings")
        import django

        django.setup()
        from django.db import connection

        from .plan import draw
        from .rounds import Round

        plan = draw(chosen.seed, chosen.seconds, chosen.jobs, chosen.workers, server is not None)
        say(f"seed {plan.seed}, logs in {logs}\n{plan}\n")
        name = connection.settings_dict["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        stack.callback(connection.creation.destroy_test_db, name, verbosity=0)
        report = Round(plan, logs, server).run()
        say(str(report))
        if report.findings:
            say(f"\n{report.details()}\n\nseed {plan.seed}, logs in {logs}")
        else:
            stack.callback(rmtree, logs)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
