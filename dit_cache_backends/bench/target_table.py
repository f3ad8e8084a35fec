"""The table of the targets: what was found of each, and whether it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.targets import TARGETS, TIMED, Found, Target

WHO = ("ours", "cache-dit", "FirstBlockCache")


def rows(found: Found, quick: bool = False) -> list[dict[str, Any]]:
    """The table as plain data: for each target of the sections that ran what was found, and whether ours is met."""
    table = []
    for target in TARGETS:
        if target.section not in found:
            continue
        values = {who: value for who in WHO if (value := _value(target, found, who)) is not None}
        told = "ours" in values and not (quick and target in TIMED)
        table.append(
            {
                "what": target.what,
                "reach": target.reach,
                "cache-dit before": target.seen,
                "found": {who: target.shown(value) for who, value in values.items()},
                "met": target.met(values["ours"]) if told else None,
            }
        )
    return table


def _value(target: Target, found: Found, who: str) -> Any:
    try:
        return target.find(found, who)
    except KeyError:
        return None


_WORDS = """
Ratios are medians over the rounds, with those of the fastest steps in brackets. "Set beside" is what cache-dit 1.5.3
showed on another machine when the targets were set. A dash: not measured in this run, or there is no such thing.
"""
_ANSWERS = {True: "yes", False: "**no**", None: "-"}


def report(table: list[dict[str, Any]], versions: Mapping[str, str | None]) -> Part:
    """The table, to be read."""
    heads = (
        "measured",
        "set beside",
        "to reach",
        "dit-cache-backends",
        "reached",
        f"cache-dit {versions['cache-dit'] or '(not installed)'}",
        f"FirstBlockCache, diffusers {versions['diffusers']}",
    )
    lines = [
        (
            row["what"],
            row["cache-dit before"] or "-",
            row["reach"],
            row["found"].get("ours", "-"),
            _ANSWERS[row["met"]],
            row["found"].get("cache-dit", "-"),
            row["found"].get("FirstBlockCache", "-"),
        )
        for row in table
    ]
    return Part("The targets", (_WORDS, Table(heads, lines, 1)))
