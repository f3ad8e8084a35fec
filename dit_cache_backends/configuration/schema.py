"""JSON schemas (draft 2020-12) of configurations, made from the declarations of the options.

An editor that is given one completes names, shows what they mean, and marks what would be refused. What JSON schema
cannot say stays with the check at run time: that a list is as long as a number says, that a file exists, that one
number is below another, that options of several parts of a model agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from dit_cache_backends.calibrators import CalibratorOptions
from dit_cache_backends.configuration.dialects import (
    CACHE_DIT_KEYS,
    CACHE_TYPES,
    CALIBRATOR_KEYS,
    CALIBRATORS,
    MISSPELT,
    calibrator_options,
    null_means_default,
)
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    all_of,
    any_of,
    forgiving,
    given,
    never,
    option_is,
    when,
)
from dit_cache_backends.configuration.schema_values import (
    default_of,
    doc_of,
    required_choice,
    required_options,
    value_schema,
)
from dit_cache_backends.configuration.sections import SECTION_OPTIONS
from dit_cache_backends.options import rules_of

if TYPE_CHECKING:
    from dit_cache_backends.backend import CacheBackend

__all__ = ["DIALECT", "backend_schema", "file_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_PARTS = ("overrides", "secondary")
_TEXT: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}

Classes = Mapping[str, "type[CacheBackend]"]


def backend_schema(name: str, backends: Classes) -> Schema:
    """What a configuration of one backend may hold.

    Args:
        name: The backend's.
        backends: Every installed backend by name, since a part of a model may take another one.
    """
    cls = backends[name]
    schema: Schema = {
        "$schema": DIALECT,
        "title": f"Options of the cache backend {name}",
        "description": doc_of(cls),
        **_options(name, cls, whole=True),
    }
    if set(_PARTS) & set(rules_of(cls.Config)):
        schema["$defs"] = _definitions(backends, [name])
    return schema


def file_schema(backends: Classes) -> Schema:
    """What a whole file may hold: the backend, its options, and the sections for the rest of the pipeline.

    The options stand under ``cache_config``; those of files without it, as cache-dit's older ones, stand beside the
    sections, where their names are known but not which go together.
    """
    sections: Schema = {
        name: {"anyOf": _section(name, options), "description": doc_of(options)}
        for name, options in SECTION_OPTIONS.items()
    }
    sections["attention_backend"] = {
        "type": ["string", "null"],
        "pattern": r"\S",
        "description": "The name of an attention backend.",
    }
    sections["cache_backend"] = {
        "anyOf": [forgiving([*backends, "none"]), _NULL],
        "description": f"The cache backend: {', '.join(backends)}, or none.",
        "examples": list(backends),
    }
    references = {name: {"$ref": f"#/$defs/{name}"} for name in backends}
    unnamed = never(option_is("cache_backend", _TEXT))
    nested: Schema = {
        "properties": {
            **sections,
            "cache_config": {
                "anyOf": [_NULL, {"type": "object"}, _TEXT],
                "description": "The options of the cache backend.",
            },
            "calibrator_config": _calibrator(),
        },
        "additionalProperties": False,
        "allOf": [
            *(
                when(option_is("cache_backend", forgiving([name])), _config(reference))
                for name, reference in references.items()
            ),
            when(unnamed, _config(any_of(*references.values()))),
        ],
    }
    flat_options: Schema = {
        key: {} for name, cls in backends.items() for key in _options(name, cls)["properties"]
    }
    return {
        "$schema": DIALECT,
        "title": "Configuration of dit-cache",
        "type": ["object", "null"],
        **when({"required": ["cache_config"]}, nested),
        "else": {"properties": {**flat_options, **sections}, "additionalProperties": False},
        "$defs": {
            **{name: _options(name, cls, whole=True) for name, cls in backends.items()},
            **_definitions(backends, list(backends)),
        },
    }


def _config(schema: Schema) -> Schema:
    return {"properties": {"cache_config": any_of(_NULL, _TEXT, schema)}}


def _options(name: str, cls: type[CacheBackend], *, whole: bool = False) -> Schema:
    """The options of a backend as an object; ``whole`` with what spans several of them, and with parts of a model."""
    rules = rules_of(cls.Config)
    annotations = {each: kind for option, (kind, rule) in rules.items() for each in (option, *rule.aliases)}

    def held(spelling: str, value: Schema) -> Schema:
        return any_of(value, _NULL) if null_means_default(spelling, annotations) else value

    def said(spelling: str) -> Schema:
        return option_is(spelling, {"not": _NULL} if null_means_default(spelling, annotations) else {})

    properties: Schema = {}
    twice: list[Schema] = []
    for option, (annotation, rule) in rules.items():
        value = value_schema(annotation, rule)
        if option in _PARTS:
            value = _part_value(name, option)
        if option == "preset" and not _has_presets(cls):
            value = _NULL
        shown = {"description": rule.help} if rule.help else {}
        properties[option] = {**held(option, value), **shown, **default_of(cls.Config, option)}
        spellings = [*rule.aliases, *(wrong for wrong, right in MISSPELT.items() if right == option)]
        for alias in spellings:
            properties[alias] = {**held(alias, value), "description": f"The same as {option}."}
            if alias in MISSPELT:
                properties[alias]["deprecated"] = True
        pairs = combinations((option, *spellings), 2)
        twice += [never(all_of(said(one), said(other))) for one, other in pairs]
    properties["cache_backend"] = any_of(forgiving([name]), _NULL)
    types = [forgiving([cache_type]) for cache_type, backend in CACHE_TYPES.items() if backend == name]
    properties["cache_type"] = {
        **any_of(*types, _NULL),
        "description": "cache-dit's name for the backend.",
    }
    if "calibrator" in rules:
        properties["calibrator_config"] = _calibrator()
    ignored = sorted({*CACHE_DIT_KEYS, *MISSPELT} - set(properties))
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "patternProperties": {f"^({'|'.join(ignored)})$": _NULL},
        "additionalProperties": False,
    }
    if whole:
        required = required_options(cls.Config)
        schema["required"] = [option for option in required if not rules[option][1].aliases]
        somehow = [
            any_of(*({"required": [spelling]} for spelling in (option, *rules[option][1].aliases)))
            for option in required
            if rules[option][1].aliases
        ]
        schema["allOf"] = [*somehow, *twice, *_rules(cls.Config)]
        if "calibrator" in rules:
            mapping = option_is("calibrator_config", {"type": "object", "minProperties": 1})
            schema["allOf"].append(when(mapping, never(option_is(calibrator_options(), {}))))
    return schema


def _rules(config: type) -> list[Schema]:
    """What the classes that a configuration is made of say of several options at once."""
    found: list[Schema] = []
    for base in config.__mro__:
        rules = base.__dict__.get("schema_rules")
        if rules is not None:
            found += rules.__get__(None, base)()
    return found


def _has_presets(cls: type[CacheBackend]) -> bool:
    from dit_cache_backends.backend import SpanBackend

    return issubclass(cls, SpanBackend) and cls.preset.__func__ is not SpanBackend.preset.__func__  # type: ignore[attr-defined]


def _part_value(name: str, option: str) -> Schema:
    part: Schema = {"$ref": f"#/$defs/part_of_{name}"}
    if option == "secondary":
        return any_of(part, _NULL)
    return {"type": "object", "additionalProperties": part}


def _definitions(backends: Classes, names: list[str]) -> Schema:
    """What may be said of a part of a model: other options of its backend, or another backend with its own."""
    from dit_cache_backends.backend import SpanBackend

    spans = {name: cls for name, cls in backends.items() if issubclass(cls, SpanBackend)}
    definitions: Schema = {}
    for name in names:
        own: Schema = {"$ref": f"#/$defs/options_of_{name}"}
        definitions[f"part_of_{name}"] = {
            "type": "object",
            "properties": {
                "cache_backend": any_of(forgiving(spans), _NULL),
                **dict.fromkeys(_PARTS, False),
            },
            "allOf": [
                when(never(option_is("cache_backend", _TEXT)), own),
                *(
                    when(
                        option_is("cache_backend", forgiving([other])),
                        {
                            "$ref": f"#/$defs/options_of_{other}",
                            "required": required_options(cls.Config, besides=backends[name].Config),
                            **_one_given(required_choice(cls.Config, backends[name].Config)),
                        },
                    )
                    for other, cls in spans.items()
                ),
            ],
        }
    for name, cls in {**spans, **{name: backends[name] for name in names}}.items():
        options = _options(name, cls)
        for part in _PARTS:
            options["properties"].pop(part, None)
        definitions[f"options_of_{name}"] = options
    return definitions


def _one_given(names: tuple[str, ...]) -> Schema:
    return any_of(*(given(name) for name in names)) if names else {}


def _section(name: str, options: type) -> list[Schema]:
    properties: Schema = {}
    twice: list[Schema] = []
    for option, (annotation, rule) in rules_of(options).items():
        value = any_of(_NULL, value_schema(annotation, rule))
        properties[option] = {**value, "description": rule.help}
        for alias in rule.aliases:
            properties[alias] = {**value, "description": f"The same as {option}."}
            said = [option_is(each, {"not": _NULL}) for each in (option, alias)]
            twice.append(never(all_of(*said)))
    mapping: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    rules = [*twice, *_rules(options)]
    if rules:
        mapping["allOf"] = rules
    return [mapping, {"type": ["null", "boolean"] if name == "compile" else "null"}]


def _calibrator() -> Schema:
    """cache-dit's ``CalibratorConfig``."""
    rules = rules_of(CalibratorOptions)
    spelt = {each: option for option, (_, rule) in rules.items() for each in (option, *rule.aliases)}
    properties: Schema = {
        key: any_of(value_schema(*rules[spelt[key]]), _NULL) for key in CALIBRATOR_KEYS if key in spelt
    }
    properties["calibrator_type"] = {"enum": list(CALIBRATORS)}
    properties["enable_calibrator"] = {"type": "boolean"}
    properties["calibrator_kwargs"] = {"type": ["object", "null"], "maxProperties": 0}
    alone = all_of(
        option_is("enable_calibrator", {"const": False}),
        option_is("enable_encoder_calibrator", {"const": True}),
    )
    return {
        "description": "The calibrator as cache-dit's CalibratorConfig has it.",
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
        **when({"minProperties": 1}, {"required": ["calibrator_type"]}),
        "allOf": [when(alone, option_is("calibrator_type", {"const": "taylorseer"}))],
    }
