"""pgqueuer 1.6 as its own command runs it, on uvloop over asyncpg, with batches of 100."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import uvloop
from harness import arrived, begin, departures, main, timed
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode


def on_uvloop(verb: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The verb on an event loop of its own, with a driver to the database as first argument."""

    async def connected(*arguments: Any) -> None:
        await verb(AsyncpgDriver(await asyncpg.connect()), *arguments)

    return lambda *arguments: uvloop.run(connected(*arguments))


@on_uvloop
async def install(driver: AsyncpgDriver) -> None:
    await Queries(driver).install()


@on_uvloop
async def fill(driver: AsyncpgDriver, name: str, count: int, times: int = 1) -> None:
    queries = Queries(driver)
    for _ in range(times):
        with timed():
            await queries.enqueue([name] * count, [None] * count, [0] * count)


@on_uvloop
async def send(driver: AsyncpgDriver, count: int) -> None:
    queries = Queries(driver)
    for now in departures(count):
        await queries.enqueue("stamp", str(now).encode())


async def work(driver: AsyncpgDriver, mode: QueueExecutionMode) -> None:
    queue = PgQueuer(driver)

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        begin()

    @queue.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        arrived(float(job.payload or b""))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.qm.shutdown.set)
    await queue.qm.run(batch_size=100, mode=mode)


@on_uvloop
async def drain(driver: AsyncpgDriver) -> None:
    await work(driver, QueueExecutionMode.drain)


@on_uvloop
async def serve(driver: AsyncpgDriver) -> None:
    await work(driver, QueueExecutionMode.continuous)


main(install=install, fill=fill, drain=drain, serve=serve, send=send)
