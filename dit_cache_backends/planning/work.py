"""The work file: what was evaluated, a line each, so that a search that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_cache_backends.errors import ConfigError

__all__ = ["Work"]

FORMAT = "dit-cache-plan work 1"


class Work:
    """Evaluations by their names, with the seconds that each took.

    Args:
        path: the file, which is made where there is none; None keeps nothing.
        identity: what the evaluations hold for, as plain data.

    Raises:
        ConfigError: if the file is none of these, or holds for something else.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._known: dict[str, tuple[tuple[float, ...], float]] = {}
        self._used: set[str] = set()
        self.seconds = 0.0
        """Spent on all evaluations that were asked for since ``begin``, when they were made."""
        self.drawn = 0
        """Runs of one prompt in all evaluations that were asked for since ``begin``."""
        if path is None:
            return
        head = json.loads(json.dumps({"format": FORMAT, "identity": identity}))
        if path.exists():
            self._read(path, head)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def begin(self) -> None:
        """From now on everything counts anew that is asked for."""
        self._used.clear()
        self.seconds, self.drawn = 0.0, 0

    def numbers(self, name: str, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """What ``measure`` gives, or gave when it was asked for before."""
        if name not in self._known:
            begin = time.perf_counter()
            errors = tuple(measure())
            seconds = time.perf_counter() - begin
            self._known[name] = (errors, seconds)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, errors, seconds]) + "\n")
        errors, seconds = self._known[name]
        if name not in self._used:
            self._used.add(name)
            self.seconds += seconds
            self.drawn += len(errors)
        return errors

    def _read(self, path: Path, head: Mapping[str, Any]) -> None:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            found = json.loads(lines[0])
        except (OSError, ValueError) as error:
            raise ConfigError(f"the work file {path} cannot be read: {error}. Name another one.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ConfigError(f"{path} is no work file of this version ({FORMAT}). Name another one.")
        identity = found.get("identity")
        theirs = identity if isinstance(identity, dict) else {}
        ours = head["identity"]
        differing = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"the work file {path} is of another search: {', '.join(differing)} differ ({name} there: "
                f"{theirs.get(name)!r:.80}, here: {ours.get(name)!r:.80}). Name another one, or delete it."
            )
        whole = len(lines[0].encode()) + 1
        for line in lines[1:-1]:  # what stands behind the last end of a line was cut off
            try:
                name, errors, seconds = json.loads(line)
                self._known[str(name)] = (tuple(map(float, errors)), float(seconds))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"the work file {path} is broken at {line!r:.60}. Delete it.") from error
            whole += len(line.encode()) + 1
        with path.open("r+b") as file:
            file.truncate(whole)
