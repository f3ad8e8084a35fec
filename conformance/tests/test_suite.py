"""The door for pytest: a class to inherit from, strict expectations, no overriding, a backend from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import broken
import pytest

from dit_cache_backends import ConfigError
from dit_cache_conformance import CHECKS, CacheBackendSuite, check_backend

NAME = "every_option_is_read"


def outcome(suite: CacheBackendSuite, name: str = NAME) -> str:
    try:
        getattr(suite, f"test_{name}")()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "passed"


def test_the_suite_has_a_test_for_each_check_with_its_docstring() -> None:
    tests = {name: test for name, test in vars(CacheBackendSuite).items() if name.startswith("test_")}
    assert list(tests) == [f"test_{name}" for name in CHECKS]
    assert all(test.__doc__ == CHECKS[name[5:]].run.__doc__ for name, test in tests.items())


def test_a_failure_says_what_was_promised_what_was_found_and_what_to_do() -> None:
    class Suite(CacheBackendSuite):
        backend = broken.IgnoresAnOption

    text = outcome(Suite())
    assert text.startswith("Failed: Every option is read")
    assert "nothing reads patience_of_the_cache" in text
    assert "If this fails, " in text


def test_an_expected_failure_is_strict() -> None:
    class Known(CacheBackendSuite):
        backend = broken.IgnoresAnOption
        expected_failures = {NAME: "kept for the next release"}  # noqa: RUF012

    class Mended(CacheBackendSuite):
        backend = broken.Honest
        expected_failures = Known.expected_failures

    assert outcome(Known()) == "XFailed: kept for the next release"
    assert "was expected to fail (kept for the next release) and passes; take it out" in outcome(Mended())


def test_an_expected_failure_on_one_model_excuses_no_other() -> None:
    check = "an_eager_configuration_skips"
    everywhere = {f"{check}[{model}]": "dense" for model in CHECKS[check].models}
    report = check_backend(broken.AlwaysDense, only=check, expected_failures=everywhere)
    assert [result.status for result in report.results] == ["expected"]
    some = {key: reason for key, reason in everywhere.items() if "sd3" not in key}
    report = check_backend(broken.AlwaysDense, only=check, expected_failures=some)
    assert report.failed == [check]
    report = check_backend(broken.Honest, only=check, models=["sd3"], expected_failures=everywhere)
    assert [result.status for result in report.results] == ["unexpected"]


def test_an_expected_failure_of_a_check_that_does_not_exist_is_refused() -> None:
    for key in ("every_option_is_rea", f"{NAME}[flux]", "an_eager_configuration_skips[fluxx]"):
        with pytest.raises(ConfigError, match=r"expected_failures.*(Did you mean|not tried on)"):
            check_backend(broken.Honest, only=NAME, expected_failures={key: "why"})


def test_a_refused_model_is_declared_on_the_suite_by_a_name_that_exists() -> None:
    class Refusing(CacheBackendSuite):
        backend = broken.RefusesWithoutSayingSo
        refuses = {"dit": "it is no flow"}  # noqa: RUF012

    class Misspelt(Refusing):
        refuses = {"dti": "it is no flow"}  # noqa: RUF012

    class Both(Refusing):
        expected_failures = {"disabling_twice_is_harmless[dit]": "it is no flow"}  # noqa: RUF012

    name = "a_refused_model_is_left_alone"
    assert outcome(Refusing(), name) == "passed"
    assert "declares to refuse none of the models" in outcome(
        type("Plain", (CacheBackendSuite,), {"backend": broken.Honest})(), name
    )
    assert "refuses: there is no tiny model 'dti'. Did you mean 'dit'?" in outcome(Misspelt(), name)
    assert "so the check is not tried on it; take it out" in outcome(Both(), name)


def test_a_check_that_is_overridden_fails() -> None:
    class Suite(CacheBackendSuite):
        backend = broken.IgnoresAnOption

        def test_every_option_is_read(self) -> None:
            """All is well."""

        def test_of_my_own(self) -> None:
            """This one is new."""

    assert "Suite overrides test_every_option_is_read" in outcome(Suite())
    Suite().test_of_my_own()


def test_a_check_that_is_switched_off_by_an_attribute_fails_too() -> None:
    class Suite(CacheBackendSuite):
        backend = broken.IgnoresAnOption
        test_every_option_is_read = None  # type: ignore[assignment]

    assert "Suite overrides test_every_option_is_read" in outcome(Suite())


def test_a_backend_without_an_eager_configuration_is_told_how_to_give_one() -> None:
    class Bare(broken.Honest):
        """Says nothing."""

        conformance = {}  # noqa: RUF012

    with pytest.raises(ConfigError, match=r"got no eager and no never\. Give eager="):
        check_backend(Bare)
    report = check_backend(Bare, eager={"threshold": 0.9}, never={"threshold": 0.0}, only=NAME)
    assert report.failed == []


@pytest.mark.parametrize("options", [[], ["--cache-backend", "cache_dit"], ["--cache-backend", "cache_dti"]])
def test_pytest_runs_the_suite_on_a_backend_that_the_command_line_names(
    options: list[str], tmp_path: Path
) -> None:
    cheap = "an_unknown_option_is_named"  # it needs no model
    arguments = ["-q", "-p", "no:cacheprovider", "--pyargs", "dit_cache_conformance", "-k", cheap, *options]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = ("1 skipped", "1 passed", "Did you mean 'cache_dit'")[
        len(options) and 1 + ("cache_dti" in options)
    ]
    assert expected in ran.stdout, ran.stdout + ran.stderr
