"""What a backend did in a generation: one row for each call of a transformer, and the events worth a look."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Row:
    """One call of a transformer, one stack of it."""

    transformer: str
    stack: str
    branch: str
    step: int
    """The step of the run, 0-based."""
    total: int | None
    blocks_run: int = 0
    blocks_skipped: int = 0
    differences: list[float] = field(default_factory=list)
    """The numbers the gates decided by, in the order of the spans; -1 stands for "not compared, skipped"."""
    reason: str = ""
    """Why the gates decided so ("warm-up", "difference", ...)."""
    skipped: list[int] = field(default_factory=list)
    """The numbers of the skipped blocks in their stack, in the order in which the model came to them."""

    def skip(self, blocks: int) -> None:
        """Count the blocks of a skipped span, a bit each."""
        first, end = (blocks & -blocks).bit_length() - 1, blocks.bit_length()
        found: Iterable[int] = range(first, end)
        if blocks != (1 << end) - (1 << first):  # the model leaves some of them out
            found = [number for number in found if blocks >> number & 1]
        self.skipped.extend(found)
        self.blocks_skipped += blocks.bit_count()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that went another way than planned, and how often."""

    kind: str
    detail: str
    count: int


class Summary:
    """The rows and events of one generation. ``str(summary)`` is a table."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.settings: dict[tuple[str, str], dict[str, Any]] = {}
        """The options in force that are not the default, by transformer and stack; a preset's beside its name."""
        self._events: Counter[tuple[str, str]] = Counter()

    def count(self, kind: str, detail: str) -> None:
        """Note an event."""
        self._events[kind, detail] += 1

    @property
    def events(self) -> list[Event]:
        """The events in the order of their first happening."""
        events = [Event(kind, detail, count) for (kind, detail), count in self._events.items()]
        if self.rows and not self.blocks_skipped and any(row.total == row.step + 1 for row in self.rows):
            reasons = Counter(row.reason for row in self.rows).most_common()
            text = ", ".join(f"{reason or 'no span'} {count}x" for reason, count in reasons)
            events.append(
                Event("nothing_skipped", f"The run has ended and no block was skipped in it: {text}.", 1)
            )
        return events

    @property
    def blocks_run(self) -> int:
        """Transformer blocks that ran."""
        return sum(row.blocks_run for row in self.rows)

    @property
    def blocks_skipped(self) -> int:
        """Transformer blocks that were skipped."""
        return sum(row.blocks_skipped for row in self.rows)

    def cached_steps(
        self, transformer: str | None = None, branch: str | None = None, stack: str | None = None
    ) -> list[int]:
        """The steps of the run in which blocks were skipped.

        What is left out means the first that was seen: the first transformer, its first branch, its first stack.
        """
        return [row.step for row in self._pick(transformer, branch, stack) if row.blocks_skipped]

    def pruned_blocks(
        self, transformer: str | None = None, branch: str | None = None, stack: str | None = None
    ) -> dict[int, int]:
        """How many blocks each step of the run skipped, 0 included; what is left out as for ``cached_steps``."""
        return {row.step: row.blocks_skipped for row in self._pick(transformer, branch, stack)}

    def pruned_ratio(
        self, transformer: str | None = None, branch: str | None = None, stack: str | None = None
    ) -> float:
        """The share of the blocks that was skipped, between 0 and 1; what is left out as for ``cached_steps``."""
        rows = self._pick(transformer, branch, stack)
        skipped, ran = sum(row.blocks_skipped for row in rows), sum(row.blocks_run for row in rows)
        return skipped / (skipped + ran) if rows else 0.0

    def diffs(
        self, transformer: str | None = None, branch: str | None = None, stack: str | None = None
    ) -> dict[int, float]:
        """The first difference that each step was decided by; steps decided without one are not in it."""
        return {
            row.step: row.differences[0] for row in self._pick(transformer, branch, stack) if row.differences
        }

    def series(self) -> list[tuple[str, str, str]]:
        """What there is to ask for: (transformer, branch, stack), in the order of appearance."""
        return list(dict.fromkeys((row.transformer, row.branch, row.stack) for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, fit for JSON; a difference that is not finite is None there."""
        return {
            "blocks_run": self.blocks_run,
            "blocks_skipped": self.blocks_skipped,
            "rows": [
                asdict(row) | {"differences": [d if math.isfinite(d) else None for d in row.differences]}
                for row in self.rows
            ],
            "settings": [
                {"transformer": transformer, "stack": stack, "options": options}
                for (transformer, stack), options in self.settings.items()
            ],
            "events": [asdict(event) for event in self.events],
        }

    def __str__(self) -> str:
        total = self.blocks_run + self.blocks_skipped
        if not total:
            lines = ["No transformer call has been seen yet."]
        else:
            head = (
                "transformer",
                "branch",
                "stack",
                "steps",
                "cached",
                "blocks run",
                *(f"P{p:02d}" for p in _PERCENTILES),
                "max",
            )
            table = [head, *(self._line(*name) for name in self.series())]
            lines = [
                f"{self.blocks_run} of {total} blocks run ({self.blocks_skipped / total:.0%} skipped)",
                *_columns(table),
            ]
            for transformer, branch, stack in self.series():
                steps = self._cached_text(transformer, branch, stack)
                lines.append(f"cached steps of {transformer}, branch {branch}, {stack}: {steps}")
        for (transformer, stack), options in self.settings.items():
            if options:
                told = ", ".join(f"{name}={value}" for name, value in options.items())
                lines.append(f"options of {transformer}, {stack}: {told}")
        lines += [f"{event.kind} ({event.count}x): {event.detail}" for event in self.events]
        return "\n".join(lines)

    def _line(self, transformer: str, branch: str, stack: str) -> tuple[str, ...]:
        rows = self._pick(transformer, branch, stack)
        run, skipped = sum(row.blocks_run for row in rows), sum(row.blocks_skipped for row in rows)
        values = sorted(
            value for row in rows for value in row.differences if math.isfinite(value) and value >= 0
        )
        numbers = [f"{_percentile(values, p):.4f}" if values else "-" for p in (*_PERCENTILES, 100)]
        cached = sum(bool(row.blocks_skipped) for row in rows)
        return (transformer, branch, stack, str(len(rows)), str(cached), f"{run}/{run + skipped}", *numbers)

    def _cached_text(self, transformer: str, branch: str, stack: str) -> str:
        """The cached steps; each with the number of its skipped blocks where that is not always the same."""
        skipped = {step: n for step, n in self.pruned_blocks(transformer, branch, stack).items() if n}
        if len(set(skipped.values())) < 2:
            return ", ".join(map(str, skipped)) or "none"
        return ", ".join(f"{step} ({n})" for step, n in skipped.items()) + "; (blocks skipped)"

    def _pick(self, transformer: str | None, branch: str | None, stack: str | None) -> list[Row]:
        rows = self.rows
        for name, wanted in (("transformer", transformer), ("branch", branch), ("stack", stack)):
            if rows:
                value = getattr(rows[0], name) if wanted is None else wanted
                rows = [row for row in rows if getattr(row, name) == value]
        return rows


_PERCENTILES = (0, 25, 50, 75, 95)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    if len(ordered) == 1 or percent == 0:
        return ordered[0]
    if percent == 100:
        return ordered[-1]
    return statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1]


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
