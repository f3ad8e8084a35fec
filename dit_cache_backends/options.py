"""Options of a backend: declared in a dataclass, described and checked from that declaration alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from dit_cache_backends.errors import near

__all__ = ["Misfit", "OptionInfo", "Rule", "check", "describe", "members", "option", "rules_of"]

_RULE = "dit_cache_backends.rule"


class Misfit(Exception):
    """A value does not fit its option. The text says what was expected and what was given."""


@dataclass(frozen=True)
class Rule:
    """What an option's values keep to beyond their type; in a list, each of its items does."""

    help: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    aliases: tuple[str, ...] = ()
    group: str = ""
    """Options of one group say one thing in several ways: a more special setting of one replaces all of them."""
    problem: Callable[[Any], str] | None = None
    """Says what is wrong with a value that fits otherwise; nothing if it is right."""

    def valid(self) -> str:
        """The allowed values in words; empty if the type alone decides."""
        if self.choices:
            return "one of " + ", ".join(_show(choice) for choice in self.choices)
        parts = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.minimum),
                ("above", self.exclusive_minimum),
                ("at most", self.maximum),
                ("below", self.exclusive_maximum),
            )
            if bound is not None
        ]
        return " and ".join(parts)

    def admits(self, number: float) -> bool:
        """Whether the bounds hold."""
        return not (
            (self.minimum is not None and number < self.minimum)
            or (self.maximum is not None and number > self.maximum)
            or (self.exclusive_minimum is not None and number <= self.exclusive_minimum)
            or (self.exclusive_maximum is not None and number >= self.exclusive_maximum)
        )


@dataclass(frozen=True)
class OptionInfo:
    """One option as documentation shows it. ``default`` is its text; ``required`` options have none."""

    name: str
    type: str
    default: str
    help: str
    valid: str
    aliases: tuple[str, ...] = ()
    required: bool = False


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Iterable[Any] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
    aliases: Iterable[str] = (),
    group: str = "",
    problem: Callable[[Any], str] | None = None,
) -> Any:
    """Declare an option: a dataclass field that knows its meaning and its range.

    Args:
        default: Its default; without one the option is required. A list is copied for each configuration.
        help: What it does, in a sentence.
        choices: The allowed values. ``None`` is allowed apart from them where the annotation allows it.
        minimum: The smallest allowed number. ``maximum`` and the ``exclusive`` bounds accordingly.
        maximum: The largest allowed number.
        exclusive_minimum: Numbers have to be above it.
        exclusive_maximum: Numbers have to be below it.
        aliases: Other names under which the option is accepted.
        group: Shared by options that say one thing in several ways.
        problem: Says what is wrong with a value that fits otherwise; nothing if it is right. Never asked about None.
    """
    bounds = (minimum, maximum, exclusive_minimum, exclusive_maximum)
    rule = Rule(help, tuple(choices), *bounds, tuple(aliases), group, problem)
    metadata = {_RULE: rule}
    if isinstance(default, (list, dict, set)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@functools.cache
def _hints(config: type) -> Mapping[str, Any]:
    return typing.get_type_hints(config)


def rules_of(config: type) -> dict[str, tuple[Any, Rule]]:
    """Each settable field of a dataclass with its resolved annotation and its rule."""
    hints = _hints(config)
    return {
        each.name: (hints[each.name], each.metadata.get(_RULE) or Rule())
        for each in dataclasses.fields(config)
        if each.init
    }


def describe(config: type) -> list[OptionInfo]:
    """The options of a configuration class, in the order of their declaration."""
    rules = rules_of(config)
    infos = []
    for each in dataclasses.fields(config):
        if not each.init:
            continue
        annotation, rule = rules[each.name]
        required = each.default is MISSING and each.default_factory is MISSING
        if each.default_factory is not MISSING:
            default = _show(each.default_factory())
        else:
            default = "" if required else _show(each.default)
        infos.append(
            OptionInfo(
                each.name,
                _annotation_text(annotation),
                default,
                rule.help,
                rule.valid(),
                rule.aliases,
                required,
            )
        )
    return infos


def check(value: object, annotation: Any, rule: Rule) -> Any:
    """Return ``value`` as the option holds it (numpy's and torch's scalars and arrays as plain Python).

    Raises:
        Misfit: It has another type, is not among the choices or is out of range.
    """
    plain = _unwrap(value)
    found, result = _match(plain, annotation)
    if not found:
        raise Misfit(_expected(annotation, rule, plain))
    items = result if isinstance(result, (list, tuple)) else [result]
    for item in items:
        if rule.choices and item is not None and item not in rule.choices:
            hint = near(item, filter(_is_text, rule.choices)) if isinstance(item, str) else ""
            raise Misfit(_expected(annotation, rule, plain) + (hint and "." + hint))
        if isinstance(item, (int, float)) and not isinstance(item, bool) and not rule.admits(item):
            raise Misfit(_expected(annotation, rule, plain))
    if rule.problem is not None and result is not None and (problem := rule.problem(result)):
        raise Misfit(problem)
    return result


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _match(value: object, annotation: Any) -> tuple[bool, Any]:
    """Whether the value is of the annotated type, and the value as that type."""
    origin = get_origin(annotation)
    if annotation is Any:
        return True, value
    if annotation is None or annotation is type(None):
        return value is None, None
    if origin in (Union, types.UnionType):
        # A whole number offered to `int | float` stays one, whatever the order of the annotation.
        results = [
            result for result in (_match(value, member) for member in get_args(annotation)) if result[0]
        ]
        exact = [result for result in results if type(result[1]) is type(value)]
        return (exact or results or [(False, None)])[0]
    if origin is Literal:
        return value in get_args(annotation), value
    if annotation is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        return number, float(typing.cast(float, value)) if number else None
    if annotation in (int, bool, str):
        return type(value) is annotation or (annotation is str and isinstance(value, str)), value
    if origin in (list, Sequence) or annotation in (list, Sequence):
        return _match_items(value, [*get_args(annotation), Any][0], list)
    if origin is tuple or annotation is tuple:
        arguments = get_args(annotation) or (Any, ...)
        if len(arguments) == 2 and arguments[1] is ...:
            return _match_items(value, arguments[0], tuple)
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            return False, None
        pairs = [_match(item, each) for item, each in zip(value, arguments, strict=True)]
        return all(ok for ok, _ in pairs), tuple(item for _, item in pairs)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return _match_mapping(value, [*get_args(annotation), Any, Any])
    return isinstance(annotation, type) and isinstance(value, annotation), value


def _match_items(value: object, item_type: Any, kind: type) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, None
    pairs = [_match(item, item_type) for item in value]
    return all(ok for ok, _ in pairs), kind(item for _, item in pairs)


def _match_mapping(value: object, arguments: Sequence[Any]) -> tuple[bool, Any]:
    if not isinstance(value, Mapping):
        return False, None
    # JSON's keys are texts; YAML and Python write 0 for "0".
    texts = arguments[0] is str
    keys = [_match(str(key) if texts and type(key) is int else key, arguments[0]) for key in value]
    values = [_match(item, arguments[1]) for item in value.values()]
    found = {key: item for (_, key), (_, item) in zip(keys, values, strict=True)}
    return all(ok for ok, _ in keys + values) and len(found) == len(value), found


def _unwrap(value: object) -> object:
    """Arrays and array scalars of numpy and torch as plain Python, without importing either."""
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(item) for item in value) if type(value) in (list, tuple) else value
    return value


def _expected(annotation: Any, rule: Rule, given: object) -> str:
    words = _words(annotation)
    valid = rule.valid()
    if rule.choices:
        words = valid + (" or null" if type(None) in get_args(annotation) else "")
    elif valid:
        kinds = [_words(each) for each in members(annotation) if each is not type(None)]
        optional = " or null" if type(None) in members(annotation) else ""
        words = f"{' or '.join(kinds)}, {valid}{optional and ','}{optional}"
    hint = ""
    if isinstance(given, str) and not rule.choices:
        hint = _number_hint(given, annotation)
    return f"expected {words}, got {_show(given)}{hint}"


def _number_hint(given: str, annotation: Any) -> str:
    if not {int, float} & set(members(annotation)):
        return ""
    try:
        number = float(given)
    except ValueError:
        return ""
    whole = number.is_integer() and "e" not in given.lower() and "." not in given
    return f", which is text; write it as a number: {int(number) if whole else repr(number)}"


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; of another annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}
_PLURALS: dict[Any, str] = {bool: "true and false", int: "whole numbers", float: "numbers", str: "texts"}


def _words(annotation: Any) -> str:
    kinds = members(annotation)
    if len(kinds) > 1:
        return " or ".join(_words(kind) for kind in kinds)
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(_show(value) for value in arguments)
    if origin in (list, Sequence) or (origin is tuple and arguments[1:] == (...,)):
        inner = _PLURALS.get(arguments[0])
        return f"a list of {inner}" if inner else f"a list (each item: {_words(arguments[0])})"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return "a mapping"
    return _annotation_text(annotation)


def _annotation_text(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_annotation_text(member) for member in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _show(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
