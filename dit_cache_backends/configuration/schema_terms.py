"""Terms of JSON schema for what spans several options. A ``Config`` gives its own as ``schema_rules``.

``schema_rules`` is a static method without arguments that gives a list of schemas, each of which the options have to
fit; those of the classes that it inherits from are found by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Schema = dict[str, Any]

__all__ = [
    "Schema",
    "all_of",
    "any_of",
    "both_or_neither",
    "forgiving",
    "given",
    "never",
    "option_is",
    "refine",
    "when",
]

NOTHING: Schema = {"enum": [None, "none"]}
"""The values by which an option says nothing."""


def option_is(names: str | Sequence[str], value: Schema) -> Schema:
    """The option is given, under any of its ``names``, and its value fits ``value``."""
    listed = [names] if isinstance(names, str) else list(names)
    return any_of(*({"required": [name], "properties": {name: value}} for name in listed))


def given(names: str | Sequence[str], nothing: Schema = NOTHING) -> Schema:
    """The option is given and says something."""
    return option_is(names, {"not": nothing})


def never(condition: Schema) -> Schema:
    """That is not allowed."""
    return {"not": condition}


def when(condition: Schema, then: Schema) -> Schema:
    """Where one holds, the other has to."""
    return {"if": condition, "then": then}


def both_or_neither(one: Schema, other: Schema) -> list[Schema]:
    """Where either holds, both have to."""
    return [when(one, other), when(other, one)]


def any_of(*schemas: Schema) -> Schema:
    """At least one holds."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def all_of(*schemas: Schema) -> Schema:
    """All hold."""
    return schemas[0] if len(schemas) == 1 else {"allOf": list(schemas)}


def refine(name: str, value: Schema) -> Schema:
    """A closer schema for the value of one option."""
    return {"properties": {name: value}}


def forgiving(names: Iterable[str], also: str = "") -> Schema:
    """Text that is one of ``names``, whose case, and ``-`` or one of ``also`` for ``_``, do not matter."""
    alternatives = "|".join("".join(_letter(letter, also) for letter in name) for name in names)
    return {"type": "string", "pattern": rf"^\s*({alternatives})\s*$"}


def _letter(letter: str, also: str) -> str:
    if letter == "_":
        return f"[_{also}-]" if also else "[_-]"
    return f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else letter
