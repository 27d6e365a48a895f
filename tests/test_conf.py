"""Settings: read once, read anew when they change, and every mistake in ``DBQ``."""

import math
from typing import Any

import pytest
from django.core.signals import setting_changed
from django.test import override_settings

from django_dbq import conf

GOOD = {"a": ["m.x", "m.y"], "b": ["m.x", "m.x"]}


def test_settings_are_parsed_once(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.JOBS = GOOD
    first = conf.configuration()
    monkeypatch.setattr(conf, "parse", lambda *args: pytest.fail("parsed again"))
    assert conf.configuration() is first


def test_settings_are_parsed_anew_when_they_change(settings: Any) -> None:
    settings.JOBS = GOOD
    with override_settings(JOBS={"c": ["m.z"]}, DBQ={"WAKEUP": "poll"}):
        assert list(conf.catalogue()) == ["c"]
        assert conf.configuration().wakeup == "poll"
    assert list(conf.catalogue()) == ["a", "b"]
    assert conf.configuration().wakeup == "auto"


def test_a_setting_that_is_put_in_place_without_a_signal_is_seen(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.conf import settings as real

    settings.JOBS = GOOD
    assert list(conf.catalogue()) == ["a", "b"]
    monkeypatch.setattr(real, "JOBS", {"c": ["m.z"]}, raising=False)
    assert list(conf.catalogue()) == ["c"]


def test_a_setting_that_was_changed_in_place_is_read_anew_when_told(settings: Any) -> None:
    settings.JOBS = dict(GOOD)
    assert list(conf.catalogue()) == ["a", "b"]
    settings.JOBS["c"] = ["m.z"]
    setting_changed.send(sender=None, setting="JOBS", value=settings.JOBS, enter=True)
    assert list(conf.catalogue()) == ["a", "b", "c"]


def test_defaults_of_the_package_settings_reach_the_pipelines(settings: Any) -> None:
    settings.JOBS = GOOD
    settings.DBQ = {"DEFAULTS": {"queue": "slow"}}
    assert {pipeline.queue for pipeline in conf.catalogue().values()} == {"slow"}


def test_without_settings_there_are_no_jobs_and_no_problems(settings: Any) -> None:
    del settings.JOBS
    configuration = conf.configuration()
    assert len(configuration.catalogue) == 0
    assert configuration.problems == ()
    assert configuration.wakeup == "auto"
    assert (configuration.max_runs, configuration.worker_timeout) == (100, 60.0)


def test_what_a_worker_may_claim_is_every_name_with_each_of_its_paths_once(settings: Any) -> None:
    settings.JOBS = {**GOOD, "bad": ["m.x", 5]}
    assert conf.configuration().known_steps == ("a m.x", "a m.y", "b m.x")


def test_what_a_worker_may_claim_has_what_members_run_and_what_steps_were_called(
    settings: Any,
) -> None:
    group = {"group": ["m.x", ["m.y", ["m.z"]]], "name": "both", "renamed_from": "two"}
    mapped = {"map": "m.feed", "over": "cats", "renamed_from": ["m.give", "m.throw"]}
    wait = {"wait_for": "yes", "renamed_from": "ok"}
    settings.JOBS = {
        "a": [group, mapped, {"sleep": 1, "renamed_from": "m.rest"}, wait],
        "b": [{"task": "m.x", "when": "m.wanted", "renamed_from": "m.old"}],
    }
    assert set(conf.configuration().known_steps) == {
        *("a group both", "a group two", "a two", "a m.x", "a m.y", "a group", "a m.z"),
        *("a map m.feed", "a map m.give", "a map m.throw", "a m.feed", "a m.give", "a m.throw"),
        *("a sleep", "a m.rest", "a wait_for yes", "a wait_for ok", "a ok"),
        *("b m.x", "b m.old"),
    }


BAD: list[tuple[Any, str, str, str, str]] = [
    # DBQ, code, key path, a word of the problem, a word of the hint
    ([], "E007", "DBQ", "is a list", "dict"),
    (None, "E007", "DBQ", "None", "dict"),
    ({"WAKUP": "poll"}, "E007", 'DBQ["WAKUP"]', "did you mean 'WAKEUP'?", "DEFAULTS"),
    ({"zzz": 1}, "E007", 'DBQ["zzz"]', "unknown", "WAKEUP, DEFAULTS"),
    ({5: 1}, "E007", "DBQ[5]", "unknown", "WAKEUP"),
    ({"WAKEUP": "sometimes"}, "E008", 'DBQ["WAKEUP"]', "'sometimes'", '"poll"'),
    ({"WAKEUP": None}, "E008", 'DBQ["WAKEUP"]', "None", '"auto"'),
    ({"WAKEUP": ["poll"]}, "E008", 'DBQ["WAKEUP"]', "['poll']", '"auto"'),
    ({"WAKEUP": "redis://localhost"}, "E006", 'DBQ["WAKEUP"]', "not supported yet", "Remove"),
    ({"MAX_RUNS": 0}, "E008", 'DBQ["MAX_RUNS"]', "is 0", "1 or more, or None"),
    ({"MAX_RUNS": -1}, "E008", 'DBQ["MAX_RUNS"]', "is -1", "a whole number"),
    ({"MAX_RUNS": 1.5}, "E008", 'DBQ["MAX_RUNS"]', "is 1.5", "a whole number"),
    ({"MAX_RUNS": True}, "E008", 'DBQ["MAX_RUNS"]', "is True", "a whole number"),
    ({"MAX_RUNS": "5"}, "E008", 'DBQ["MAX_RUNS"]', "is '5'", "a whole number"),
    ({"MAX_RUNS": math.inf}, "E008", 'DBQ["MAX_RUNS"]', "is inf", "a whole number"),
    ({"MAX_RUN": 5}, "E007", 'DBQ["MAX_RUN"]', "did you mean 'MAX_RUNS'?", "MAX_RUNS"),
    ({"RETENTION": {}}, "E006", 'DBQ["RETENTION"]', "not supported yet", "Remove"),
    ({"WORKER_TIMEOUT": 0}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is 0", "seconds, 1 or more"),
    ({"WORKER_TIMEOUT": 0.9}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is 0.9", "seconds, 1 or more"),
    ({"WORKER_TIMEOUT": math.inf}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is inf", "1 or more"),
    ({"WORKER_TIMEOUT": math.nan}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is nan", "1 or more"),
    ({"WORKER_TIMEOUT": 10**400}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is 1000", "1 or more"),
    ({"WORKER_TIMEOUT": True}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is True", "1 or more"),
    ({"WORKER_TIMEOUT": "60"}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is '60'", "1 or more"),
    ({"WORKER_TIMEOUT": None}, "E008", 'DBQ["WORKER_TIMEOUT"]', "is None", "1 or more"),
    ({"DEFAULTS": []}, "E008", 'DBQ["DEFAULTS"]', "[]", "a dict of job options"),
    ({"DEFAULTS": "slow"}, "E008", 'DBQ["DEFAULTS"]', "'slow'", "a dict of job options"),
    ({"DEFAULTS": {"quue": "x"}}, "E003", 'DBQ["DEFAULTS"]["quue"]', "'queue'", "priority"),
    ({"DEFAULTS": {"queue": 5}}, "E004", 'DBQ["DEFAULTS"]["queue"]', "5", "1 to 63"),
    ({"DEFAULTS": {"tasks": ["m.x"]}}, "E003", 'DBQ["DEFAULTS"]["tasks"]', "unknown", "queue"),
    (
        {"DEFAULTS": {"schedule": {"cron": "0 8 * * *"}}},
        "E006",
        'DBQ["DEFAULTS"]["schedule"]',
        "not supported",
        "Remove",
    ),
    ({"DEFAULTS": {"retries": -1}}, "E004", 'DBQ["DEFAULTS"]["retries"]', "-1", "whole number"),
    ({"DEFAULTS": {"retry_delay": 900}}, "E013", 'DBQ["DEFAULTS"]["retry_delay"]', "600", "both"),
]


@pytest.mark.parametrize(("dbq", "code", "where", "text", "hint"), BAD)
def test_mistakes_in_dbq(
    settings: Any, dbq: Any, code: str, where: str, text: str, hint: str
) -> None:
    settings.JOBS = GOOD
    settings.DBQ = dbq
    configuration = conf.configuration()
    assert [(p.code, p.where) for p in configuration.problems] == [(code, where)]
    (problem,) = configuration.problems
    assert text in problem.text
    assert hint in problem.hint
    assert len(configuration.catalogue) == 2  # the jobs are not at fault
    assert configuration.wakeup == "auto"
    assert (configuration.max_runs, configuration.worker_timeout) == (100, 60.0)


@pytest.mark.parametrize("wakeup", ["auto", "poll"])
def test_what_is_right(settings: Any, wakeup: str) -> None:
    settings.JOBS = GOOD
    settings.DBQ = {"WAKEUP": wakeup, "DEFAULTS": {}}
    assert conf.configuration().problems == ()
    assert conf.configuration().wakeup == wakeup


@pytest.mark.parametrize("runs", [1, 100, 10**9, None])
def test_max_runs(settings: Any, runs: int | None) -> None:
    settings.JOBS = GOOD
    settings.DBQ = {"MAX_RUNS": runs}
    assert conf.configuration().problems == ()
    assert conf.configuration().max_runs == runs


@pytest.mark.parametrize("seconds", [1, 1.5, 60, 3600])
def test_worker_timeout_is_a_float_of_seconds(settings: Any, seconds: float) -> None:
    settings.JOBS = GOOD
    settings.DBQ = {"WORKER_TIMEOUT": seconds}
    assert conf.configuration().problems == ()
    assert repr(conf.configuration().worker_timeout) == repr(float(seconds))
