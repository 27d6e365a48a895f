"""Two hosts, and the network between them fails: the near one has the database, the far one is cut off from it.

The hosts are network namespaces, each kept by a process that ends with this one: nothing of them is seen outside, and
nothing is left of them. A third one between them forwards their packets, or does not.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import dj_database_url
import pytest
from django.core.management import call_command
from django.db import connection, connections

from django_dbq.models import Job, Worker
from tests.process_jobs import tell, told, until
from tests.torture import settings as torture_settings
from tests.torture.fleet import ROOT
from tests.torture.models import Effect
from tests.torture.servers import embedded_postgres

LEASE = 2  # seconds
DATABASE = "near"  # the alias under which this process knows the database
NEAR, FAR = "10.0.1.1", "10.0.2.1"
TO_NEAR, TO_FAR = "10.0.1.2", "10.0.2.2"  # the addresses of the router in both networks


class Host:
    """A network namespace; it lasts as long as the process that has made it."""

    def __init__(self, programs: Callable[[str], str]) -> None:
        self.enter = programs("nsenter")
        unshare = [programs("unshare"), "--net", "sh", "-c", "echo; exec cat"]
        # The line says that it is there; when our end of its standard input closes, it is over.
        self.keeper = subprocess.Popen(
            unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stderr is not None
        if not self.keeper.stdout.readline():
            why = self.keeper.stderr.read().decode().strip()
            self.end()
            raise PermissionError(f"no network namespaces here: {why}")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> str:
        return str(self.keeper.pid)

    def inside(self, *command: str) -> list[str]:
        """The command that runs this one on the host."""
        return [self.enter, "--target", self.pid, "--net", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True, capture_output=True, text=True)

    def end(self) -> None:
        self.keeper.communicate()  # closes its standard input first


class Network:
    """The near host, the far one, and a router between them."""

    def __init__(self, programs: Callable[[str], str], stack: contextlib.ExitStack) -> None:
        hosts = []
        for _ in range(3):
            hosts.append(Host(programs))
            stack.callback(hosts[-1].end)
        self.near, self.router, self.far = hosts
        for host, address, opposite in ((self.near, NEAR, TO_NEAR), (self.far, FAR, TO_FAR)):
            name = f"to{host.pid}"
            pair = ("link", "add", name, "type", "veth", "peer", "name", "eth0")
            self.router.run("ip", *pair, "netns", host.pid)
            for side, interface, own in (
                (self.router, name, opposite),
                (host, "eth0", address),
            ):
                side.run("ip", "address", "add", f"{own}/24", "dev", interface)
                side.run("ip", "link", "set", interface, "up")
            host.run("ip", "route", "add", "default", "via", opposite)
        self._forward(True)

    def _forward(self, packets: bool) -> None:
        """With False, the router drops whatever comes: nobody hears of it."""
        self.router.run("sh", "-c", f"echo {int(packets)} > /proc/sys/net/ipv4/ip_forward")

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """Within, packets get lost on their way, and both hosts believe in their links."""
        self._forward(False)
        try:
            yield
        finally:
            self._forward(True)

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        """Within, the far host has no link, and knows."""
        self.far.run("ip", "link", "set", "eth0", "down")
        try:
            yield
        finally:
            self.far.run("ip", "link", "set", "eth0", "up")
            self.far.run("ip", "route", "replace", "default", "via", TO_FAR)

    CUTS: ClassVar[dict[str, Callable[["Network"], contextlib.AbstractContextManager[None]]]] = {
        "packets are dropped": dropping,
        "the link is down": unplugged,
    }


class Postgres:
    """A server on the near host, which is heard on its network; this process reaches it by its socket."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.server = embedded_postgres(folder / "data", cleanup_mode=None, start=False)
        self.server.ensure_pgdata_inited()
        self.data: Path = self.server.pgdata
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {FAR}/32 trust\n")
        self._control("-l", str(self.data / "log"), "-o", f"-h {NEAR} -k {self.data}", "start")

    def _control(self, *arguments: str) -> None:
        program = str(self.server.bin_path / "pg_ctl")
        user = self.server.system_user
        command = self.host.inside(
            "runuser", "-u", user, "--", program, "-w", "-D", str(self.data), *arguments
        )
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def settings(self, host: str) -> dict[str, Any]:
        """As DATABASES has it, for whoever reaches the server by this host or folder."""
        parsed = dj_database_url.parse("postgres://postgres@/postgres")
        return {**parsed, "HOST": host, "PORT": "5432", "OPTIONS": {}}

    def end(self) -> None:
        self._control("-m", "immediate", "stop")


class WorkerOn:
    """``manage.py worker`` on one of the hosts."""

    def __init__(self, name: str, host: Host, database: dict[str, Any], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        flags = ("--timeout", str(LEASE), "--tick", "0.2", "--reload", "never")
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                host.inside(sys.executable, "-m", "django", "worker", *flags),
                cwd=ROOT,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.torture.settings",
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "TORTURE_DATABASE": json.dumps(database),
                    "TORTURE_HOST": name,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def rows(self) -> list[Worker]:
        """Its rows, in the order in which it took them."""
        return list(Worker.objects.using(DATABASE).filter(pid=self.process.pid).order_by("pk"))

    def stop(self) -> None:
        """End it in good order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        print(f"-- {self.log.name} --\n{self.log.read_text()}")  # noqa: T201  # shown by a failing test


@pytest.fixture
def network(program: Callable[[str], str]) -> Iterator[Network]:
    if connection.vendor != "postgresql":
        pytest.skip("once is enough, with PostgreSQL")
    with contextlib.ExitStack() as stack:
        try:
            for name in ("ip", "sh", "runuser"):
                program(name)
            made = Network(program, stack)
        except (PermissionError, subprocess.CalledProcessError) as error:
            why = f"{error} {getattr(error, 'stderr', '')}".strip()
            if "netns" in os.environ.get("REQUIRE", "").split(","):
                pytest.fail(f"network namespaces are required here: {why}")
            pytest.skip(why)
        yield made


@pytest.fixture
def postgres(network: Network, django_db_blocker: Any) -> Iterator[Postgres]:
    """Its database is known as `DATABASE` here, and has our tables."""
    with contextlib.ExitStack() as stack:
        # Not pytest's folder, which only its owner may enter: as root, the server runs as another user.
        folder = stack.enter_context(TemporaryDirectory(prefix="dbq-two-hosts-"))
        server = Postgres(network.near, Path(folder))
        stack.callback(server.end)
        databases = {"default": {}, DATABASE: server.settings(str(server.data))}
        stack.enter_context(django_db_blocker.unblock())
        connections.settings[DATABASE] = connections.configure_settings(databases)[DATABASE]
        stack.callback(connections.settings.pop, DATABASE)
        stack.callback(connections.__delitem__, DATABASE)
        stack.callback(connections[DATABASE].close)
        call_command("migrate", database=DATABASE, verbosity=0)
        with connections[DATABASE].schema_editor() as editor:
            editor.create_model(Effect)
        yield server


@pytest.fixture
def workers(
    network: Network, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], WorkerOn]]:
    """Starts a worker on the ``near`` or the ``far`` host."""
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    with contextlib.ExitStack() as stack:

        def start(name: str) -> WorkerOn:
            host, address = {
                "near": (network.near, str(postgres.data)),
                "far": (network.far, NEAR),
            }[name]
            worker = WorkerOn(name, host, postgres.settings(address), tmp_path)
            stack.callback(worker.end)
            return worker

        yield start


def create(name: str, key: str) -> uuid.UUID:
    return Job.objects.using(DATABASE).create(name=name, workspace={"key": key}).pk


def job(key: uuid.UUID) -> Job:
    return Job.objects.using(DATABASE).get(pk=key)


def attempts(key: uuid.UUID) -> list[tuple[int, str, str]]:
    rows = job(key).attempts.using(DATABASE).order_by("number")
    return list(rows.values_list("number", "outcome", "worker"))


@pytest.mark.parametrize("name", ["hold", "hold atomic"])
@pytest.mark.parametrize("cut", Network.CUTS)
def test_a_worker_that_is_cut_off_loses_its_job_and_nothing_else(
    cut: str, name: str, network: Network, workers: Callable[[str], WorkerOn], settings: Any
) -> None:
    settings.JOBS = torture_settings.JOBS
    far = workers("far")
    lost = create(name, "a job")
    told("a job has started on far")
    near = workers("near")
    until(lambda: near.rows, "the near worker")

    with Network.CUTS[cut](network):
        told("a job has started on near")
        tell("a job may end on near")
        until(lambda: job(lost).state == "COMPLETE", "the near worker to do the job")
        before = Job.objects.using(DATABASE).filter(pk=lost).values().get()
        tell("a job may end on far")
        if name == "hold":
            told("a job has ended on far")
    expected = [(1, "lost", far.rows[0].label), (2, "succeeded", near.rows[0].label)]
    assert attempts(lost) == expected
    assert far.rows[0].stopped is not None

    until(lambda: len(far.rows) == 2, "the far worker to begin anew")
    assert far.rows[1].stopped is None
    near.stop()
    anew = create(name, "another")
    told("another has started on far")
    tell("another may end on far")
    until(lambda: job(anew).state == "COMPLETE", "the far worker to do another job")
    assert job(anew).worker_id == far.rows[1].pk
    far.stop()

    assert Job.objects.using(DATABASE).filter(pk=lost).values().get() == before
    assert before["workspace"]["done"] == "near"
    assert attempts(lost) == expected
    assert attempts(anew) == [(1, "succeeded", far.rows[1].label)]
    effects = Effect.objects.using(DATABASE).order_by("at").values_list("job", "worker")
    wanted = [(lost, near.rows[0].pk), (anew, far.rows[1].pk)] if name == "hold atomic" else []
    assert list(effects) == wanted
