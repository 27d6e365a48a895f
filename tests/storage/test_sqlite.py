"""SQLite's own: one writer at a time, who must not be overtaken between reading and writing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, connections

from django_dbq.storage import Storage

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor != 'sqlite'", reason="about SQLite's transactions"),
]


@pytest.mark.parametrize("before", ["open", "never opened", "closed"])
def test_writing_begins_with_the_lock(storage: Storage, before: str) -> None:
    """Whatever the thread has done with its connection, in a project that has not set ``transaction_mode``."""

    def statements() -> list[str]:
        ours, seen = connections["default"], []
        options = {**ours.settings_dict["OPTIONS"]}
        options.pop("transaction_mode")
        ours.settings_dict = {**ours.settings_dict, "OPTIONS": options}
        if before != "never opened":
            ours.ensure_connection()
        if before == "closed":
            ours.close()
        ours.force_debug_cursor = True
        try:
            with storage.write():
                pass
            seen = [query["sql"] for query in ours.queries]
            assert ours.transaction_mode is None, "the project's own mode is not put back"
        finally:
            ours.close()
        return seen

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(statements).result(30)[0] == "BEGIN IMMEDIATE"


def test_an_ordinary_transaction_is_left_as_it_is(storage: Storage) -> None:
    with storage.write():
        assert connection.in_atomic_block
    assert connection.transaction_mode == connection.settings_dict["OPTIONS"]["transaction_mode"]
