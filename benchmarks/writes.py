"""What one no-op job costs the database: statements, transactions, row versions, log bytes."""

from collections.abc import Iterator

from benchmarks.lab import Lab
from benchmarks.queues import DBQ33, OURS, PGQUEUER, PROCRASTINATE, Queue, Stand
from benchmarks.results import Figure

# "n_tup_upd" counts the HOT ones, too: those that no index had to follow.
COUNTERS = """
    SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_hot_upd), sum(n_tup_del),
           (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
           pg_current_wal_lsn() - '0/0'::pg_lsn
    FROM pg_stat_user_tables
"""
NAMES = (
    "rows inserted",
    "rows updated",
    "of these HOT",
    "rows deleted",
    "transactions",
    "bytes of WAL",
)


def spent(lab: Lab, queue: Queue, jobs: int, *arguments: object) -> dict[str, float]:
    """What draining `jobs` jobs took, per job."""
    with lab.stand(queue) as stand:
        stand.do("fill", "noop", jobs)
        before = counters(stand)
        with lab.server.logged(stand.database) as statements:
            stand.drain("noop", jobs, *arguments)
        after = counters(stand)
    costs = {"statements": statements.total()}
    costs |= {name: after[name] - before[name] for name in NAMES}
    return {name: cost / jobs for name, cost in costs.items()}


def counters(stand: Stand) -> dict[str, int]:
    """The counters so far; every other process on the database has ended and delivered its own."""
    row = stand.server.rows(stand.database, COUNTERS)[0]
    return dict(zip(NAMES, map(int, row), strict=True))


def measure(lab: Lab) -> Iterator[Figure]:
    many, few = lab.jobs // 2, lab.jobs // 20
    ours = spent(lab, OURS, many)
    if not lab.peers:
        for name, cost in ours.items():
            yield Figure("writes", f"{name} per job", "", [cost])
        return
    for queue, theirs in (
        (DBQ33, spent(lab, DBQ33, few, few)),
        (PROCRASTINATE, spent(lab, PROCRASTINATE, few, 10)),
        (PGQUEUER, spent(lab, PGQUEUER, many)),
    ):
        for name in ours:
            yield Figure("writes", f"{name} per job", "", [ours[name]], queue.name, [theirs[name]])
