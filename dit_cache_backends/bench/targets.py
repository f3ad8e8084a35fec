"""The figures that this package is to reach, beside those of cache-dit measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]
"""What the sections found, by their names."""


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    section: str
    """Where it is measured."""
    what: str
    reach: str
    """In words."""
    find: Callable[[Found, str], Any]
    """What was found of ours or of a peer, by its name; KeyError where it was not measured."""
    met: Callable[[Any], bool]
    shown: Callable[[Any], str] = str
    seen: str = ""
    """What cache-dit 1.5.3 had when the target was set."""


def _ratio(shape: str, kind: str, seen: float, reach: float, words: str = "") -> Target:
    def find(found: Found, who: str) -> Any:
        rows = found["steps"]["shapes"][shape]["rows"]
        return {(row["kind"], row["who"]): row for row in rows}[kind, who]

    base = "dense" if kind in ("computed", "dbprune, nothing pruned") else "ideal"
    return Target(
        "steps",
        words or f"{shape}: {kind} / {base}",
        f"{reach:g} or less",
        find,
        lambda row: round(row["ratio"], 3) <= reach,
        lambda row: f"{row['ratio']:.3f} ({row['ratio_of_minima']:.3f})",
        f"{seen:g}",
    )


STEPS = (
    _ratio("flux-512", "computed", 1.002, 1.002),
    _ratio("flux-512", "cached", 1.018, 1.010),
    _ratio("flux-512", "cached, TaylorSeer 1", 1.026, 1.015),
    _ratio("python-bound", "computed", 1.037, 1.02),
    _ratio("python-bound", "cached", 1.37, 1.15),
    _ratio("python-bound", "dbprune, nothing pruned", 1.34, 1.15),
    _ratio("python-bound", "dbprune, all but one pruned", 5.5, 2.5),
)


def _compiled(way: str, who: str, found: Found, order: str) -> Any:
    rows = found["compiled"]["rows"]
    return {(row["way"], row["order"], row["who"]): row for row in rows}[way, order, who]


def _breaks(way: str, reach: str, seen: str, words: str) -> Target:
    def find(found: Found, who: str) -> Any:
        return _compiled(way, who, found, "enable, compile")

    def shown(row: Any) -> str:
        return f"raises {row['raises']}" if "raises" in row else str(row["breaks"])

    return Target("compiled", words, reach, find, lambda row: row.get("breaks") == 0, shown, seen)


def _either_order(found: Found, who: str) -> Any:
    way = "repeated blocks, fullgraph"
    return [_compiled(way, who, found, order) for order in ("enable, compile", "compile, enable")]


def _all_compiled(found: Found, who: str) -> Any:
    found_of = [row for row in found["compiled"]["rows"] if row["who"] == who and "raises" not in row]
    return max(row["recompilations"] for row in found_of) if found_of else _absent(who)


def _absent(who: str) -> Any:
    raise KeyError(who)


def _timed(kind: str, seen: str = "") -> Target:
    def find(found: Found, who: str) -> Any:
        rows = found["compiled"]["timed"]["rows"]
        return {(row["kind"], row["who"]): row for row in rows}[kind, who]

    return Target(
        "compiled",
        f"whole-module torch.compile, flux-512: {kind} / compiled ideal",
        "1.03 or less",
        find,
        lambda row: round(row["ratio"], 3) <= 1.03,
        lambda row: f"{row['ratio']:.3f} ({row['ratio_of_minima']:.3f})",
        seen,
    )


COMPILED = (
    _breaks("whole model", "0", "6", "whole-module torch.compile: graph breaks"),
    _breaks("whole model, fullgraph", "0", "raises", "the same with fullgraph=True"),
    _breaks(
        "whole model, fullgraph, known decision",
        "0",
        "raises",
        "the same with a decision known before the call",
    ),
    _timed("cached", "1.075"),
    _timed("static mask, cached"),
    Target(
        "compiled",
        "compile_repeated_blocks(fullgraph=True)",
        "works, either order",
        _either_order,
        lambda rows: all(row.get("breaks") == 0 for row in rows),
        lambda rows: ", ".join(f"raises {row['raises']}" if "raises" in row else "works" for row in rows),
        "works",
    ),
    Target(
        "compiled",
        "recompilations after the second computed step, 3 runs, two branches",
        "0",
        _all_compiled,
        lambda most: most == 0,
        seen="not known",
    ),
)


def _held(model: str, kind: str, seen: str, reach: str, met: Callable[[Any], bool]) -> Target:
    def find(found: Found, who: str) -> Any:
        rows = found["held"]["rows"]
        return {(row["model"], row["kind"], row["who"]): row for row in rows}[model, kind, who]

    def shown(row: Any) -> str:
        return f"{row['image_streams']:g} + {row['text_streams']:g} text"

    return Target("held", f"streams held per branch: {model}, {kind}", reach, find, met, shown, seen)


def _after(found: Found, who: str) -> Any:
    rows = [row["bytes_after"] for row in found["held"]["rows"] if row["who"] == who]
    return max(rows) if rows else _absent(who)


HELD = (
    _held(
        "flux",
        "reuse",
        "2 + 1 text",
        "2 + 1 text",
        lambda r: (r["image_streams"], r["text_streams"]) == (2, 1),
    ),
    _held(
        "flux",
        "TaylorSeer 1",
        "5 + 4 text",
        "3 + 2 text",
        lambda r: (r["image_streams"], r["text_streams"]) == (3, 2),
    ),
    _held(
        "flux",
        "TaylorSeer 2",
        "7 + 6 text",
        "4 + 3 text",
        lambda r: (r["image_streams"], r["text_streams"]) == (4, 3),
    ),
    _held(
        "wan",
        "TaylorSeer 1",
        "5 + 4 text",
        "3 + 0 text",
        lambda r: (r["image_streams"], r["text_streams"]) == (3, 0),
    ),
    Target("held", "bytes held after a run", "0", _after, lambda most: most == 0, seen="all"),
)


def _waits(kind: str, seen: int, most: Callable[[int], int], reach: str) -> Target:
    def find(found: Found, who: str) -> Any:
        rows = {(row["kind"], row["who"]): row for row in found["waits"]["rows"]}
        return rows[kind, who]["per_step"], found["waits"]["blocks"]

    return Target(
        "waits",
        f"host synchronisations per step: {kind}",
        reach,
        find,
        lambda pair: pair[0] <= most(pair[1]),
        lambda pair: str(pair[0]),
        str(seen),
    )


WAITS = (
    _waits("static mask, cached", 0, lambda _: 0, "0"),
    _waits("dynamic, computed", 1, lambda _: 1, "1"),
    _waits("dynamic, cached", 1, lambda _: 1, "1"),
    _waits("dbprune, nothing pruned", 56, lambda blocks: blocks + 1, "computed blocks + 1"),
    _waits("dbprune, all but one pruned", 56, lambda _: 2, "computed blocks + 1 = 2"),
)


def _import(found: Found, who: str) -> Any:
    rows = {(row["base"], row["who"]): row for row in found["imports"]["rows"]}
    return rows["torch and diffusers", who]["median_s"]


def _slope(found: Found, who: str) -> Any:
    rows = {(row["kind"], row["who"]): row for row in found["scale"]["slopes"]}
    return rows["cached, uncompared", who]["us_per_block"]


def _growth(found: Found, who: str) -> Any:
    points = found["scale"]["sweeps"]["tokens"]
    ends = [{(row["kind"], row["who"]): row for row in point["rows"]} for point in (points[0], points[-1])]
    return [rows["cached", who]["ratio_of_minima"] for rows in ends]


OTHERS = (
    Target(
        "imports",
        "import time over torch and diffusers, s",
        "0.1 or less",
        _import,
        lambda seconds: round(seconds, 2) <= 0.1,
        lambda seconds: f"{seconds:.2f}",
        "3.9",
    ),
    Target(
        "scale",
        "cached step: us for each further block",
        "less than 2",
        _slope,
        lambda slope: slope < 2,
        lambda slope: f"{slope:.2f}",
    ),
    Target(
        "scale",
        "cached / ideal with the fewest and the most tokens",
        "does not grow",
        _growth,
        lambda ends: ends[1] <= ends[0],
        lambda ends: f"{ends[0]:.3f}, {ends[1]:.3f}",
    ),
)
TARGETS: tuple[Target, ...] = (*STEPS, *COMPILED, *HELD, *WAITS, *OTHERS)
TIMED = (*STEPS, *OTHERS)
"""What a quick run, on small models, cannot tell."""
