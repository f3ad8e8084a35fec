"""The time that a search may take."""

from __future__ import annotations

import re
import time

from dit_cache_backends.errors import ConfigError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class OutOfTime(Exception):
    """The part of the search under way has had its time. It is no error: what was found so far is gone on with."""


class Deadline:
    """Counts down from now."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, perhaps below 0; infinite where there is no bound."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def part(self, share: float, keep: float = 0.0) -> Deadline:
        """A part of what is left when ``keep`` seconds of it are set aside."""
        return Deadline(None if self._end is None else max(0.0, self.left - keep) * share)

    def check(self) -> None:
        """Raise ``OutOfTime`` where nothing is left."""
        if self.left <= 0:
            raise OutOfTime


def seconds_of(text: str | None) -> float | None:
    """Seconds from ``90``, ``90s``, ``10m``, ``1.5h``; ``none`` is no bound.

    Raises:
        ConfigError: it is something else.
    """
    if text is None or text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"--time-budget: expected a time such as 90s, 10m or 1.5h, or none; got {text!r}")
    return float(found[1]) * _UNITS[found[2]]
