"""The door for pytest: a class to inherit from, with a test for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

import dit_cache_conformance.checks  # noqa: F401 (fills the list)
from dit_cache_backends import CacheBackend
from dit_cache_conformance.check import CHECKS, Check, run_check
from dit_cache_conformance.runner import check_names
from dit_cache_conformance.subject import find_subject


class CacheBackendSuite:
    """Every check as a test::

        class TestMine(CacheBackendSuite):
            backend = "mine"                      # the name of an installed backend, or its class
            eager = {"threshold": 0.9}            # blocks are skipped in a run of eight steps
            never = {"threshold": 0.0}            # nothing is ever skipped
            refuses = {"dit": "it is no flow"}    # models that it refuses; everything else is tried on the others
            expected_failures = {"check": "reason"}  # strict: one that passes is a failure

    ``eager``, ``never`` and ``refuses`` may stand on the backend's class instead, as ``conformance = {"eager": ...}``.

    What a test is about stands in its check's docstring. A check cannot be overridden.
    """

    backend: ClassVar[str | type[CacheBackend]] = ""
    eager: ClassVar[Mapping[str, Any] | None] = None
    never: ClassVar[Mapping[str, Any] | None] = None
    config: ClassVar[Mapping[str, Any] | None] = None
    """Options that go into both."""
    refuses: ClassVar[Mapping[str, str] | None] = None
    """From the name of a tiny model that the backend refuses to the reason; that it is refused is checked, too."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """From the name of a check, or ``name[model]``, to the reason."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in list(vars(cls)):
            if name in _TESTS:
                setattr(cls, name, _overridden(name, cls.__name__))


def _test(check: Check) -> Callable[[CacheBackendSuite], None]:
    def test(self: CacheBackendSuite) -> None:
        subject = find_subject(self.backend, self.eager, self.never, self.config, self.refuses)
        check_names(self.expected_failures, subject.refuses)
        result = run_check(check, subject, expected_failures=dict(self.expected_failures))
        if result.status == "skipped":
            pytest.skip(result.message)
        if result.status == "expected":
            pytest.xfail(result.message)
        if not result.ok:
            remedy = f"\n{check.remedy}" if result.status == "failed" else ""
            pytest.fail(f"{check.promise}\n{result.message}{remedy}", pytrace=False)

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"CacheBackendSuite.{test.__name__}"
    test.__doc__ = check.run.__doc__
    return test


def _overridden(name: str, suite: str) -> Callable[[CacheBackendSuite], None]:
    def test(self: CacheBackendSuite) -> None:
        pytest.fail(
            f"{suite} overrides {name}. A check is the same for every backend: take the override out, and if the "
            f"promise cannot be kept write expected_failures = {{{name.removeprefix('test_')!r}: 'reason'}}.",
            pytrace=False,
        )

    test.__name__ = name
    return test


_TESTS = {f"test_{each.name}": _test(each) for each in CHECKS.values()}
for _name, _function in _TESTS.items():
    setattr(CacheBackendSuite, _name, _function)
