"""procrastinate 3.10: async tasks, LISTEN/NOTIFY on, finished jobs kept, as it comes."""

from harness import arrived, begin, departures, main, timed
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=""))  # libpq's own variables say where


@app.task(name="noop")
async def noop() -> None:
    begin()


@app.task(name="stamp")
async def stamp(sent: float) -> None:
    arrived(sent)


def install() -> None:
    with app.open():
        app.schema_manager.apply_schema()


def fill(name: str, count: int, times: int = 1) -> None:
    with app.open():
        for _ in range(times):
            with timed():
                app.tasks[name].batch_defer(*[{} for _ in range(count)])


def send(count: int) -> None:
    with app.open():
        for now in departures(count):
            stamp.defer(sent=now)


main(
    install=install,
    fill=fill,
    drain=lambda concurrency: app.run_worker(wait=False, concurrency=concurrency),
    serve=app.run_worker,
    send=send,
)
