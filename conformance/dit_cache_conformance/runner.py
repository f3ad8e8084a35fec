"""The door for the terminal and for programs: every check on one backend, and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dit_cache_conformance.checks  # noqa: F401 (fills the list)
from dit_cache_backends import CacheBackend, ConfigError
from dit_cache_backends.errors import near
from dit_cache_conformance.check import CHECKS, GROUPS, Check, Result, run_check
from dit_cache_conformance.report import Report
from dit_cache_conformance.state import settling
from dit_cache_conformance.subject import find_subject


def check_backend(
    backend: str | type[CacheBackend],
    *,
    eager: Mapping[str, Any] | None = None,
    never: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    refuses: Mapping[str, str] | None = None,
    only: str | Iterable[str] = (),
    models: Sequence[str] = (),
    expected_failures: Mapping[str, str] | None = None,
    progress: Callable[[Result], None] | None = None,
) -> Report:
    """Try every promise of a cache backend on tiny models.

    Args:
        backend: The class, or the name of an installed backend.
        eager: Options under which blocks are skipped in a run of eight steps. If they are not given, the class's own
            ``conformance["eager"]``, else this package's preset for a built-in backend.
        never: Options under which nothing is ever skipped; likewise.
        config: Options that go into both.
        refuses: From the name of a tiny model that the backend refuses to the reason; likewise. No check is tried on
            it but one: that it is refused.
        only: Names of groups and checks; everything if empty.
        models: Tiny models to restrict the checks to; a check that has none of them keeps its own.
        expected_failures: From the name of a check, or ``name[model]``, to the reason. One that passes is a failure.
        progress: Called with each result.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        ConfigError: A configuration is missing or refused, or a name in ``only``, ``models``, ``refuses`` or
            ``expected_failures`` is unknown.
    """
    subject = find_subject(backend, eager, never, config, refuses)
    chosen = select(only)
    reasons = dict(expected_failures or {})
    check_names(reasons, subject.refuses)
    check_models(models)
    results = []
    with settling():
        for each in chosen:
            results.append(run_check(each, subject, models, reasons))
            if progress is not None:
                progress(results[-1])
    return Report(subject.cls.name, tuple(results))


def select(only: str | Iterable[str] = ()) -> list[Check]:
    """The checks of these groups or names, in the order of the list; all of them if there are none.

    Raises:
        ConfigError: A name is neither a group's nor a check's.
    """
    wanted = [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in GROUPS and name not in CHECKS:
            raise ConfigError(
                f"there is no check or group {name!r}.{near(name, [*GROUPS, *CHECKS])} Groups: {', '.join(GROUPS)}; "
                "`dit-cache check --list` shows the checks."
            )
    return [each for each in CHECKS.values() if not wanted or each.name in wanted or each.group in wanted]


def check_models(names: Iterable[str], where: str = "") -> None:
    """Refuse a model that no check is tried on.

    Raises:
        ConfigError: with the nearest name.
    """
    known = sorted({model for each in CHECKS.values() for model in each.models})
    for model in names:
        if model not in known:
            raise ConfigError(
                f"{where}there is no tiny model {model!r}.{near(model, known)} There are {', '.join(known)}."
            )


def check_names(reasons: Mapping[str, str], refuses: Mapping[str, str]) -> None:
    """Refuse an expected failure that is no check, and a refused model that is none.

    Raises:
        ConfigError: with the nearest name.
    """
    check_models(refuses, "refuses: ")
    for key in reasons:
        name, _, model = key.partition("[")
        if name not in CHECKS:
            raise ConfigError(
                f"expected_failures: there is no check {name!r}.{near(name, CHECKS)} Keys are a check's name, or "
                "name[model]."
            )
        if model and model.rstrip("]") not in CHECKS[name].models:
            models = ", ".join(CHECKS[name].models) or "no model"
            raise ConfigError(
                f"expected_failures: {name} is not tried on {model.rstrip(']')!r} but on {models}."
            )
        if model.rstrip("]") in refuses and not CHECKS[name].refused:
            raise ConfigError(
                f"expected_failures: {key}: that model is refused, so the check is not tried on it; take it out."
            )
