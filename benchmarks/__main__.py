"""Measure this package beside other queues; print a table of ratios.

Every queue runs in processes of its own, on a database of its own, on one PostgreSQL that is
started for the run in a temporary folder. A target that is missed is printed as MISSED; only what
breaks makes the exit code other than 0.
"""

import argparse
import json
import os
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks import crowded, drain, enqueue, fan, latency, memory, server, writes
from benchmarks.lab import Lab
from benchmarks.results import HEADINGS, Figure

MEASURES = {
    "drain": drain.noop,
    "pipelines": drain.pipelines,
    "fan": fan.measure,
    "latency": latency.measure,
    "enqueue": enqueue.measure,
    "crowded": crowded.measure,
    "memory": memory.measure,
    "writes": writes.measure,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(MEASURES), help="some of: %(default)s")
    parser.add_argument("--jobs", type=int, help="jobs per drain (20000; 2000 with --small)")
    parser.add_argument("--rounds", type=int, help="rounds per measurement (5; 3 with --small)")
    parser.add_argument("--small", action="store_true", help="a quick round without other queues")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",")
    if unknown := set(chosen.only) - set(MEASURES):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    chosen.jobs = chosen.jobs or (2_000 if chosen.small else 20_000)
    chosen.rounds = chosen.rounds or (3 if chosen.small else 5)
    return chosen


def main() -> None:
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped
    figures: list[Figure] = []
    with server.running() as running:
        setting = (
            f"PostgreSQL {running.rows('postgres', 'SHOW server_version')[0][0]}, "
            f"Python {platform.python_version()}, Django {version('Django')}, "
            f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before; "
            f"{chosen.jobs:,} jobs, rounds: {chosen.rounds}"
        )
        print(f"{setting}\n\n{HEADINGS}", flush=True)
        lab = Lab(running, chosen.jobs, chosen.rounds, peers=not chosen.small)
        for name in chosen.only:
            for figure in MEASURES[name](lab):
                figures.append(figure)
                print(figure, flush=True)
    print(
        "\nFigures are medians of the rounds; a ratio is the median of the rounds' ratios."
        f" Load after: {os.getloadavg()[0]:.1f}."
    )
    if chosen.json:
        data = {"setting": setting, "figures": [each.data() for each in figures]}
        chosen.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
