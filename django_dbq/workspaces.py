"""The workspace's one way to text and back, the same for every database.

The strictest database decides what JSON is: PostgreSQL's ``jsonb`` takes no NaN, no NUL character and no half of a
surrogate pair, MariaDB no more than 31 levels. What one database could not store is refused for all, before anything
is written.
"""

import json
import math
from typing import Any

_DEPTH = 31  # levels of dicts and lists: MariaDB stores no more

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class InvalidWorkspace(TypeError):
    """A workspace that is not JSON; the message names the key and the value's type."""


def dump(workspace: Any, what: str = "workspace", inside: int = 0) -> str:
    """Serialise ``workspace``, or ``what`` else it is.

    Args:
        inside: levels of the workspace that it will be put into.

    Raises:
        InvalidWorkspace: it holds something that JSON, or one of the supported databases, cannot.
    """
    try:
        text = _encode(workspace)
        text.encode()  # a lone surrogate raises here
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidWorkspace(
            _explain(workspace, what, inside) or f"{what} is not JSON: {error}"
        ) from None
    # Both are looked for in the text first, which is quick, and found out for sure only where that is not clear.
    levels = _DEPTH - inside
    if text.count("{") + text.count("[") > levels and _too_deep(workspace, levels):
        raise InvalidWorkspace(_explain(workspace, what, inside))
    # A NUL is always escaped in JSON text, so it can be looked for there; "\\u0000" may also be a backslash's.
    if "\\u0000" in text and (problem := _explain(workspace, what)):
        raise InvalidWorkspace(problem)
    return text


def load(text: str | None) -> Any:
    """The inverse of `dump`; NULL and null are an empty workspace."""
    workspace = None if text is None else json.loads(text)
    return {} if workspace is None else workspace


def _too_deep(value: Any, levels: int) -> bool:
    """Whether ``value`` holds more levels of dicts and lists than that."""
    if not isinstance(value, dict | list | tuple):
        return False
    items = value.values() if isinstance(value, dict) else value
    return not levels or any(_too_deep(item, levels - 1) for item in items)


def _explain(value: Any, path: str, depth: int = 0) -> str | None:
    """Say what is wrong with the first value that cannot be stored, by its key path."""
    if depth >= _DEPTH and isinstance(value, dict | list | tuple):
        return f"{path[:80]}… is nested too deeply, or contains itself (a workspace has at most {_DEPTH} levels)"
    if value is None or isinstance(value, bool | int):
        return None
    if isinstance(value, str):
        return _explain_text(value, path)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}, which JSON does not know"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                return f"{path} has the key {key!r}: JSON keys are strings"
            name = f"the key {key!r} of {path}"
            problem = _explain_text(key, name) if isinstance(key, str) else _explain(key, name)
            if problem := problem or _explain(item, f"{path}[{key!r}]", depth + 1):
                return problem
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if problem := _explain(item, f"{path}[{index}]", depth + 1):
                return problem
        return None
    return (
        f"{path} is of type {type(value).__qualname__}, which JSON does not know: "
        "store a string or a number, or the primary key of a model instance"
    )


def _explain_text(text: str, path: str) -> str | None:
    if "\0" in text:
        return f"{path} contains a NUL character, which databases cannot store"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{path} contains half of a surrogate pair, which is not text"
    return None
