"""The tutorial is followed word for word: its files are written, its commands run, what it shows is compared."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from .test_docs import ROOT, blocks

END = "-- the end of a block --"
SECONDS = 120  # for all of it

# What differs from one run to the next, and what stands for it.
VARYING = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "an id",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "a time",
    r"\d+(\.\d+)? ?s\b": "some seconds",
}


class Terminal:
    """One shell, into which a reader types one block after the other."""

    def __init__(self, folder: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
        path = [str(Path(sys.executable).parent), environment["PATH"]]
        self.process = subprocess.Popen(
            ["sh", "-e"],  # ends with the first command that fails
            cwd=folder,
            env={**environment, "PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.watch = threading.Timer(SECONDS, self.process.kill)

    def __enter__(self) -> Self:
        self.watch.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.watch.cancel()

    def run(self, block: str) -> str:
        """Run the commands of a block, none of which may fail; returns all that they have printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{{\n{block}}} </dev/null\necho '{END}'\n")
        self.process.stdin.flush()
        printed = ""
        for line in self.process.stdout:
            if line.rstrip("\n").endswith(END):
                return printed + line.rstrip("\n").removesuffix(END)
            printed += line
        raise AssertionError(f"A command failed, or took too long:\n{block}\n{printed}")


def in_every_run(text: str) -> str:
    """``text`` without what differs; the page breaks lines that are too long for it."""
    for pattern, word in VARYING.items():
        text = re.sub(pattern, word, text)
    return " ".join(text.split())


def test_the_tutorial_works_word_for_word(tmp_path: Path) -> None:
    shown = 0
    printed = ""
    with Terminal(tmp_path) as terminal:
        for language, text in blocks((ROOT / "docs/tutorial.md").read_text()):
            if language == "python":
                named, _, code = text.partition("\n")
                with (tmp_path / named.removeprefix("# ")).open("a") as file:
                    file.write(f"\n\n{code}")
            elif language == "sh":
                printed = terminal.run(text)
            else:
                assert language == "text"
                assert in_every_run(printed).endswith(in_every_run(text)), printed
                shown += 1
    assert shown == 8
