"""The documentation says what is so: its commands and its Python are run, its tables are held against the code."""

import os
import re
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.management import load_command_class

from django_dbq import conf, options
from django_dbq.checks import check_settings
from django_dbq.outcomes import AttemptOutcome
from django_dbq.states import State

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text()
JOBS_PAGE = (ROOT / "docs/jobs.md").read_text()


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level, rest = re.split(rf"^(#+) {re.escape(title)}\n", text, flags=re.MULTILINE)[1:]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def first_column(text: str) -> set[str]:
    """The first word in backticks of every row of the tables in ``text``."""
    return set(re.findall(r"^\| `([\w-]+)", text, re.MULTILINE))


# -- what can be run --


def test_the_five_minutes_work_word_for_word(tmp_path: Path) -> None:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH")
    }
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = ""

    def run(script: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # This environment stands for the one that the first three lines make.
    making = "python3 -m venv .venv\n. .venv/bin/activate\npip install path/to/the/checkout\n"
    found = blocks(section(README, "Five minutes"))
    assert found[0][1].startswith(making)
    found[0] = ("sh", found[0][1].removeprefix(making))
    for language, text in found:
        if language == "sh":
            printed = run(text)
        elif language == "text":
            assert printed.endswith(text)
        elif "JOBS" in text:
            with (tmp_path / "mysite/settings.py").open("a") as settings:
                settings.write(text)
        else:
            (tmp_path / "mysite/jobs.py").write_text(text)


class Shop(ModuleType):
    """The module that the pages' examples are in: what no page defines is a task or hook that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda job, exc=None: None


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Its namespace, in which all Python of a page is run."""
    module = Shop("shop.jobs")
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.jobs", module)
    return module.__dict__


def run_python(page: str, shop: dict[str, Any], settings: Any) -> None:
    for language, text in blocks(page):
        if language != "python":
            continue
        exec(compile(text, "an example", "exec"), shop)
        settings.JOBS, settings.DBQ = shop.get("JOBS", {}), shop.get("DBQ", {})
        assert check_settings() == []


@pytest.mark.django_db
def test_the_examples_of_the_readme(shop: dict[str, Any], settings: Any) -> None:
    run_python(section(README, "`JOBS` by example"), shop, settings)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["jobs", "reliability", "signals", "testing", "worker"])
def test_the_python_of_a_page(name: str, shop: dict[str, Any], settings: Any) -> None:
    if name != "jobs":  # the pipelines and tasks that other pages speak of
        run_python(JOBS_PAGE, shop, settings)
        shop["Job"].objects.all().delete()
    run_python((ROOT / f"docs/{name}.md").read_text(), shop, settings)
    cases = [c for c in shop.values() if isinstance(c, type) and c.__module__ == "shop.jobs"]
    assert bool(cases) == (name == "testing")
    for case in cases:
        # Each method on its own: the class would close the connection, which is this test's as well.
        for method in unittest.defaultTestLoader.getTestCaseNames(case):
            test = case(method)
            test.setUp()
            getattr(test, method)()
            shop["Job"].objects.all().delete()


# -- what can be looked up --


def test_every_flag_of_the_worker_is_documented_and_no_other() -> None:
    parser = load_command_class("django_dbq", "worker").create_parser("manage.py", "worker")
    django = {"--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback"}
    django |= {"--no-color", "--force-color", "--skip-checks"}
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings}
    flags = {flag for flag in flags if flag.startswith("--")} - django
    page = (ROOT / "docs/worker.md").read_text()
    assert first_column(page.partition("## Signals")[0]) == flags
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", page)) - {"--hours"} <= known | django


def test_every_option_is_documented_as_what_it_is() -> None:
    options_table = first_column(section(JOBS_PAGE, "`JOBS`"))
    assert options_table == {name for name, o in options.JOB_OPTIONS.items() if o.supported}
    assert first_column(section(JOBS_PAGE, "`DBQ`")) == set(conf.KEYS)
    later = re.search(r"\*\*Not supported yet\.\*\*(.*?)\n\n", JOBS_PAGE, re.DOTALL)
    assert later
    refused = {name for name, o in options.JOB_OPTIONS.items() if not o.supported} | {*conf.LATER}
    assert refused <= set(re.findall(r"`(\w+)`", later[1]))


def test_every_form_of_a_step_is_documented_with_its_options() -> None:
    forms, own = re.findall(r"(?:^\|.*\n)+", section(JOBS_PAGE, "Steps"), re.MULTILINE)[:2]
    assert first_column(forms) == set(options.FORMS)
    said = {
        name: set(options.FORMS if of == "all" else re.findall(r"`(\w+)`", of))
        for name, of in re.findall(r"^\| `(\w+)` \| (.*?) \|", own, re.MULTILINE)
    }
    expected: dict[str, set[str]] = {}
    for form, known in options.FORMS.items():
        shared = options.SHARED if form in ("task", "map") else {}
        for name in known.keys() - shared - {form}:
            expected.setdefault(name, set()).add(form)
        assert shared.keys() <= known.keys()
    assert said == expected


def test_every_state_and_every_outcome_is_documented() -> None:
    looking = section(JOBS_PAGE, "Looking at jobs")
    states, outcomes = re.findall(r"^\| (?:state|outcome).*\n(?:^\|.*\n)+", looking, re.MULTILINE)
    assert first_column(states) | {"READY"} == set(State.values)
    assert first_column(outcomes) == set(AttemptOutcome.values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, target
