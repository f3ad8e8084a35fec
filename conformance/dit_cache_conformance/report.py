"""What came of all checks: a table for a person, plain data for a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dit_cache_conformance.check import GROUPS, Result

_MARKS = {
    "passed": Text("passed", "green"),
    "failed": Text("FAILED", "bold red"),
    "skipped": Text("left out", "dim"),
    "expected": Text("expected", "yellow"),
    "unexpected": Text("PASSES", "bold red"),
}


@dataclass(frozen=True)
class Report:
    """The results of one backend, in the order of the list of checks. ``str(report)`` is the table."""

    backend: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether every promise that the backend makes was kept."""
        return all(result.ok for result in self.results)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed, or passed although they were expected to fail."""
        return [result.check.name for result in self.results if not result.ok]

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(result.seconds for result in self.results)

    def count(self, status: str) -> int:
        """How many checks ended so."""
        return sum(result.status == status for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, fit for JSON."""
        return {
            "backend": self.backend,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "checks": [
                {
                    "name": result.check.name,
                    "group": result.check.group,
                    "status": result.status,
                    "seconds": round(result.seconds, 3),
                    "promise": result.check.promise,
                    "message": result.message,
                    "failures": result.failures,
                    "refused": result.refused,
                    "remedy": "" if result.ok else result.check.remedy,
                }
                for result in self.results
            ],
        }

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column("check", overflow="fold")
        table.add_column("status")
        table.add_column("seconds", justify="right", style="dim")
        for group in GROUPS:
            mine = [result for result in self.results if result.check.group == group]
            if not mine:
                continue
            table.add_row(Text(group, "bold"), "", "")
            for result in mine:
                name = Text("  " + result.check.name.replace("_", " "))
                table.add_row(name, _MARKS[result.status], f"{result.seconds:.2f} s")
        parts: list[RenderableType] = [table]
        for result in self.results:
            if not result.ok:
                parts += _failure(result)
        notes = [result for result in self.results if result.status in ("skipped", "expected")]
        refused = {model: why for result in self.results for model, why in result.refused.items()}
        if notes or refused:
            parts.append(Text())
        for model, why in refused.items():
            left_out = sum(model in result.refused for result in self.results)
            parts.append(Text(f"{model}: refused, so {left_out} checks were not tried on it: {why}", "dim"))
        for result in notes:
            word = "left out" if result.status == "skipped" else "expected to fail"
            parts.append(Text(f"{result.check.name}: {word}: {result.message}", "dim"))
        return Group(*parts, Text(), self._verdict())

    def _verdict(self) -> Text:
        counts = [f"{self.count('passed')} passed"]
        counts += [
            f"{count} {word}"
            for status, word in (
                ("failed", "failed"),
                ("unexpected", "passed against expectation"),
                ("expected", "failed as expected"),
                ("skipped", "left out"),
            )
            if (count := self.count(status))
        ]
        text = f"{self.backend}: {', '.join(counts)} in {self.seconds:.1f} s"
        return Text(text, "bold green" if self.ok else "bold red")

    def __str__(self) -> str:
        console = Console(width=118, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _failure(result: Result) -> list[RenderableType]:
    text = Text()
    text.append(f"\n{result.check.name}\n", "bold red")
    text.append(f"{result.check.promise}\n")
    for line in result.message.splitlines():
        text.append(f"  {line}\n", "red")
    if result.status == "failed":
        text.append(result.check.remedy, "yellow")
    return [text]
