"""Settings for parts of a model: other options for one transformer or one stack, and presets by the number of steps.

Three layers, the later over the earlier: what a preset stands for, the options that were given, the overrides that name
the part at hand (those of a transformer, then those of a stack, then those of a stack of one transformer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_cache_backends.config import layered, load_config, option, same_option
from dit_cache_backends.configuration.dialects import without_nulls
from dit_cache_backends.configuration.schema_terms import Schema, all_of, given, never, option_is
from dit_cache_backends.errors import ConfigError, UnknownBackendError, near

if TYPE_CHECKING:
    from dit_cache_backends.backend import SpanBackend

PRESETS = ("quality", "balanced", "fast", "ultra")
SECOND = "transformer_2"
_OWN = ("preset", "overrides", "secondary")


@dataclass(frozen=True)
class PartOptions:
    """Options that a ``Config`` inherits to have presets and settings per transformer and per stack."""

    preset: str | None = option(
        None,
        choices=PRESETS,
        help="Options chosen for the number of steps, the further right the faster; what is given beside it stays.",
    )
    overrides: dict[str, dict[str, Any]] = option(
        {},
        help="Other options for a part of the model, by the name of a transformer (transformer_2), of a stack "
        "(single_transformer_blocks), or both (transformer_2.blocks); cache_backend among them takes another strategy.",
    )
    secondary: dict[str, Any] | None = option(None, help=f"SGLang's name for the overrides of {SECOND}.")

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once."""
        overridden = option_is("overrides", {"required": [SECOND]})
        return [never(all_of(given("secondary"), overridden))]


def given_options(config_class: type, source: object) -> dict[str, Any]:
    """The options that ``source`` itself gives; of a dataclass, those that are not the default."""
    options = without_nulls(config_class, load_config(source))
    if not dataclasses.is_dataclass(source):
        return options
    plain = {each.name: _default(each) for each in dataclasses.fields(config_class)}
    return {name: value for name, value in options.items() if value != plain[name]}


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


class Parts:
    """The backends that serve the parts of a model, made from one backend and what it was given."""

    def __init__(self, whole: SpanBackend, given: Mapping[str, Any]) -> None:
        self._whole = whole
        self._given = {name: value for name, value in given.items() if name not in _OWN}
        self._preset: str | None = given.get("preset")
        self._overrides: dict[str, dict[str, Any]] = {
            name: dict(changes) for name, changes in (given.get("overrides") or {}).items()
        }
        secondary = given.get("secondary")
        if secondary is not None:
            if SECOND in self._overrides:
                raise ConfigError(
                    f"{whole.name}: 'secondary' and the overrides of {SECOND!r} are the same; give one of them."
                )
            self._overrides[SECOND] = dict(secondary)
        self._made: dict[tuple[str, ...], SpanBackend] = {}
        self._for_steps: dict[int | None, SpanBackend] = {}
        self.shown_preset = self._preset
        if self._preset is not None:
            self.for_steps(None)
        self._make_each()

    def of(self, transformer: str, stack: str | None = None) -> SpanBackend:
        """The backend of one transformer (what is decided for all of it at once), or of one of its stacks."""
        names = (transformer,) if stack is None else (transformer, stack, f"{transformer}.{stack}")
        named = tuple(name for name in names if name in self._overrides)
        return self._make(named) if named else self._whole

    def for_steps(self, total: int | None) -> SpanBackend:
        """The backend whose options are those of the preset for a run of ``total`` steps."""
        if self._preset is None:
            return self._whole
        if total not in self._for_steps:
            cls = type(self._whole)
            options = layered(cls.Config, cls.preset(self._preset, total), self._given)
            self._for_steps[total] = made = cls(options)
            made._parts.shown_preset = self._preset
        return self._for_steps[total]

    def settings(self) -> dict[str, Any]:
        """What is not as it is by default, with the preset where one stands behind it."""
        return {**({"preset": self.shown_preset} if self.shown_preset else {}), **self._given}

    def check_names(self, parts: Iterable[tuple[str, str]]) -> None:
        """Refuse overrides of a transformer or a stack that the model, with these (transformer, stack), does not have.

        Raises:
            ConfigError: with the names there are.
        """
        pairs = list(parts)
        names = [*dict.fromkeys(name for pair in pairs for name in (*pair, ".".join(pair)))]
        for name in self._overrides:
            if name not in names:
                raise ConfigError(
                    f"{self._whole.name}: overrides: this model has no transformer and no stack {name!r}."
                    f"{near(name, names)} It has {', '.join(names)}."
                )

    def _make_each(self) -> None:
        """Make the backend of each override, so that all of their mistakes are told at once."""
        problems: list[str] = []
        for name in self._overrides:
            try:
                self._make((name,))
            except ConfigError as error:  # noqa: PERF203
                problems += error.problems
        if problems:
            raise ConfigError("\n".join(problems), problems)

    def _make(self, named: tuple[str, ...]) -> SpanBackend:
        if named not in self._made:
            changes = [self._overrides[name] for name in named]
            where = f"overrides: {named[-1]}"
            try:
                self._made[named] = self._with(changes)
            except (ConfigError, UnknownBackendError) as error:
                problems = error.problems if isinstance(error, ConfigError) else [str(error)]
                raise ConfigError(f"{where}: {error}", [f"{where}: {each}" for each in problems]) from None
        return self._made[named]

    def _with(self, changes: list[dict[str, Any]]) -> SpanBackend:
        for key in ("overrides", "secondary"):
            if any(key in change for change in changes):
                raise ConfigError(f"{key!r} cannot stand within overrides.")
        cls = type(self._whole)
        given: dict[str, Any] = {**({"preset": self._preset} if self._preset else {}), **self._given}
        others = [change["cache_backend"] for change in changes if change.get("cache_backend") is not None]
        if others:
            other = _span_backend(others[-1])
            given = {k: v for k, v in given.items() if same_option(cls.Config, other.Config, k)}
            cls = other
        plain = [{k: v for k, v in change.items() if k != "cache_backend"} for change in changes]
        return cls(layered(cls.Config, given, *plain))


def _span_backend(name: str) -> type[SpanBackend]:
    from dit_cache_backends.backend import SpanBackend
    from dit_cache_backends.registry import backend_class

    cls = backend_class(name)
    if not issubclass(cls, SpanBackend):
        raise ConfigError(
            f"cache_backend {name!r} does not work by spans, so it cannot serve a part of a model."
        )
    return cls
