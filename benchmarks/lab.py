"""What every measurement is given: the server, fresh stands, and how much to do."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.queues import Queue, Stand
from benchmarks.server import Server

T = TypeVar("T")


@dataclass
class Lab:
    server: Server
    jobs: int
    rounds: int
    peers: bool  # whether the other queues take part

    def rounds_of(self, *sides: Callable[[], T]) -> list[list[T]]:
        """What each side came to, round by round.

        Every round runs every side once, every other one in reverse, so that what else the machine
        is doing meets all sides alike.
        """
        results: list[list[T]] = [[] for _ in sides]
        for number in range(self.rounds):
            pairs = list(zip(sides, results, strict=True))
            for side, result in reversed(pairs) if number % 2 else pairs:
                result.append(side())
        return results

    @contextmanager
    def stand(self, queue: Queue, template: str = "") -> Iterator[Stand]:
        """`queue` on a new copy of its installed, empty database, or of another template."""
        self.server.copy(template or self.installed(queue), queue.script)
        with self.on(queue, queue.script) as stand:
            yield stand

    @contextmanager
    def on(self, queue: Queue, database: str) -> Iterator[Stand]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            yield Stand(self.server, queue, database, Path(folder))

    def installed(self, queue: Queue) -> str:
        """The name of a template that holds the queue's empty tables."""
        template = f"{queue.script}_installed"
        if self.server.create(template):
            with self.on(queue, template) as stand:
                stand.do("install")
        return template
