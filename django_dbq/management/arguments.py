"""How the arguments of commands are read: what is refused is told what was expected, in the words of the settings."""

import contextlib
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from ..options import Expectation

MISUSED = 2  # the exit code of a command whose arguments are no good, as it is argparse's


def given(convert: Callable[[str], Any], expects: Expectation) -> Callable[[str], Any]:
    """The ``type`` of an argument whose text ``convert`` makes into a value, if that is what ``expects`` accepts."""

    def read(text: str) -> Any:
        value: Any = None  # which is never what is expected
        with contextlib.suppress(ValueError):
            value = convert(text)
        if (expected := expects(value)) is not None:
            raise ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return read
