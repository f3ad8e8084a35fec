"""One option as JSON schema: from its annotation and its rule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from dit_cache_backends.configuration.schema_terms import Schema, any_of
from dit_cache_backends.options import Rule, describe, members, rules_of

__all__ = ["default_of", "doc_of", "required_options", "value_schema"]

_TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def value_schema(annotation: Any, rule: Rule) -> Schema:
    """What an option may hold."""
    if rule.choices:
        return _choices(annotation, rule)
    plain = [each for each in members(annotation) if each in _TYPES and not _bounded(each, rule)]
    others = [each for each in members(annotation) if each not in plain]
    schemas = [_one(each, rule) for each in others]
    if plain:
        names = [_TYPES[each] for each in plain]
        schemas.append({"type": names[0] if len(names) == 1 else names})
    return any_of(*schemas)


def default_of(config: type, name: str) -> Schema:
    """The default of an option, if it has one that JSON can hold."""
    (each,) = (field for field in dataclasses.fields(config) if field.name == name)
    if each.default_factory is not dataclasses.MISSING:
        default = each.default_factory()
    elif each.default is not dataclasses.MISSING:
        default = each.default
    else:
        return {}
    try:
        return {"default": json.loads(json.dumps(default, allow_nan=False))}
    except (TypeError, ValueError):
        return {}


def doc_of(cls: type) -> str:
    """The first line of what a class says of itself."""
    return ((cls.__doc__ or "").strip().splitlines() or [""])[0]


def required_options(config: type, besides: type | None = None) -> list[str]:
    """The options without a default; those that ``besides`` has as well may come from there."""
    known = rules_of(besides) if besides is not None else {}
    return [info.name for info in describe(config) if info.required and info.name not in known]


def required_choice(config: type, besides: type) -> tuple[str, ...]:
    """Options of which one has to be given (``one_of`` of the class), unless they may come from ``besides``."""
    names: tuple[str, ...] = getattr(config, "one_of", ())
    known = rules_of(besides)
    return () if any(name in known for name in names) else names


def _one(annotation: Any, rule: Rule) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _TYPES:
        return {"type": _TYPES[annotation], **(_bounds(rule) if _bounded(annotation, rule) else {})}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (list, Sequence) or annotation in (list, Sequence):
        return {"type": "array", "items": value_schema(arguments[0], rule) if arguments else {}}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": value_schema(arguments[0], rule)}
    if origin is tuple:
        items = [value_schema(each, rule) for each in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        value = value_schema(arguments[1], Rule()) if arguments else {}
        return {"type": "object", **({"additionalProperties": value} if value else {})}
    return {}


def _choices(annotation: Any, rule: Rule) -> Schema:
    """The allowed values, alone or in a list, as the annotation has it; null beside them where it admits null."""
    kinds = members(annotation)
    allowed: list[Any] = list(rule.choices)
    schemas: list[Schema] = []
    if any(get_origin(kind) is list for kind in kinds):
        schemas.append({"type": "array", "items": {"enum": list(rule.choices)}})
    if any(get_origin(kind) is not list and kind is not NoneType for kind in kinds):
        schemas.append({"enum": [*allowed, *([None] if NoneType in kinds else [])]})
    elif NoneType in kinds:
        schemas.append({"type": "null"})
    return any_of(*schemas)


def _bounded(annotation: Any, rule: Rule) -> bool:
    return annotation in (int, float) and bool(_bounds(rule))


def _bounds(rule: Rule) -> Schema:
    names: Iterable[tuple[str, float | None]] = (
        ("minimum", rule.minimum),
        ("maximum", rule.maximum),
        ("exclusiveMinimum", rule.exclusive_minimum),
        ("exclusiveMaximum", rule.exclusive_maximum),
    )
    return {name: bound for name, bound in names if bound is not None}
