"""The backend under test: its class, a configuration that skips and one that never does, the models it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from dit_cache_backends import CacheBackend, Capabilities, ConfigError, get_cache_backend, list_cache_backends
from dit_cache_conformance.presets import PRESETS


@dataclass(frozen=True)
class Subject:
    """What every check is given."""

    cls: type[CacheBackend]
    eager: Mapping[str, Any]
    """Options under which blocks are skipped in a run of eight steps, of each expert's four too."""
    never: Mapping[str, Any]
    """Options under which nothing is ever skipped."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Tiny models that it refuses to be enabled on, each with the reason."""
    made: list[CacheBackend] = field(default_factory=list, compare=False)

    @property
    def capabilities(self) -> Capabilities:
        """What the backend declares."""
        return self.cls.capabilities

    def one_of(self, models: Sequence[str]) -> str:
        """The first of the models that it does not refuse."""
        return next((model for model in models if model not in self.refuses), models[0])

    def make(self, **options: Any) -> CacheBackend:
        """A backend with these options, disabled when the check is over."""
        backend = self.cls(dict(options))
        self.made.append(backend)
        return backend

    def eagerly(self, **options: Any) -> CacheBackend:
        """A fresh backend that skips."""
        return self.make(**{**self.eager, **options})

    def never_skipping(self) -> CacheBackend:
        """A fresh backend that does not."""
        return self.make(**self.never)

    @contextmanager
    def cleaned_up(self) -> Iterator[None]:
        """Disable what was made within, so that one check's failure is not the next one's."""
        try:
            yield
        finally:
            while self.made:
                with suppress(Exception):
                    self.made.pop().disable()


def find_subject(
    backend: str | type[CacheBackend],
    eager: Mapping[str, Any] | None = None,
    never: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    refuses: Mapping[str, str] | None = None,
) -> Subject:
    """The backend of that name, or that class, with its two configurations and the models that it refuses.

    What is not given is taken from the class's own ``conformance`` mapping (``{"eager": {...}, "never": {...},
    "refuses": {"model": "reason"}}``, the last only where there are such models), else from this package's presets for
    the built-in backends. ``config`` goes into both configurations.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        BackendLoadError: It is installed but broken.
        ConfigError: One of the configurations is missing or is refused.
    """
    cls = backend if isinstance(backend, type) else _class_of(backend)
    known = getattr(cls, "conformance", None) or PRESETS.get(getattr(cls, "name", ""), {})
    found = {"eager": known.get("eager") if eager is None else eager}
    found["never"] = known.get("never") if never is None else never
    name = getattr(cls, "name", cls.__name__)
    missing = [which for which, options in found.items() if options is None]
    if missing:
        raise ConfigError(
            f"{name}: the suite needs a configuration that is eager (blocks are skipped in a run of eight steps) and "
            f"one that never skips; got no {' and no '.join(missing)}. Give eager={{...}} and never={{...}} (on the "
            "command line --eager and --never, as JSON), or write on the class: "
            'conformance = {"eager": {...}, "never": {...}}'
        )
    both = {which: {**(config or {}), **(options or {})} for which, options in found.items()}
    for options in both.values():
        cls(dict(options))
    declared = known.get("refuses", {}) if refuses is None else refuses
    return Subject(cls, both["eager"], both["never"], dict(declared))


def _class_of(name: str) -> type[CacheBackend]:
    info = list_cache_backends().get(name.strip().lower().replace("-", "_"))
    if info is None or info.cls is None:
        made = get_cache_backend(name)  # says what is wrong
        if made is None:
            raise ConfigError(f"{name!r} stands for no cache, which has nothing to be checked")
        return type(made)
    return info.cls
