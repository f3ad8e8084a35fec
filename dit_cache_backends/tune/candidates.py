"""What is tried: every installed backend that says how it is searched, with what it lets choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.registry import list_cache_backends
from dit_cache_backends.search import Ladder, Search, searches_of
from dit_cache_backends.trials import Setting

FEWER = "dense, fewer steps"


@dataclass(frozen=True)
class Candidate:
    """A backend and what was chosen for it, all but the position of its dial."""

    backend: str
    """Its name; empty for dense runs of fewer steps."""
    search: Search
    chosen: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that the user gave for the backend."""

    @property
    def family(self) -> str:
        """What it is one of: a line in the plot."""
        return f"{self.backend}, {self.search.name}" if self.backend else FEWER

    @property
    def label(self) -> str:
        """In words."""
        return ", ".join([self.family, *self.chosen.values()])

    def setting(self, position: float, steps: int) -> Setting:
        """To draw with."""
        if not self.backend:
            count = self.search.given({}, position, steps)["steps"]
            return Setting(f"dense, {count} steps", steps=count, family=FEWER)
        config = {**self.search.given(self.chosen, position, steps), **self.options}
        return Setting(self.label, config, backend=self.backend, family=self.family)


def fewer_steps(steps: int) -> Candidate:
    """The line to beat: dense runs of fewer steps, as a candidate like others."""
    return Candidate(
        "", Search("fewer steps", Ladder([{"steps": count} for count in range(steps - 1, 0, -1)]))
    )


def families(
    only: Iterable[str] = (), options: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[list[Candidate], list[str]]:
    """The first candidate of every way in which an installed backend may be searched, and what is left out and why.

    Args:
        only: names of backends; all unless given.
        options: for backends by their names, options that each of their candidates has.

    Raises:
        ConfigError: a backend is not installed, or does not say how it is searched.
    """
    installed, options = list_cache_backends(), options or {}
    wanted = [name.strip().lower().replace("-", "_") for name in only]
    for name in (*wanted, *options):
        if name not in installed:
            raise ConfigError(
                f"there is no backend {name!r}.{near(name, installed)} Installed: {', '.join(installed)}."
            )
    found, left_out = [], []
    for name, info in installed.items():
        if wanted and name not in wanted:
            continue
        if info.cls is None:
            left_out.append(f"{name}: {info.error}")
            continue
        ways = searches_of(info.cls)
        if not ways:
            left_out.append(f"{name}: it does not say how it is searched (docs/write-a-backend.md)")
        found += [Candidate(name, way, way.first(), options.get(name, {})) for way in ways]
    if not found:
        raise ConfigError(f"there is nothing to search: {'; '.join(left_out) or 'no backend is installed'}")
    return found, left_out


def neighbours(first: Candidate) -> list[Candidate]:
    """The candidates that differ from the first in one choice."""
    return [
        replace(first, chosen={**first.chosen, name: label})
        for name, labels in first.search.choices.items()
        for label in labels
        if label != first.chosen[name]
    ]


def crossed(first: Candidate, best: Sequence[Candidate]) -> Candidate | None:
    """What the best of a family differ in from its first, taken together; the better one's where two differ in one."""
    chosen = dict(first.chosen)
    for candidate in reversed(best):
        chosen |= {name: label for name, label in candidate.chosen.items() if label != first.chosen[name]}
    cross = replace(first, chosen=chosen)
    return None if cross in (first, *best) else cross
